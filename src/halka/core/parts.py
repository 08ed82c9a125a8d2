"""A base yields targets, a method builds parts for them, an adapter is the parts of one method on one base.

Shape letters used in this project:
    B rows of a batch    T tokens    D hidden width    I, O a linear's widths, in and out    R rank or bottleneck width
    E experts            C choices: a token with one of its experts
    L layers             H key/value heads             P virtual tokens (of a prefix or a prompt)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from halka.core.packed import Packed
from halka.util.errors import HalkaError

# The linear layers of a decoder block, the fused forms that some architectures have, and names for groups of them.
LINEAR_ROLES = (
    *("attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o"),
    *("mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down"),
)
EXPERT_ROLES = ("experts.gate_up", "experts.down")  # of a layer of experts: a weight (E, O, I), one for each expert
WEIGHT_ROLES = (*LINEAR_ROLES, "head", *EXPERT_ROLES)  # those that a weight serves
# Those of virtual tokens.
VIRTUAL_ROLES = ("memory", "memory.encoder", "memory.cross", "memory.gated", "embed")
ROLE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "linear": LINEAR_ROLES,
    "attn.kv": ("attn.k", "attn.v", "attn.qkv"),
    "attn.qv": ("attn.q", "attn.v", "attn.qkv"),
    "attn.linear": tuple(role for role in LINEAR_ROLES if role.startswith("attn.")),
    "mlp.linear": tuple(role for role in LINEAR_ROLES if role.startswith("mlp.")),
    "experts": EXPERT_ROLES,
}


@dataclass(frozen=True)
class Target:
    """One place in a base where a method may act.

    role        the same for every architecture: a linear layer (`attn.q` … `mlp.down`), all experts' weights of a layer
                (`experts.gate_up`, `experts.down`), a sublayer's output before the residual sum (`attn`, `mlp`; with
                `.residual` for parts that read the residual beside it), the output layer (`head`), the module that
                turns tokens into embeddings (`embedding`) and those that stand before the text's own (`embed`), every
                layer's keys and values (`memory`; of a base that reads one text and writes another the decoder's,
                beside `memory.encoder` and `memory.cross`), tokens that layers attend to apart (`memory.gated`), all
                weights (`base`), or any other module, trained whole (`module`)
    name        the module's path in the base; of experts, the path of the parameter that holds their weights
    d_in, d_out the widths of what the part reads and of what it returns
    source      for `attn` and `mlp`: the path of the module that receives the sublayer's input; with `.residual`: of
                the one that receives the residual
    norm        with `.residual`: the base's norm of the residual sum, where it stands there, as in BERT
    shape       for `memory`: (2·L, H, head width), a key and a value per layer; for `memory.gated` (L, D)
    transposed  the weight is stored as (I, O), as GPT-2's Conv1D does
    several     the module is several layers, as some classifiers' heads are: no single weight serves it
    stack       (E,) where each of E experts has a weight of its own, and parts have theirs; () elsewhere
    flat        the module is given its tokens as (B·T, I)
    """

    name: str
    role: str
    module: nn.Module = field(repr=False, compare=False)
    d_in: int
    d_out: int
    layer: int | None = None
    source: str | None = None
    norm: nn.Module | None = field(default=None, repr=False, compare=False)
    shape: tuple[int, ...] = ()
    transposed: bool = False
    several: bool = False
    stack: tuple[int, ...] = ()
    flat: bool = False

    @property
    def key(self) -> str:
        """Unlike the name, never shared: `mlp` and `mlp.down` stand at the same module."""
        return f"{self.name}:{self.role}"

    @property
    def parameter(self) -> str:
        """The base's name for the parameter that holds the weight."""
        return self.name if self.stack else f"{self.name}.weight"

    def weight(self) -> Tensor:
        """The linear layer's weight (O, I) as it computes now; of a packed layer, what its few bits stand for.

        Of experts, all of theirs (E, O, I).
        """
        if isinstance(self.module, Packed):
            return self.module.unpacked()
        weight: Tensor = getattr(self.module, self.parameter.rpartition(".")[2])
        return weight.T if self.transposed else weight


WHOLE = "module:"  # before a path, among a method's roles: that module, whatever it is


def wants(roles: Iterable[str], target: Target) -> bool:
    """Whether a method of these roles acts on the target."""
    return any(_selects(each, target) for each in roles)


def select(method: Method, targets: Iterable[Target], modules: Mapping[str, nn.Module]) -> list[Target]:
    """The targets that a method acts on, of a base with these targets and modules (by path).

    Raises HalkaError for a role or a path that selects none, and for a router; of a group, one role is enough.
    """
    targets, roles = list(targets), method.roles()
    for role in roles:
        path = role.removeprefix(WHOLE)
        if role.startswith(WHOLE) and path in modules:
            if type(modules[path]).__name__.endswith(
                "Router"
            ):  # it returns several tensors, of all rows' tokens as one
                raise HalkaError(
                    f"{method.name}: {path} is a router, which is not trained: tokens go where the base sends them"
                )
            targets.append(module_target(path, modules[path]))
        if not any(_selects(role, target) for target in targets):
            present = ", ".join(sorted({target.role for target in targets}))
            raise HalkaError(
                f"{method.name} wants {path!r}, which this base does not have: it has {present} and the groups "
                f"{', '.join(ROLE_GROUPS)}; a linear layer can also be named by its path"
            )
    return [target for target in targets if wants(roles, target)]


def module_target(path: str, module: nn.Module) -> Target:
    """Any module of a base as a target; its widths are those of a linear layer, else none."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Embedding) or weight is None or weight.dim() != 2:
        return Target(path, "module", module, 0, 0)
    if isinstance(module, nn.Linear):
        return Target(path, "module", module, module.in_features, module.out_features)
    d_in, d_out = weight.shape
    return Target(path, "module", module, d_in, d_out, transposed=True)


def _selects(role: str, target: Target) -> bool:
    if role.startswith(WHOLE):
        return target.role == "module" and target.name == role.removeprefix(WHOLE)
    if target.role in ROLE_GROUPS.get(role, (role,)):
        return True
    return target.role in WEIGHT_ROLES and target.name == role


class Part(nn.Module):
    """What a method puts at one target. A part overrides what applies to it; the rest leaves the base alone.

    At a module it says `before(x)` or `forward(x, y)`. Where it says instead what it computes with (`operands`) and
    what that does (`reads` or `writes`), rows of a mixed batch that use several such parts are done in one go.
    """

    takes_positions: bool = True  # at `memory`: the text's own positions begin behind the virtual tokens

    def before(self, x: Tensor) -> Tensor:
        """At a module: what it shall receive instead of x (B, T, I)."""
        return self.reads(x, *self.operands(x.dtype))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """At a module: what it shall return instead of y (B, T, O), given that it received x (B, T, I).

        At `attn` and `mlp`, x is what the whole sublayer received; with `.residual`, what its output is added to.
        """
        return self.writes(x, y, *self.operands(y.dtype))

    def operands(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What `reads` and `writes` compute with, in `dtype`: vectors (O,) and matrices (R, I).

        At experts, one for each expert: (E, O) and (E, R, I).
        """
        return ()

    def reads(self, x: Tensor, *operands: Tensor) -> Tensor:
        """`before`, given the operands; in a mixed batch a row's each: vectors (B, 1, O), matrices (B, R, I).

        At experts x is (C, I), every token once for each of its experts, and operands are what `core.linear` takes:
        vectors (C, O), matrices `Grouped`.
        """
        return x

    def writes(self, x: Tensor, y: Tensor, *operands: Tensor) -> Tensor:
        """`forward`, given the operands, as in `reads`."""
        return y

    def meet(self, others: Mapping[str, Part]) -> None:
        """Called once, when all parts of the adapter are built, by their targets' paths: some share parameters."""

    def kin(self) -> Hashable:
        """Parts of one class and of equal kin differ in their operands alone; asked where `use` begins."""
        return ()

    def virtual(self) -> Tensor:
        """At `embed`: virtual embeddings (P, D). At `memory`: keys and values (P, 2·L, H, width).

        At `memory.gated`: (P, K, D), what the attention of the last K layers is given.
        """
        raise NotImplementedError

    def gates(self) -> Tensor:
        """At `memory.gated`: what each of the last K layers multiplies its tokens' attention by, (K,)."""
        raise NotImplementedError

    def weights(self, dtype: torch.dtype | None = None) -> Mapping[str, Tensor]:
        """At `base`: the tensors that stand in for the base's parameters, by name, in `dtype` or the base's own."""
        raise NotImplementedError

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The module's weight (O, I) and bias (O,), or the experts' weights (E, O, I), fp32, with this part inside."""
        raise NotImplementedError(f"{type(self).__name__} has no form as a weight")


class Reader(Protocol):
    """What the module of a `memory` target can do: read text as the base does."""

    def vocabulary(self) -> nn.Module:
        """The base's embedding module: token ids (P,) to input embeddings (P, D)."""
        ...

    def read(self, embeddings: Tensor) -> Tensor:
        """The keys and values (N, P, 2·L, H, W) that the base computes for embeddings (N, P, D)."""
        ...


class Method(Protocol):
    """A frozen dataclass whose fields are hyper-parameters; `docs/add-a-method.md` walks through one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]  # in files and on the command line
    paper: ClassVar[str]
    lr: ClassVar[float]  # a learning rate to start from

    def roles(self) -> tuple[str, ...]:
        """The roles, or groups of roles, that it acts on; also paths of single linear layers."""
        ...

    def build(self, target: Target) -> Part | None:
        """The part for one target of those roles, fp32, or None to leave that target alone."""
        ...


def described(method: Method) -> dict[str, Any]:
    """A method as plain data, `{"name": …, "fields": …}`; `halka.methods.build_method` reads it."""
    return {"name": method.name, "fields": {each.name: _plain(getattr(method, each.name)) for each in fields(method)}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return described(value) if is_dataclass(value) else value  # type: ignore[arg-type]


class Edits:
    """How often an optimiser or a load changed trained values, anywhere: what was made from them is made anew."""

    count: ClassVar[int] = 0

    @classmethod
    def happened(cls, *of: Any) -> None:
        cls.count += 1


register_optimizer_step_post_hook(Edits.happened)


def state_of(parameters: Iterable[nn.Parameter]) -> tuple:
    """What is equal while none of these has changed: in place, by other values, by an optimiser or a load.

    Fused optimisers do not count a parameter's version up.
    """
    return (Edits.count, *((parameter.data_ptr(), parameter._version) for parameter in parameters))


class Adapter:
    """The parts that one method built for one base, by their targets' paths."""

    def __init__(self, method: Method, parts: Mapping[str, Part], targets: Mapping[str, Target]):
        self.method = method
        self.parts = dict(parts)
        self.targets = dict(targets)
        self.labels: tuple[str, ...] = ()  # what its head tells apart, by place; the base's own names if empty

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, part in self.parts.items():
            for name, parameter in part.named_parameters():
                yield f"{path}.{name}", parameter

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def __repr__(self) -> str:
        return f"Adapter({self.method}, {self.count():,} trained parameters in {len(self.parts)} parts)"

    def count(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Every part's tensors under `<target path>.<name>`, detached, sharing memory with the parts."""
        state = {}
        for path, part in self.parts.items():
            state.update(part.state_dict(prefix=f"{path}."))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state` in. Raises HalkaError naming every key that is missing, unknown or of another shape."""
        own = self._fitting(state)
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(state[key])
        Edits.happened()

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Let the parameters be the very tensors of `state`; buffers are copied. Raises as `load_state_dict` does."""
        own = self._fitting(state)
        for path, part in self.parts.items():
            for prefix, module in part.named_modules(prefix=path):
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        given = nn.Parameter(state[f"{prefix}.{name}"], requires_grad=parameter.requires_grad)
                        module.register_parameter(name, given)
                for name, _ in module.named_buffers(recurse=False):
                    if f"{prefix}.{name}" in own:
                        own[f"{prefix}.{name}"].copy_(state[f"{prefix}.{name}"])

    def _fitting(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This adapter's own tensors, if those of `state` can take their place. Raises HalkaError otherwise."""
        own = self.state_dict()
        problems = [f"missing {key}" for key in own.keys() - state.keys()]
        problems += [f"unknown {key}" for key in state.keys() - own.keys()]
        problems += [
            f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own.keys() & state.keys()
            if state[key].shape != own[key].shape
        ]
        if problems:
            shown = "; ".join(sorted(problems)[:5])
            raise HalkaError(
                f"the weights do not fit this adapter on this base: {shown} ({len(problems)} problems in all): they "
                "are another method's, or were made for another base"
            )
        return own

    def train(self, mode: bool = True) -> None:
        for part in self.parts.values():
            part.train(mode)
