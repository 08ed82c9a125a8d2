"""Single tokens trained: their rows of the embedding and of the head, and no others (peft's trainable tokens)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from halka.core import ModulePart, Part, Target, init_parameter
from halka.methods._fields import method, option
from halka.methods.lora import embedding_factor
from halka.util.errors import HalkaError


@method
class Tokens:
    name: ClassVar[str] = "tokens"
    plain: ClassVar[str] = "Trains single tokens alone, for new words and marks."
    paper: ClassVar[str] = "no paper: full fine-tuning of a few tokens' rows"
    lr: ClassVar[float] = 1e-3

    tokens: tuple[int, ...] = option(default=(0,), help="ids of the tokens")
    targets: tuple[Literal["embedding", "head"], ...] = option(
        default=("embedding", "head"),
        help="embedding (what is read), head (what is predicted); where tied, both have the same rows",
    )

    def __post_init__(self) -> None:
        if not self.tokens or len(set(self.tokens)) != len(self.tokens) or min(self.tokens) < 0:
            raise HalkaError(f"tokens: give the ids of one or more tokens, none of them twice, not {self.tokens}")
        if not self.targets:
            raise HalkaError("tokens: targets is empty: name embedding, head, or both")

    def roles(self) -> tuple[str, ...]:
        return self.targets

    def build(self, target: Target) -> Part:
        if not target.d_in:
            raise HalkaError(f"tokens: {target.name} has no row for each token: leave {target.role} out of targets")
        if target.role == "embedding" and target.name.startswith("encoder."):
            raise HalkaError(
                f"tokens: {target.name} is what the encoder reads, and the decoder has its own: leave embedding out of "
                "targets, or train both embeddings whole with Modules"
            )
        vocabulary = target.module.get_parameter("weight").shape[0]
        if max(self.tokens) >= vocabulary:
            raise HalkaError(
                f"tokens: ids run from 0 to {vocabulary - 1} in this base, not {max(self.tokens)}: for new tokens call "
                "base.resize_token_embeddings and then halka.adapt again"
            )
        return (ReadRows if target.role == "embedding" else PredictedRows)(target, self.tokens)


class TokenRows(ModulePart):
    """`rows` (N, D), which start as the base's own."""

    ids: Tensor

    def __init__(self, target: Target, tokens: tuple[int, ...]):
        super().__init__()
        self._module = (target.module,)  # in a tuple, so that the base is no submodule of its part
        self.register_buffer("ids", torch.tensor(tokens), persistent=False)
        like = torch.empty(len(tokens), self._weight().shape[1], device=self._weight().device)
        self.rows = init_parameter(like, lambda it: it.copy_(self._own()))

    def _weight(self) -> Tensor:
        return self._module[0].get_parameter("weight")

    def _own(self) -> Tensor:
        return self._weight().detach()[self.ids.to(self._weight().device)]

    def values(self) -> Tensor:
        return self.rows

    def stack_key(self) -> None:
        return None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight.index_copy(0, self.ids.to(weight.device), self.values().to(weight)), bias


class ReadRows(TokenRows):
    """At the embedding: these tokens' rows take the place of the base's."""

    def __init__(self, target: Target, tokens: tuple[int, ...]):
        super().__init__(target, tokens)
        self.factor = embedding_factor(target.module)

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        same = torch.eq(x[..., None], self.ids)  # B T N
        change = (self.rows - self._own()).to(y.dtype) * self.factor
        return y + same.to(y.dtype) @ change


class PredictedRows(TokenRows):
    """At the head: these tokens' logits, as their rows would give them. Where it is tied, the embedding's rows."""

    _tied: tuple[ReadRows, ...] = ()  # in a tuple, so that the other part is no submodule of this one

    def tie_parameters(self, others: Mapping[str, Part]) -> None:
        for part in others.values():
            if isinstance(part, ReadRows) and part._weight() is self._weight() and part.ids.equal(self.ids):
                del self.rows
                self._tied = (part,)

    def values(self) -> Tensor:
        return self._tied[0].rows if self._tied else self.rows

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        change = (self.values() - self._own()).to(x.dtype)
        return y.index_add(-1, self.ids, F.linear(x, change).to(y.dtype))
