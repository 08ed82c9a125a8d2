"""Modules trained whole: a copy of each takes its place, as a classifier's new head needs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from halka.core import MODULE, ModulePart, Part, Target, init_parameter, quantization_of
from halka.methods._checks import one_input
from halka.methods._fields import method, option
from halka.util.divided import whole
from halka.util.errors import HalkaError

ROLES = ("head", "embedding")
OTHERS = ("attn", "mlp", "experts", "linear", "memory", "embed", "base")  # how other methods' roles begin


@method
class Modules:
    name: ClassVar[str] = "modules"
    plain: ClassVar[str] = "Trains whole modules, such as a classifier's output layer."
    paper: ClassVar[str] = "no paper: full fine-tuning of a few modules"
    lr: ClassVar[float] = 1e-3

    targets: tuple[str, ...] = option(
        default=("head",), help="head, embedding, or paths of modules with one input: norms, classifiers"
    )

    def __post_init__(self) -> None:
        if isinstance(self.targets, str) or not self.targets:
            raise HalkaError(f'modules: targets is a tuple of modules, such as ("head",), not {self.targets!r}')
        if wrong := [target for target in self.targets if target.partition(".")[0] in OTHERS]:
            raise HalkaError(
                f"modules: targets takes head, embedding, or paths of modules, not {', '.join(map(repr, wrong))}"
            )

    def roles(self) -> tuple[str, ...]:
        return tuple(role if role in ROLES or role.startswith(MODULE) else f"{MODULE}{role}" for role in self.targets)

    def build(self, target: Target) -> Part:
        if (form := quantization_of(target.module)) is not None:
            raise HalkaError(
                f"modules: {target.name} is quantised to {form} and cannot be trained: load the base without quantize"
            )
        one_input("modules", target)
        if isinstance(target.module, nn.Conv1d):
            raise HalkaError(
                f"modules: {target.name} is a convolution over tokens, whose layer reads its weight and does not call "
                "it: leave it out"
            )
        return WholePart(target.module, target.name)


def module_at(module: nn.Module, path: str) -> nn.Module:
    """The submodule of that path, an empty one where there is none."""
    for step in path.split(".") if path else ():
        if step not in dict(module.named_children()):
            module.add_module(step, nn.Module())
        module = module.get_submodule(step)
    return module


class WholePart(ModulePart):
    """The module's own parameters under their own names, fp32, which start as the base's: y stays y.

    Where the module is tied to another, as many heads are to the embeddings, the other stays as it is. Where the base
    is divided among processes, each has the parameters whole.
    """

    replaces = True

    def __init__(self, module: nn.Module, name: str):
        super().__init__()
        self._name = name
        if not any(True for _ in module.parameters()):
            raise HalkaError(f"modules: a {type(module).__name__} has nothing to train")
        own_parameters: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
        form = copy.deepcopy(module, own_parameters)  # without our hooks and weights: what is computed, not with what
        for inner in form.modules():
            inner._forward_hooks.clear()  # pyright: ignore[reportUnknownMemberType]
            inner._forward_pre_hooks.clear()  # pyright: ignore[reportUnknownMemberType]
        self._form = (form,)
        for name, parameter in module.named_parameters(remove_duplicate=False):
            path, _, key = name.rpartition(".")
            own = whole(parameter.detach())
            mine = init_parameter(torch.empty_like(own, dtype=torch.float32), lambda it, own=own: it.copy_(own))
            module_at(self, path).register_parameter(key, mine)
            form.get_submodule(path).register_parameter(key, nn.Parameter(own.to("meta"), requires_grad=False))

    def tie_parameters(self, others: Mapping[str, Part]) -> None:
        """Raises HalkaError for a part within the module, which the copy computes without."""
        if inner := next((path for path in others if path.startswith(f"{self._name}.")), None):
            raise HalkaError(
                f"modules: {self._name} is trained whole, so nothing else can act within it, as at {inner}: leave "
                "either out of the targets"
            )

    def stack_key(self) -> None:
        return None

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(parameter.to(dtype) for parameter in self.parameters())  # too large to wait as operands do

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        names = (name for name, _ in self.named_parameters())
        return functional_call(self._form[0].train(self.training), dict(zip(names, tensors, strict=True)), (x,))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        own = dict(self.named_parameters())
        return own["weight"], own.get("bias")
