"""`Request`: what is asked of the engine. `Answer`: what comes of it, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from halka.data.examples import Prompt, as_prompt
from halka.data.tokens import encode_prompt
from halka.engine.constraint import Constraint
from halka.engine.sampling import Sampling
from halka.engine.stopping import Stopping

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Request:
    """A prompt to be answered.

    prompt      token ids
    adapter     its name; None: the bare base
    sampling    how tokens are chosen; greedily by default
    stopping    where the answer ends, besides the base's own end tokens
    constraint  what the answer must be, as `constraint` made it; None: any text
    tenant      whose request it is: tenants share nothing that is cached, and have equal shares of the rows
    """

    prompt: Sequence[int]
    adapter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stopping: Stopping = field(default_factory=Stopping)
    constraint: Constraint | None = None
    tenant: str = ""

    @classmethod
    def of(cls, prompt: Prompt, tokenizer: Any, **fields: Any) -> Request:
        """A request in the base's chat template, of a text or a conversation.

        Raises DataError for what is no prompt, and where the template refuses it.
        """
        return cls(encode_prompt(as_prompt(prompt, "the prompt"), tokenizer), **fields)


@dataclass(eq=False)
class Answer:
    """An answer under way, or finished.

    adapter_id   the content id of the adapter that makes it; None: the bare base makes it, or nobody yet
    tokens       its token ids so far, with the one that ended it
    text         its text so far, without what may still become a stop string
    finish       why it ended; None while it has not
    error        why it failed
    """

    request: Request
    adapter_id: str | None = None
    tokens: list[int] = field(default_factory=list[int])
    text: str = ""
    finish: Finish | None = None
    error: Exception | None = None
