"""Output that keeps to a JSON Schema or a regular expression, enforced while tokens are drawn (llguidance).

What cannot be enforced in full is refused, never in part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halka.engine.json_schema import OPTIONS, enforceable
from halka.util.errors import HalkaError

KEPT = 32  # constraints that stay compiled


@dataclass(frozen=True)
class Constraint:
    """What a request's text must be; one of the two.

    schema  JSON of this schema. Text between JSON's tokens is free white space; keys come in the schema's order
    regex   a text that this expression matches as a whole, in the syntax of Rust's `regex` without look-around
    """

    schema: dict[str, Any] | None = None
    regex: str | None = None

    def __post_init__(self) -> None:
        if (self.schema is None) == (self.regex is None):
            raise HalkaError("a constraint is a schema or a regex: give one of the two")
        if self.schema is not None and not isinstance(self.schema, dict):
            raise HalkaError(f"schema is {self.schema!r}: it is a JSON Schema as a dict")
        if self.regex is not None and not isinstance(self.regex, str):
            raise HalkaError(f"regex is {self.regex!r}: it is a text")


JSON_OBJECT = Constraint(schema={"type": "object"})
"""Any JSON object, as OpenAI's `json_object`."""


class Constraints:
    """Makes matchers for the texts of one tokenizer, whose vocabulary is read at the first, and when it has grown.

    The last constraints stay compiled. Any thread may call it.

    ends  the end tokens: they are allowed when the text may end, and nothing else is when it must
    """

    def __init__(self, tokenizer: Any, ends: frozenset[int]):
        self.tokenizer, self.ends = tokenizer, ends
        self._read: tuple[int, Callable[[str], Matcher]] | None = None  # how many tokens there were, and their compiler

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher at a text's beginning. A large schema takes seconds to compile, but not again soon.

        Raises HalkaError if llguidance is not installed, the tokenizer does not fit it, or the constraint cannot be
        enforced in full; the message names the keyword.
        """
        compiled, llguidance = self._compiler(), _llguidance()
        schema = None if constraint.schema is None else enforceable(constraint.schema)
        subject = f"regex {constraint.regex!r}" if schema is None else "schema"
        try:
            if schema is None:
                grammar = llguidance.LLMatcher.grammar_from_regex(constraint.regex)
            else:
                grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=OPTIONS)
            return compiled(grammar).copy()
        except ValueError as error:
            raise HalkaError(f"{subject} cannot be enforced: {_one_line(str(error))}") from None

    def _compiler(self) -> Callable[[str], Matcher]:
        llguidance = _llguidance()
        if not getattr(self.tokenizer, "is_fast", False):
            raise HalkaError(
                f"constrained output needs a fast tokenizer, and {type(self.tokenizer).__name__} is none: load the "
                "base with AutoTokenizer"
            )
        if not self.ends:
            raise HalkaError("constrained output needs an end token: set eos_token_id in the base's generation_config")
        if self._read is None or self._read[0] != len(self.tokenizer):
            vocabulary = llguidance.hf.from_tokenizer(self.tokenizer, eos_token=sorted(self.ends))
            self._read = len(self.tokenizer), lru_cache(KEPT)(partial(_compiled, vocabulary))
        return self._read[1]


class Matcher:
    """Follows one text and knows which tokens may come next."""

    def __init__(self, matcher: Any, tokens: int):
        self._matcher = matcher
        self._tokens = tokens  # in the tokenizer

    def copy(self) -> Matcher:
        """A matcher for another text, which is where this one is. The constraint is not compiled again."""
        return Matcher(self._matcher.deep_copy(), self._tokens)

    @property
    def done(self) -> bool:
        """Whether the text can only end here, or has ended."""
        return self._matcher.is_stopped()

    def mask(self, vocabulary: int) -> Tensor:
        """The tokens that may come next: (vocabulary,) bool, on the CPU; rows without a token are False.

        Raises HalkaError if the constraint became too complex for llguidance, or no token can go on.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        tokens = np.unpackbits(bits, count=self._tokens, bitorder="little")[:vocabulary]
        if self._matcher.is_error() or not tokens.any():
            raise HalkaError(f"the constraint leaves no token: {_one_line(self._matcher.get_error())}")
        mask = np.zeros(vocabulary, np.bool_)  # by numpy: torch would wake its threads for this
        mask[: len(tokens)] = tokens
        return torch.from_numpy(mask)

    def accept(self, token: int) -> None:
        """The text goes on with this token. Raises HalkaError if it may not."""
        if not self._matcher.consume_token(token):
            raise HalkaError(f"token {token} breaks the constraint: {_one_line(self._matcher.get_error())}")


def _compiled(vocabulary: Any, grammar: str) -> Matcher:
    """A matcher of llguidance's grammar. Raises ValueError for one that cannot be enforced in full."""
    llguidance = _llguidance()
    _, problems = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, vocabulary)
    if problems:
        raise ValueError(problems[0])
    return Matcher(llguidance.LLMatcher(vocabulary, grammar, log_level=0), vocabulary.vocab_size)


def _llguidance() -> Any:
    try:
        import llguidance
        import llguidance.hf
    except ImportError:
        raise HalkaError("constrained output needs the extra: pip install 'halka[engine]'") from None
    return llguidance


def _one_line(message: str) -> str:
    """llguidance's message without the state that it appends."""
    return " ".join(message.partition("<state>")[0].split())[:300]
