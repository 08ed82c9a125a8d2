"""Full fine-tuning, the baseline: a copy of every weight is trained, in fp32, and cast to the base's precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from halka.core import Part, Target, WeightPart, is_divided, quantization_of
from halka.methods._fields import method
from halka.methods.modules import module_at
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
        if is_divided(target.module):
            raise HalkaError("full: each process holds a part of the base, and full trains it whole: leave --shard out")
        return FullPart(target.module)


class FullPart(WeightPart):
    """fp32 copies of the weights under the base's own names. The base itself is not changed."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self._base = (base,)  # in a tuple, so that the base is no submodule of its part
        for name, parameter in base.named_parameters():
            path, _, key = name.rpartition(".")
            module_at(self, path).register_parameter(key, nn.Parameter(parameter.detach().float().clone()))

    def weights(self) -> Mapping[str, Tensor]:
        own = dict(self._base[0].named_parameters())
        masters = {name: self.cast(name, own[name].dtype) for name, _ in self.named_parameters()}
        return {name: master.to(own[name].device) for name, master in masters.items()}
