"""A base yields targets, a method builds parts for them, an adapter is its parts, a route says which row gets which.

Shape letters used in this project:
    B rows of a batch    T tokens    D hidden width    I, O a linear's widths, in and out    R rank or bottleneck width
    L layers             H key/value heads             P virtual tokens (of a prefix or a prompt)
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

# The linear layers of a decoder block, the fused forms that some architectures have, and names for groups of them.
LINEAR_ROLES = (
    *("attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o"),
    *("mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down"),
)
ROLE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "linear": LINEAR_ROLES,
    "attn.kv": ("attn.k", "attn.v", "attn.qkv"),
    "attn.qv": ("attn.q", "attn.v", "attn.qkv"),
    "attn.linear": tuple(role for role in LINEAR_ROLES if role.startswith("attn.")),
    "mlp.linear": tuple(role for role in LINEAR_ROLES if role.startswith("mlp.")),
}


@dataclass(frozen=True)
class Target:
    """One place in a base where a method may act.

    role        the same for every architecture: a linear layer (`attn.q` … `mlp.down`), a sublayer's output before the
                residual sum (`attn`, `mlp`), the output layer (`head`), the input embeddings (`embed`), every layer's
                keys and values (`memory`), or all weights (`base`)
    name        the module's path in the base
    d_in, d_out the widths of what the part reads and of what it returns
    source      for `attn` and `mlp`: the path of the module that receives the sublayer's input; for `base`: of the
                decoder, whose every pass begins there
    shape       for `memory`: (2·L, H, head width), a key and a value per layer
    transposed  the weight is stored as (I, O), as GPT-2's Conv1D does
    """

    name: str
    role: str
    module: nn.Module = field(repr=False, compare=False)
    d_in: int
    d_out: int
    layer: int | None = None
    source: str | None = None
    shape: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def key(self) -> str:
        """Unlike the name, never shared: `mlp` and `mlp.down` stand at the same module."""
        return f"{self.name}:{self.role}"


class Part(nn.Module):
    """What a method puts at one target. A part overrides what applies to it; the rest leaves the base alone."""

    def before(self, x: Tensor) -> Tensor:
        """At a module: what it shall receive instead of x (B, T, I)."""
        return x

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """At a module: what it shall return instead of y (B, T, O), given that it received x (B, T, I).

        At `attn` and `mlp`, x is what the whole sublayer received.
        """
        return y

    def virtual(self) -> Tensor:
        """At `embed`: virtual embeddings (P, D). At `memory`: keys and values (P, 2·L, H, width)."""
        raise NotImplementedError

    def weights(self) -> Mapping[str, Tensor]:
        """At `base`: the tensors that stand in for the base's parameters, by name, in the base's precision."""
        raise NotImplementedError

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The module's weight (O, I) and bias (O,), fp32, with this part inside them."""
        raise NotImplementedError(f"{type(self).__name__} has no form as a weight")


class Method(Protocol):
    """A frozen dataclass whose fields are hyper-parameters; `docs/add-a-method.md` walks through one."""

    name: ClassVar[str]  # in files and on the command line
    paper: ClassVar[str]
    lr: ClassVar[float]  # a learning rate to start from

    def roles(self) -> tuple[str, ...]:
        """The roles, or groups of roles, that it acts on."""
        ...

    def build(self, target: Target) -> Part | None:
        """The part for one target of those roles, fp32, or None to leave that target alone."""
        ...


class Memory(Protocol):
    """Where keys and values join the base's own (`models/memory.py`); the core only says whose."""

    def enter(self, parts: Sequence[Part | None], bare: Callable[[], AbstractContextManager[None]]) -> None:
        """From now on row i, or every row if there is one part, attends to what parts[i] holds.

        Within `with bare():` the base runs without adapters.
        """
        ...

    def leave(self) -> None: ...

    def install(self) -> None: ...

    def uninstall(self) -> None: ...


class Adapter:
    """The parts that one method built for one base, by their targets' paths."""

    def __init__(self, method: Method, parts: Mapping[str, Part], targets: Mapping[str, Target]):
        self.method = method
        self.parts = dict(parts)
        self.targets = dict(targets)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, part in self.parts.items():
            for name, parameter in part.named_parameters():
                yield f"{path}.{name}", parameter

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

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
        """Copy `state` in. Raises ValueError naming every key that is missing, unknown or of another shape."""
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
            raise ValueError(f"the weights do not fit this adapter: {shown} ({len(problems)} problems in all)")
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(state[key])

    def train(self, mode: bool = True) -> None:
        for part in self.parts.values():
            part.train(mode)


@dataclass(frozen=True)
class Use:
    """What one part does at one target, and the rows it serves; None serves every row."""

    act: Callable[..., Tensor]
    rows: Tensor | None


@dataclass(frozen=True)
class Route:
    """Which adapter each row of a batch uses, resolved to what happens at each module."""

    names: tuple[str | None, ...]
    before: Mapping[str, list[Use]]
    after: Mapping[str, list[Use]]
    memory: tuple[Part | None, ...] = ()
    full: Part | None = None

    def edit(self, uses: Iterable[Use], *tensors: Tensor) -> Tensor:
        """The last of `tensors` as `uses` change it, each on its own rows."""
        result = tensors[-1]
        for use in uses:
            if use.rows is None:
                result = use.act(*tensors[:-1], result)
            else:
                times = repeats(result.shape[0], len(self.names))
                rows = (use.rows[:, None] * times + torch.arange(times)).flatten().to(result.device)
                mine = [tensor[rows] for tensor in (*tensors[:-1], result)]
                result = result.index_copy(0, rows, use.act(*mine))
        return result


def repeats(batch: int, named: int) -> int:
    """How many rows of a batch each row that `use` named has become: beam search repeats each one in place.

    Raises ValueError if the batch is not a multiple of the rows that were named.
    """
    times, rest = divmod(batch, named)
    if rest or not times:
        raise ValueError(
            f"the batch has {batch} rows, but `use` named an adapter for each of {named}: "
            "give one name a row, or a single name for all rows"
        )
    return times


class AdaptedModel:
    """A frozen base with its named adapters. `base` stays a transformers model that computes as it always did.

    Which adapter acts is said by `with model.use(...)`, for whole forward and backward passes; the lock makes threads
    take turns, so that none can see another's rows.
    """

    def __init__(self, base: nn.Module, targets: Iterable[Target], memory: Memory, tokenizer: Any = None):
        self.base = base
        self.tokenizer = tokenizer
        self.targets = tuple(targets)
        self.adapters: dict[str, Adapter] = {}
        self.merged: str | None = None
        self._memory = memory
        self._by_path = dict(base.named_modules())
        self._lock = threading.RLock()
        self._route: Route | None = None
        self._inputs: dict[str, Tensor] = {}  # what a sublayer received, from its source to its output
        self._hooks: dict[str, list[torch.utils.hooks.RemovableHandle]] = {}
        self._own: dict[tuple[nn.Module, str], nn.Parameter] | None = None
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    # ── adapters ────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, name: str, method: Method, *, seed: int = 0) -> Adapter:
        """Build `method`'s parts for this base, initialised from `seed`, and keep them under `name`.

        Raises ValueError for a name in use or a role that this base does not have.
        """
        if not name or not isinstance(name, str):
            raise ValueError(f"an adapter's name is a non-empty string, not {name!r}")
        if name in self.adapters:
            raise ValueError(f"there is an adapter {name!r} already: remove it first, or choose another name")
        with self._lock, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts, targets = {}, {}
            device = next(self.base.parameters()).device
            for target in self._wanted(method):
                part = method.build(target)
                if part is None:
                    continue
                if target.name in parts:
                    raise ValueError(f"{method.name} builds two parts at {target.name}: choose one of its roles")
                part.to(device)
                parts[target.name], targets[target.name] = part.eval(), target
            if not parts:
                raise ValueError(f"{method.name} built no part for this base: widen its targets")
            self.adapters[name] = adapter = Adapter(method, parts, targets)
            self._install()
        return adapter

    def remove(self, name: str) -> None:
        """Forget an adapter. The base is as if it had never been there."""
        self._adapter(name)
        with self._lock:
            if self._route is not None and name in self._route.names:
                raise ValueError(f"adapter {name!r} is in use: leave its `with model.use(...)` first")
            if self.merged == name:
                self.unmerge()
            del self.adapters[name]
            self._install()

    def parameters(self, name: str) -> list[nn.Parameter]:
        """That adapter's trainable parameters, and no others."""
        return self._adapter(name).parameters()

    # ── routing ─────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def use(self, adapters: str | Sequence[str | None] | None) -> Iterator[AdaptedModel]:
        """Within the block the base computes with one adapter, one per row (None for the bare base), or none.

        Holds the model's lock: other threads wait. Blocks nest; the inner one counts.
        """
        if adapters is None or isinstance(adapters, str):
            names: tuple[str | None, ...] = (adapters,)
        else:
            names = tuple(adapters)
        with self._lock:
            outer, inner = self._route, self._resolve(names)
            self._enter(inner)
            try:
                yield self
            finally:
                self._enter(outer)

    @property
    def active(self) -> tuple[str | None, ...]:
        """The names that the innermost `use` gave, one per row or one for all."""
        return self._route.names if self._route else (None,)

    # ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────

    def merge(self, name: str) -> None:
        """Let weights with the adapter inside stand in for the base's own until `unmerge`: no cost per token.

        Products are computed in fp32 and rounded once to the base's precision. The base's own tensors are set aside
        untouched, so that `unmerge` has every bit back.
        """
        adapter = self._adapter(name)
        with self._lock, torch.no_grad():
            if self._route is not None or self.merged is not None:
                raise ValueError("merging needs an idle base: leave `use`, or `unmerge` what is merged")
            weights: dict[str, Tensor] = {}
            for path, part in adapter.parts.items():
                target = adapter.targets[path]
                if target.role not in (*LINEAR_ROLES, "attn", "mlp", "head"):
                    raise ValueError(f"{adapter.method.name} acts on {target.role}, which is no weight: not mergeable")
                weight, bias = (getattr(target.module, key, None) for key in ("weight", "bias"))
                assert weight is not None
                as_linear = weight.T if target.transposed else weight
                try:
                    new, new_bias = part.merged(as_linear.float(), None if bias is None else bias.float())
                except NotImplementedError as error:
                    raise ValueError(f"{adapter.method.name} cannot be merged: {error}") from None
                if new_bias is not None:
                    if bias is None:
                        raise ValueError(f"{adapter.method.name} adds a bias to {path}, which has none: not mergeable")
                    weights[f"{path}.bias"] = new_bias.to(bias.dtype)
                new = new.T if target.transposed else new
                weights[f"{path}.weight"] = new.to(weight.dtype).contiguous()
            self._stand_in(weights)
            self.merged = name

    def unmerge(self) -> None:
        """Put the base's own weights back, bit for bit."""
        with self._lock:
            self._restore()
            self.merged = None

    # ── how it acts ─────────────────────────────────────────────────────────────────────────────────────────────

    def _adapter(self, name: str) -> Adapter:
        if name not in self.adapters:
            known = ", ".join(map(repr, self.adapters)) or "none yet"
            raise ValueError(f"no adapter {name!r} here (there are: {known}): `add` or `load` it first")
        return self.adapters[name]

    def _wanted(self, method: Method) -> list[Target]:
        """The targets of the method's roles. A named role must exist; of a group, at least one."""
        present = {target.role for target in self.targets}
        wanted: set[str] = set()
        for role in method.roles():
            found = present.intersection(ROLE_GROUPS.get(role, (role,)))
            if not found:
                raise ValueError(
                    f"{method.name} wants {role!r}, which this base does not have: it has {', '.join(sorted(present))} "
                    f"and the groups {', '.join(ROLE_GROUPS)}"
                )
            wanted |= found
        return [target for target in self.targets if target.role in wanted]

    def _resolve(self, names: tuple[str | None, ...]) -> Route | None:
        adapters = {name: self._adapter(name) for name in names if name is not None}
        if not names:
            raise ValueError("`use` was given no rows: name an adapter, or None for the bare base")
        if not adapters:
            return None
        if self.merged is not None:
            raise ValueError(f"adapter {self.merged!r} is merged into the base: `unmerge` before using others")
        alone = len(set(names)) == 1
        before: dict[str, list[Use]] = defaultdict(list)
        after: dict[str, list[Use]] = defaultdict(list)
        memory: dict[str, Part] = {}
        full = None
        for name, adapter in adapters.items():
            rows = None if alone else torch.tensor([i for i, each in enumerate(names) if each == name])
            for path, part in adapter.parts.items():
                target = adapter.targets[path]
                if target.role == "base":
                    if not alone:
                        raise ValueError(f"{name!r} is a full copy of the weights: it cannot share a batch with others")
                    full = part
                elif target.role in ("memory", "embed"):
                    memory[name] = part
                else:
                    if type(part).before is not Part.before:
                        before[target.key].append(Use(part.before, rows))
                    if type(part).forward is not Part.forward:
                        after[target.key].append(Use(part, rows))
        a_row = () if not memory else tuple(memory.values()) if alone else tuple(map(memory.get, names))  # type: ignore[arg-type]
        return Route(names, dict(before), dict(after), a_row, full)

    def _enter(self, route: Route | None) -> None:
        if self._route is not None:
            self._memory.leave()
            if self._route.full is not None:
                self._restore()
        self._route = route
        self._inputs.clear()
        if route is not None:
            if route.full is not None:
                self._stand_in(route.full.weights())
            self._memory.enter(route.memory, self._bare)

    @contextmanager
    def _bare(self) -> Iterator[None]:
        route, self._route = self._route, None
        try:
            yield
        finally:
            self._route = route

    def _install(self) -> None:
        """Hooks exactly where some adapter has a part, so that a base without adapters runs without hooks."""
        wanted = {target.key: target for adapter in self.adapters.values() for target in adapter.targets.values()}
        for key in self._hooks.keys() - wanted.keys():
            for handle in self._hooks.pop(key):
                handle.remove()
        for key, target in wanted.items():
            if key not in self._hooks:
                self._hooks[key] = self._hook(key, target)
        roles = {target.role for target in wanted.values()}
        (self._memory.install if roles & {"memory", "embed"} else self._memory.uninstall)()

    def _hook(self, key: str, target: Target) -> list[torch.utils.hooks.RemovableHandle]:
        if target.role in ("memory", "embed"):
            return []

        def before(module: nn.Module, args: tuple) -> tuple | None:
            if self._route is None or key not in self._route.before:
                return None
            return (self._route.edit(self._route.before[key], args[0]), *args[1:])

        def after(module: nn.Module, args: tuple, y: Tensor) -> Tensor | None:
            if self._route is None or key not in self._route.after:
                return None
            x = args[0] if target.source is None else self._inputs.pop(key)
            return self._route.edit(self._route.after[key], x, y)

        def remember(module: nn.Module, args: tuple) -> None:
            if self._route is not None and key in self._route.after:
                self._inputs[key] = args[0]

        def refresh(module: nn.Module, args: tuple) -> None:
            # fp32 masters are cast afresh, inside the graph, at every forward pass that will be differentiated
            if self._route is not None and self._route.full is not None and torch.is_grad_enabled():
                self._stand_in(self._route.full.weights())

        source = None if target.source is None else self._by_path[target.source]
        if target.role == "base":
            assert source is not None
            return [source.register_forward_pre_hook(refresh)]
        if source is None:
            return [
                target.module.register_forward_pre_hook(before),
                target.module.register_forward_hook(after),
            ]
        return [source.register_forward_pre_hook(remember), target.module.register_forward_hook(after)]

    # ── weights that stand in for the base's own ────────────────────────────────────────────────────────────────

    def _stand_in(self, weights: Mapping[str, Tensor]) -> None:
        """Set the base's parameters aside and compute with `weights` in their places, tied ones included."""
        if self._own is None:
            self._own = {}
        names = {id(parameter): name for name, parameter in self._named_own()}
        for module in self._by_path.values():
            for key, parameter in list(module._parameters.items()):
                own = self._own.get((module, key), parameter)
                name = names.get(id(own))
                if name in weights:
                    assert own is not None
                    self._own[(module, key)] = own
                    module._parameters[key] = weights[name]  # type: ignore[assignment]

    def _named_own(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The base's own parameters by the first of their names, wherever they are just now."""
        seen: set[int] = set()
        for path, module in self._by_path.items():
            for key, parameter in module._parameters.items():
                own = (self._own or {}).get((module, key), parameter)
                if own is not None and id(own) not in seen:
                    seen.add(id(own))
                    yield f"{path}.{key}" if path else key, own

    def _restore(self) -> None:
        for (module, key), parameter in (self._own or {}).items():
            module._parameters[key] = parameter
        self._own = None
