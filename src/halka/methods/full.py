"""Full fine-tuning, the baseline: a copy of every weight is trained, in fp32, and cast to the base's precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from halka.core import Part, Target, WeightPart, quantization_of
from halka.methods._fields import method
from halka.methods.modules import module_at
from halka.util.divided import divide, gathered, is_divided, mesh_of, whole
from halka.util.errors import HalkaError


@method
class Full:
    name: ClassVar[str] = "full"
    plain: ClassVar[str] = (
        "Trains a copy of the whole model: the most memory and the largest file, and the yardstick of all others."
    )
    paper: ClassVar[str] = "the baseline: every weight is trained"
    lr: ClassVar[float] = 1e-4

    def roles(self) -> tuple[str, ...]:
        return ("base",)

    def build(self, target: Target) -> Part:
        if (form := quantization_of(target.module)) is not None:
            raise HalkaError(f"full: the base is quantised to {form} and cannot be trained: load it without quantize")
        divided = {parameter.dtype for parameter in target.module.parameters() if is_divided(parameter)}
        if len(divided) > 1:
            shown = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in divided))
            raise HalkaError(f"full: with --shard the base's layers must be of one precision, not {shown}: set --dtype")
        return FullPart(target.module)


class FullPart(WeightPart):
    """fp32 copies of the weights under the base's own names, each where its weight is. The base itself is not changed.

    Of a base that is divided among processes each has its part of every copy, and so of gradients and moments, also of
    what the base has whole, such as embeddings.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self._base = (base,)  # in a tuple, so that the base is no submodule of its part
        mesh = mesh_of(base)
        for name, parameter in base.named_parameters():
            path, _, key = name.rpartition(".")
            own = parameter.detach() if mesh is None else divide(parameter.detach(), mesh)
            module_at(self, path).register_parameter(key, nn.Parameter(own.to(torch.float32, copy=mesh is None)))
        self.operands = tuple(name for name, parameter in base.named_parameters() if not is_divided(parameter))

    def weights(self) -> Mapping[str, Tensor]:
        own = dict(self._base[0].named_parameters())
        masters = dict(self.named_parameters())
        return {
            name: masters[name]
            if is_divided(parameter)
            else whole(self.cast(name, parameter.dtype)).to(parameter.device)
            for name, parameter in own.items()
        }

    def saved(self) -> Iterator[tuple[str, Tensor]]:
        own = dict(self._base[0].named_parameters())
        return gathered((name, master.to(own[name].dtype)) for name, master in self.named_parameters())
