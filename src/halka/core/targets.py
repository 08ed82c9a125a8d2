"""Targets: the places of a base where methods may act, and which of them a method selects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from halka.util.divided import whole, whole_parameters
from halka.util.errors import HalkaError
from halka.util.quantised import Quantized

# The linear layers of a decoder block, the fused forms that some architectures have, and names for groups of them.
LINEAR_ROLES = (
    *("attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o"),
    *("mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down"),
)
EXPERT_ROLES = ("experts.gate_up", "experts.down")  # of a layer of experts: a weight (E, O, I), one for each expert
WEIGHT_ROLES = (*LINEAR_ROLES, "head", *EXPERT_ROLES)  # those that a weight serves
VIRTUAL_ROLES = ("memory", "memory.encoder", "memory.cross", "memory.gated", "embed")  # those of virtual tokens
ROLE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "linear": LINEAR_ROLES,
    "attn.kv": ("attn.k", "attn.v", "attn.qkv"),
    "attn.qv": ("attn.q", "attn.v", "attn.qkv"),
    "attn.linear": tuple(role for role in LINEAR_ROLES if role.startswith("attn.")),
    "mlp.linear": tuple(role for role in LINEAR_ROLES if role.startswith("mlp.")),
    "experts": EXPERT_ROLES,
}
MODULE = "module:"  # before a path, among a method's roles: that module, whatever it is


class Reader(Protocol):
    """What the module of a `memory` target can do: read text as the base does."""

    shape: tuple[int, ...]
    """Of what a virtual token is: (2·L, H, head width), a key and a value per layer; of a gated one (L, D)."""

    def vocabulary(self) -> nn.Module:
        """The base's embedding module: token ids (P,) to input embeddings (P, D)."""
        ...

    def read(self, embeddings: Tensor) -> Tensor:
        """The keys and values (N, P, 2·L, H, W) that the base computes for embeddings (N, P, D)."""
        ...


@dataclass(frozen=True)
class Target:
    """One place in a base where a method may act.

    role        what stands there, the same for every architecture:
                attn.q … mlp.down   a linear layer
                experts.gate_up, experts.down       a layer's experts, the weights of all of them
                attn, mlp           a sublayer's output, before the residual sum
                attn.residual, mlp.residual         the same, for parts that read the residual beside it
                head                the output layer
                embedding           the module that turns tokens into embeddings
                embed               embeddings before the text's own
                memory              every layer's keys and values; in an encoder-decoder, the decoder's
                memory.encoder, memory.cross        there the encoder's, and those of attention to the encoder
                memory.gated        tokens that layers attend to apart from the text
                base                all weights
                module              any other module, named by its path
    name        the module's path in the base; of experts, the path of the parameter that holds their weights
    module      that module; where virtual tokens act, a `Reader`
    d_in, d_out the widths of what the part reads and returns; 0 for a module that is no single linear layer
    source      for `attn` and `mlp`: the path of the module that receives the sublayer's input; with `.residual`: of
                the one that receives the residual
    norm        with `.residual`: the base's norm of the residual sum, where it stands there, as in BERT
    transposed  the weight is stored as (I, O), as GPT-2's Conv1D does
    experts     (E,) where each of E experts has a weight of its own, and parts have theirs; () elsewhere
    """

    name: str
    role: str
    module: nn.Module = field(repr=False, compare=False)
    d_in: int
    d_out: int
    layer: int | None = None
    source: str | None = None
    norm: nn.Module | None = field(default=None, repr=False, compare=False)
    transposed: bool = False
    experts: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Unlike the name, never shared: `mlp` and `mlp.down` stand at the same module."""
        return f"{self.name}:{self.role}"

    @property
    def parameter(self) -> str:
        """The base's name for the parameter that holds the weight."""
        return self.name if self.experts else f"{self.name}.weight"

    def weight(self) -> Tensor:
        """The weight (O, I) that the linear layer computes with now, dequantised; of experts, all (E, O, I).

        Where it is divided among processes it is gathered, and all of them call this together.
        """
        if isinstance(self.module, Quantized):
            with whole_parameters(self.module):
                return self.module.dequantize()
        weight = whole(getattr(self.module, self.parameter.rpartition(".")[2]))
        return weight.T if self.transposed else weight

    @property
    def reader(self) -> Reader:
        """The module, where virtual tokens act: it reads text as the base does."""
        return cast(Reader, self.module)

    def device(self) -> torch.device | None:
        """Where its module computes; None for modules without tensors."""
        return next((it.device for it in (*self.module.parameters(), *self.module.buffers())), None)


def wants(roles: Iterable[str], target: Target) -> bool:
    """Whether a method of these roles, groups of roles or paths, with or without `module:`, acts on the target."""
    wanted = {member for role in roles for member in ROLE_GROUPS.get(role, (role,))}
    by_path = target.role in (*WEIGHT_ROLES, "embedding", "module")
    return target.role in wanted or (by_path and not wanted.isdisjoint({target.name, f"{MODULE}{target.name}"}))


def select(
    method: str, roles: Sequence[str], targets: Iterable[Target], modules: Mapping[str, nn.Module]
) -> list[Target]:
    """The targets that a method of that name and these roles acts on, of a base's targets and modules (by path).

    The path of a head, an embedding or another weight selects the base's own target, and its role with it.
    Raises HalkaError for a role or path that selects none (of a group, one is enough), a router, a replaced module.
    """
    targets = list(targets)
    for role in roles:
        if any(wants([role], target) for target in targets):
            continue
        path = role.removeprefix(MODULE)
        if path == role or path not in modules:
            present = ", ".join(sorted({target.role for target in targets}))
            raise HalkaError(
                f"{method} wants {path!r}, which this base does not have: it has {present} and the groups "
                f"{', '.join(ROLE_GROUPS)}; a linear layer can also be named by its path"
            )
        if type(modules[path]).__name__.endswith("Router"):  # returns several tensors, of all rows' tokens as one
            raise HalkaError(f"{method}: {path} is a router, which is not trained: tokens go where the base sends them")
        targets.append(module_target(path, modules[path]))
    selected = [target for target in targets if wants(roles, target)]
    checked = targets if any(target.role == "base" for target in selected) else selected
    if replaced := [one.name for one in checked if modules.get(one.name, one.module) is not one.module]:
        raise HalkaError(f"the base has another {replaced[0]} than when it was adapted: call halka.adapt on it again")
    return selected


def module_target(path: str, module: nn.Module) -> Target:
    """Any module of a base as a target; its widths are those of a linear layer, else 0."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if isinstance(module, nn.Embedding) or weight is None or weight.dim() != 2:
        return Target(path, "module", module, 0, 0)
    transposed = not isinstance(module, nn.Linear)
    d_in, d_out = weight.shape if transposed else reversed(weight.shape)
    return Target(path, "module", module, d_in, d_out, transposed=transposed)
