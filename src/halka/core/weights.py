"""The weights that a base computes with: its own, or those with an adapter merged into them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from halka.core.adapter import Adapter
from halka.core.parts import ModulePart
from halka.core.passes import Passes
from halka.util.errors import HalkaError
from halka.util.machine import memory_named
from halka.util.quantised import Quantized


class BaseWeights:
    """Merges an adapter into the base's weights, and puts the base's own back, bit for bit."""

    def __init__(self, passes: Passes, adapter: Callable[[str], Adapter]):
        self.merged: str | None = None  # the name of the adapter that is inside them
        self._passes, self._adapter = passes, adapter

    def merge(self, name: str) -> None:
        busy = "merging needs an idle base: leave `use`, or `unmerge` what is merged"
        with self._passes.idle(busy):
            adapter = self._adapter(name)
            if self.merged is not None:
                raise HalkaError(busy)
            try:
                with memory_named(f"the weights with {name!r} merged do not fit: use it beside the base"):
                    for key, weight in merged_weights(adapter):
                        self._passes.swap.swap_in({key: weight}, tied=False, offload=True)
            except BaseException:
                self._passes.swap.restore()
                raise
            self.merged = name

    def unmerge(self) -> None:
        with self._passes.turns.take():
            if self.merged is not None:
                with self._passes.idle(f"the merged adapter {self.merged!r} is in use: leave `use` first"):
                    self._passes.swap.restore()
                    self.merged = None

    @contextmanager
    def own(self, *, computing: bool = True) -> Generator[None]:
        """`AdaptedModel.own_weights`."""
        with self._passes.turns.lock:  # before the look at what is merged, which another thread may change until then
            turn = nullcontext() if self.merged is None else self._passes.turns.take()
            with turn, self._passes.bare(), self._passes.swap.restored(computing=computing):
                yield


def merged_weights(adapter: Adapter, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight and bias that changes, with the adapter inside it, behind the base's name for it.

    Computed in fp32 and rounded once, to the precision of each, or all to `dtype`; one weight is finished before the
    next begins, so no more than one is there in fp32. Raises HalkaError, by name, for a part that is no weight's, a
    bias where the base has none, and a weight that is quantised.
    """
    at_weight: dict[str, list[str]] = {}  # paths of parts: several may act on one weight
    for path, target in adapter.targets.items():
        at_weight.setdefault(target.parameter, []).append(path)
    for paths in at_weight.values():
        yield from _merged(adapter, paths, dtype).items()


def _merged(adapter: Adapter, paths: Sequence[str], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """One weight, and its bias, with the parts at these paths inside."""
    changed, own, method = dict[str, Tensor](), dict[str, Tensor](), adapter.method.name  # changed: in fp32
    with torch.no_grad():
        for path in paths:
            part, target = adapter.parts[path], adapter.targets[path]
            if isinstance(part, ModulePart) and part.replaces and not target.d_in:
                own |= {f"{target.name}.{name}": tensor for name, tensor in target.module.named_parameters()}
                changed |= {f"{target.name}.{name}": tensor.detach() for name, tensor in part.named_parameters()}
                continue
            if not isinstance(part, ModulePart) or not target.d_in:
                where = target.role.replace("module", target.name)
                raise HalkaError(f"{method} acts on {where}, which is no weight: not mergeable")
            if isinstance(target.module, Quantized):
                raise HalkaError(
                    f"{target.name} is quantised to {target.module.quantization}: what is added would be rounded away "
                    "where it is quantised anew, not mergeable. Use the adapter beside the base, or load the base "
                    "without quantize (halka.load_base), load the adapter there and merge it"
                )
            names = {"weight": target.parameter, "bias": f"{target.name}.bias"}
            for name in names.values():
                if (tensor := getattr(target.module, name.rpartition(".")[2], None)) is not None:
                    own[name] = tensor
                    changed.setdefault(name, tensor.float())
            if names["weight"] not in changed:
                raise HalkaError(f"{method} acts on what a mixture of experts returns: not mergeable")
            weight, bias = changed[names["weight"]], changed.get(names["bias"])
            turned = target.transposed and not part.replaces  # one that is trained whole is as the base stores it
            try:
                new, new_bias = part.merged(weight.T if turned else weight, bias)
            except NotImplementedError as error:
                raise HalkaError(f"{method} cannot be merged: {error}") from None
            if new_bias is not None:
                if bias is None:
                    raise HalkaError(f"{method} adds a bias to {target.name}, which has none: not mergeable")
                changed[names["bias"]] = new_bias
            changed[names["weight"]] = new.T if turned else new
    return {name: tensor.to(dtype or own[name].dtype).contiguous() for name, tensor in changed.items()}
