"""What merging puts in the place of a base's weights: computed in fp32, rounded once to each weight's precision."""

from __future__ import annotations

import torch
from torch import Tensor

from halka.core.packed import Packed
from halka.core.parts import WEIGHT_ROLES, Adapter
from halka.util.errors import HalkaError

MERGEABLE = (*WEIGHT_ROLES, "attn", "mlp", "embedding")


def merged_weights(adapter: Adapter, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights and biases that change where the adapter is inside them, by the base's names for them.

    In the precision of each, or all in `dtype`. Raises HalkaError, by name, for a part that is no weight's, a bias
    where the base has none, and a weight that is packed.
    """
    found: dict[str, Tensor] = {}  # in fp32: several parts may act on one weight
    own: dict[str, Tensor] = {}
    with torch.no_grad():
        for path, part in adapter.parts.items():
            target = adapter.targets[path]
            linear = target.role == "module" and target.d_in > 0
            if target.several or not (target.role in MERGEABLE or linear):
                raise HalkaError(f"{adapter.method.name} acts on {target.role}, which is no weight: not mergeable")
            if isinstance(target.module, Packed):
                raise HalkaError(
                    f"{target.name} is quantised to {target.module.form}: what is added would be rounded away where it "
                    "is quantised anew, not mergeable. Use the adapter beside the base, or load the base unquantised "
                    "(halka.load_base without quantize), load the adapter there and merge it"
                )
            names = {"weight": target.parameter, "bias": f"{target.name}.bias"}
            for name in names.values():
                if (tensor := getattr(target.module, name.rpartition(".")[2], None)) is not None:
                    own[name] = tensor
                    found.setdefault(name, tensor.float())
            if names["weight"] not in found:
                raise HalkaError(f"{adapter.method.name} acts on what a mixture of experts returns: not mergeable")
            weight, bias = found[names["weight"]], found.get(names["bias"])
            try:
                new, new_bias = part.merged(weight.T if target.transposed else weight, bias)
            except NotImplementedError as error:
                raise HalkaError(f"{adapter.method.name} cannot be merged: {error}") from None
            if new_bias is not None:
                if bias is None:
                    raise HalkaError(
                        f"{adapter.method.name} adds a bias to {target.name}, which has none: not mergeable"
                    )
                found[names["bias"]] = new_bias
            found[names["weight"]] = new.T if target.transposed else new
    return {name: tensor.to(dtype or own[name].dtype).contiguous() for name, tensor in found.items()}
