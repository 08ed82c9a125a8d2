"""Prompt tuning: learned input embeddings in front of the text (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from halka.core import Method, Part, Target, VirtualPart
from halka.methods._checks import positive_int
from halka.methods._fields import method, option
from halka.util.errors import HalkaError

Virtual = TypeVar("Virtual", bound=Method)


@method
class Prompt:
    name: ClassVar[str] = "prompt"
    plain: ClassVar[str] = "Learns unseen words in front of the text: the smallest file, which needs the most steps."
    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    lr: ClassVar[float] = 1.5e-2

    length: int = option(default=20, help="virtual tokens P", check=positive_int)
    start: Literal["vocabulary", "random"] = option(
        default="vocabulary", help="embeddings of sampled tokens (vocabulary), or noise like them (random)"
    )
    tokens: tuple[int, ...] = option(default=(), help="start from the embeddings of these token ids")

    @classmethod
    def from_text(cls, text: str, tokenizer: Any, length: int | None = None) -> Prompt:
        """A prompt that starts as `text`, as `started_from` says."""
        return started_from(cls(), text, tokenizer, length)

    def roles(self) -> tuple[str, ...]:
        return ("embed",)

    def build(self, target: Target) -> Part:
        return PromptPart(starting_embeddings(target.module, self.length, self.start, self.tokens))


def check_start(method: Method, where: str) -> None:
    """Raises HalkaError, which begins with `where`, for a method whose virtual tokens cannot start as a text."""
    tokens = vars(method).get("tokens")
    if tokens is None:
        raise HalkaError(f"{where}: {method.name} has no virtual tokens: choose prompt or prefix")
    if tokens:
        raise HalkaError(f"{where}: tokens already say what virtual tokens start as: give one of them")


def started_from(method: Virtual, text: str, tokenizer: Any, length: int | None = None) -> Virtual:
    """The method with its virtual tokens starting as those of `text`, repeated or cut to `length` if it is given.

    Raises HalkaError for a text without tokens, and without a tokenizer.
    """
    if tokenizer is None:
        raise HalkaError("virtual tokens start as a text by the base's tokenizer: halka.adapt(base, tokenizer)")
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise HalkaError("virtual tokens cannot start from a text without tokens")
    changes: Any = {"length": len(ids) if length is None else length, "tokens": tuple(ids)}
    return replace(method, **changes)


def starting_embeddings(embed: nn.Module, length: int, start: str, tokens: tuple[int, ...]) -> Tensor:
    """Embeddings (P, D) in fp32: of `tokens`, repeated to the length; of sampled tokens; or noise of their spread.

    The module computes them: in some architectures an embedding is not the bare row of the weight.
    Raises HalkaError for a token id that the base does not have.
    """
    vocabulary, width = embed.get_parameter("weight").shape
    device = embed.get_parameter("weight").device
    if tokens:
        if unknown := [token for token in tokens if not 0 <= token < vocabulary]:
            raise HalkaError(f"token ids run from 0 to {vocabulary - 1} in this base, not {unknown[0]}")
        ids = torch.tensor(tokens).repeat(-(-length // len(tokens)))[:length]
    else:
        ids = torch.randint(vocabulary, (length if start == "vocabulary" else 1024,))
    with torch.no_grad():
        embeddings = embed(ids.to(device)).float()
    return embeddings if tokens or start == "vocabulary" else torch.randn(length, width).to(device) * embeddings.std()


class PromptPart(VirtualPart):
    """`embeddings` (P, D), from which the base computes keys and values."""

    def __init__(self, start: Tensor):
        super().__init__()
        self.embeddings = nn.Parameter(start)

    def virtual(self) -> Tensor:
        return self.embeddings
