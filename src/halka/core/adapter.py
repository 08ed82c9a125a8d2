"""`Adapter`: the parts that one method built for one base. Its state is what is saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from halka.core.parts import Method, ModulePart, Part, VirtualPart, WeightPart
from halka.core.targets import Target
from halka.util.cached import Changes
from halka.util.divided import is_divided, part_like
from halka.util.errors import HalkaError
from halka.util.fits import check_fits


class Adapter:
    """The parts that one method built for one base, by their targets' paths."""

    def __init__(self, method: Method, parts: Mapping[str, Part], targets: Mapping[str, Target]):
        self.method = method
        self.parts = dict(parts)
        self.targets = dict(targets)
        self.labels: tuple[str, ...] = ()  # what its head tells apart, by place; the base's own names if empty

    @classmethod
    def build(cls, method: Method, targets: Iterable[Target], device: torch.device) -> Adapter:
        """The method's parts for these targets, in eval mode, each where its target is, or on the base's `device`.

        Raises HalkaError if the method builds none, or something else than parts.
        """
        adapter = cls(method, {}, {})
        for target in targets:
            if (part := method.build(target)) is None:
                continue
            if not isinstance(part, ModulePart | VirtualPart | WeightPart):
                raise HalkaError(
                    f"{method.name} built a {type(part).__name__} for {target.name}: a part is a ModulePart, a "
                    "VirtualPart or a WeightPart of halka.core"
                )
            path = target.key if target.name in adapter.parts else target.name
            if not isinstance(part, WeightPart):
                part.to(target.device() or device, torch.float32)  # whatever torch's default precision is
            adapter.parts[path] = part.eval()
            adapter.targets[path] = target
        if not adapter.parts:
            raise HalkaError(f"{method.name} built no part for this base: widen its targets")
        for part in adapter.parts.values():
            part.tie_parameters(adapter.parts)
        return adapter

    def __repr__(self) -> str:
        return f"Adapter({self.method}, {self.count():,} trained parameters in {len(self.parts)} parts)"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, part in self.parts.items():
            for name, parameter in part.named_parameters():
                yield f"{path}.{name}", parameter

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    @property
    def divided(self) -> bool:
        """Whether each of the processes that train holds a part of it (`halka.util.divided`)."""
        return any(is_divided(parameter) for parameter in self.parameters())

    def count(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def train(self, mode: bool = True) -> None:
        for part in self.parts.values():
            part.train(mode)

    def state_dict(self) -> dict[str, Tensor]:
        """Every part's tensors under `<target path>.<name>`, detached, sharing memory with the parts."""
        state: dict[str, Tensor] = {}
        for path, part in self.parts.items():
            state.update(part.state_dict(prefix=f"{path}."))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], *, assign: bool = False) -> None:
        """Copy `state` in; with `assign`, hold its very tensors where they are on the parts' devices, else copies.

        Of whole tensors a part that is divided among processes takes what it holds.

        Raises HalkaError naming every key that is missing, unknown or of another shape, and with `assign` for tensors
        that are not fp32.
        """
        check_fits(self.state_dict(), state)
        before = self.parameters()
        if assign and (other := [key for key, tensor in state.items() if tensor.dtype != torch.float32]):
            raise HalkaError(f"the state holds {state[other[0]].dtype} in {other[0]}: parts hold fp32")
        for path, part in self.parts.items():
            values: dict[str, Tensor] = {}
            for name, own in part.state_dict().items():
                value = part_like(state[f"{path}.{name}"].detach(), own)
                value = value.to(own) if assign else value
                values[name] = value.clone() if assign and value.is_inference() else value
            part.load_state_dict(values, assign=assign)
        Changes.happened([*before, *self.parameters()])
