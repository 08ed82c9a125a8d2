"""`AdaptedModel`: a frozen base, its named adapters, and which of them acts just now."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from halka.core.blank import without_starts
from halka.core.hooks import Hooks
from halka.core.joint import beside, methods_of
from halka.core.merged import merged_weights
from halka.core.modules import Modules
from halka.core.packed import count_of, form_of
from halka.core.parts import VIRTUAL_ROLES, Adapter, Method, Part, Target, select, state_of, wants
from halka.core.routing import Memory, Route, repeats, resolve
from halka.core.turns import Flow, Turns
from halka.core.weights import StandIns
from halka.util.errors import HalkaError, UnknownAdapterError


class Pool(Protocol):
    """Where adapters come from that are not in the model yet (`halka.storage.pool`)."""

    def ready(self, names: Iterable[str]) -> None:
        """Let these be in the model, or raise HalkaError. Called while the model's lock is held."""
        ...

    def fits(self, names: Iterable[str]) -> bool:
        """Whether these can be in the model at once."""
        ...

    def removed(self, name: str) -> None:
        """The adapter of that name has left the model."""
        ...


@runtime_checkable
class _Builds(Protocol):
    """What `add` needs of a method."""

    name: ClassVar[str]

    def roles(self) -> tuple[str, ...]: ...

    def build(self, target: Target) -> Part | None: ...


class Use(AbstractContextManager["AdaptedModel"]):
    """The block of `with model.use(...)`. Warns if it is dropped without having been entered."""

    def __init__(self, block: AbstractContextManager[AdaptedModel], adapters: str | Sequence[str | None] | None):
        self._block, self._adapters, self._entered = block, adapters, False

    def __enter__(self) -> AdaptedModel:
        self._entered = True
        return self._block.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._block.__exit__(kind, error, trace)

    def __del__(self) -> None:
        if not self._entered:
            warnings.warn(
                f"`model.use({self._adapters!r})` did nothing, because no `with` entered it: write "
                f"`with model.use({self._adapters!r}):` around the calls that shall use it",
                stacklevel=2,
            )


class AdaptedModel:
    """A frozen base with its named adapters. `base` stays a transformers model that computes as it always did.

    Which adapter acts is said by `with model.use(...)`, for whole forward and backward passes. Threads take turns:
    `use`, `add`, `remove` and `merge` wait for other threads' blocks to end, and a pass of the base outside of any
    block raises RuntimeError if it meets another thread's. So none computes with another's adapters.
    """

    def __init__(
        self,
        base: nn.Module,
        targets: Iterable[Target],
        memory: Memory,
        tokenizer: Any = None,
        experts: Callable[[], AbstractContextManager[None]] = nullcontext,
        head: Method | None = None,
        labels: Sequence[str] = (),
    ):
        """experts: within its block the base's experts take `ExpertEdit`s, by the last word of their roles."""
        self.base = base
        self.tokenizer = tokenizer
        self.head = head  # what every new adapter has beside its own parts: a classifier's head, trained whole
        self.labels = tuple(labels)  # what the base's head tells apart, by place
        self.targets = tuple(targets)
        self.adapters: dict[str, Adapter] = {}
        self.merged: str | None = None
        self.pool: Pool | None = None  # where adapters come from that are not here
        self._memory = memory
        self._experts = experts
        self._entered = ExitStack()  # that block, while a part acts on experts
        self._by_path = dict(base.named_modules())
        self._turns = Turns(base, memory.stacks, self._begin, memory.end, self._outside)
        self.lock = self._turns.lock  # held by whoever uses the adapters or changes them
        self._routes: dict[str, tuple[Adapter, Route]] = {}  # of adapters that were used for whole batches
        self._route: Route | None = None
        self._outer: list[Route | None] = []  # those of the blocks around the innermost
        self._cast: tuple | None = None  # the state of the masters whose cast stands in
        self._precision: torch.dtype | None = None  # what the base computes in, where that is not its own
        self._hooks = Hooks(self._by_path, self._acting)
        self._stand_ins = StandIns(base)
        self._device = self._base_device()  # where the parts were last put
        self._warned = False  # that the bare base generates
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    def __repr__(self) -> str:
        total = count_of(self.base)
        parameter = next(self.base.parameters())
        dtype = form_of(self.base) or str(parameter.dtype).removeprefix("torch.")
        lines = [f"AdaptedModel of {type(self.base).__name__}: {total:,} parameters, {dtype} on {parameter.device}"]
        used = self.in_use
        for name, adapter in self.adapters.items():
            state = ", in use" if name in used else ", merged" if name == self.merged else ""
            share = f"{adapter.count():,} trained parameters ({adapter.count() / total:.2%})"
            lines.append(f"  {name}: {adapter.method}, {share}{state}")
        return "\n".join(lines if self.adapters else [*lines, "  no adapters yet: model.add(name, method)"])

    # ── adapters ────────────────────────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        name: str,
        method: Method,
        *,
        seed: int = 0,
        state: Mapping[str, Tensor] | None = None,
        labels: Sequence[str] = (),
    ) -> Adapter:
        """Build `method`'s parts for this base, initialised from `seed`, and keep them under `name`.

        Where the base has a head to be trained, a copy of it is a part too. `labels` names what it tells apart, if
        these are not the base's own labels. With `state`, fp32 tensors as `Adapter.state_dict` names them, the parts
        hold these, where they can the very tensors, and there is no more than them. Raises HalkaError for a name that
        is taken, a role that this base does not have, more labels than it has, a state that does not fit, and for
        what is no method, such as a configuration of peft's.
        """
        if isinstance(method, type) or not isinstance(method, _Builds):
            kind = f"the class {method.__name__}" if isinstance(method, type) else f"a {type(method).__name__}"
            raise HalkaError(
                f"{name!r} needs a method such as halka.LoRA(rank=16), not {kind}; "
                "halka.method_from_peft(config, model) translates peft's configurations"
            )
        if not name or not isinstance(name, str):
            raise HalkaError(f"an adapter's name is a non-empty string, not {name!r}")
        wanted = select(method, self.targets, self._by_path)
        if self.head is not None and state is None:
            method = self._with_head(method, wanted)
            wanted = select(method, self.targets, self._by_path)
        reading = any(target.role in VIRTUAL_ROLES for target in wanted)  # by `models.attention`
        with (
            self.own_weights(),
            self._turns.take() if reading else nullcontext(),
            torch.inference_mode(False),
            torch.random.fork_rng(devices=[]),
        ):
            if name in self.adapters:
                raise HalkaError(f"there is an adapter {name!r} already: remove it first, or choose another name")
            torch.default_generator.manual_seed(seed)  # parts begin on the CPU; a GPU's own state is left alone
            parts, targets = {}, {}
            self._put_parts()
            for target in wanted:
                with nullcontext() if state is None else without_starts():
                    part = method.build(target)
                if part is None:
                    continue
                if target.several and type(part).forward is Part.forward:
                    raise HalkaError(
                        f"{method.name} acts on single layers, and {target.name} of this base has several: train it "
                        "whole, with halka.Modules"
                    )
                path = target.key if target.name in parts else target.name
                part.to(self._device_of(target))
                parts[path], targets[path] = part.eval(), target
            if len(labels) > len(self.labels):
                raise HalkaError(
                    f"{name!r} is to predict {len(labels)} labels, and this base has {len(self.labels)}: load the base "
                    "with as many, `halka.load_base(name, kind=…, labels=[…])`"
                )
            if not parts:
                raise HalkaError(f"{method.name} built no part for this base: widen its targets")
            for part in parts.values():
                part.meet(parts)
            adapter = Adapter(method, parts, targets)
            adapter.labels = tuple(labels)
            if state is not None:
                if other := [key for key, tensor in state.items() if tensor.dtype != torch.float32]:
                    raise HalkaError(f"the state holds {state[other[0]].dtype} in {other[0]}: parts hold fp32")
                own = adapter.state_dict()
                adapter.take(
                    {key: tensor.to(own[key].device) if key in own else tensor for key, tensor in state.items()}
                )
            self.adapters[name] = adapter
            self._hooks.add(adapter.targets.values())
            self._turns.watch(True)
        return adapter

    def _with_head(self, method: Method, wanted: Sequence[Target]) -> Method:
        """The method with the head beside it, unless it trains that itself.

        Raises HalkaError for one that would change the base's own head, which is no part of the adapter's folder.
        """
        assert self.head is not None
        own = {target.name for target in select(self.head, self.targets, self._by_path)}
        acts = [target for target in wanted if target.name in own]
        whole = [each for each in methods_of(method) if isinstance(each, Modules)]
        if other := [each for each in acts if not any(wants(one.roles(), each) for one in whole)]:
            raise HalkaError(
                f"{method.name} would act on {other[0].name}, this base's head, which every adapter copies and trains "
                "whole: leave it out of the targets"
            )
        return method if acts or any(target.role == "base" for target in wanted) else beside(method, self.head)

    def remove(self, name: str) -> None:
        """Forget an adapter. The base is as if it had never been there. Raises HalkaError while it is in use."""
        with self.lock:
            self._here(name)
            if name in self.in_use:
                raise HalkaError(f"adapter {name!r} is in use: leave its `with model.use(...)` first")
            if merged := self.merged == name:
                self.unmerge()
            adapter = self.adapters.pop(name)
            self._routes.pop(name, None)
            self._hooks.remove(adapter.targets.values())
            self._turns.watch(bool(self.adapters) or merged)  # a pass may have begun with what was merged
            if self.pool is not None:
                self.pool.removed(name)

    def adapter(self, name: str) -> Adapter:
        """The adapter of that name. Raises HalkaError that lists the names there are."""
        if name in self.adapters or self.pool is None:
            return self._here(name)
        with self.lock:
            self.pool.ready([name])
            return self._here(name)

    def labels_of(self, name: str | None) -> tuple[str, ...]:
        """What adapter `name` tells apart, by place: its own labels, else the base's, which are the bare base's."""
        return (() if name is None else self.adapter(name).labels) or self.labels

    def parameters(self, name: str) -> list[nn.Parameter]:
        """That adapter's trainable parameters, and no others."""
        return self.adapter(name).parameters()

    # ── routing ─────────────────────────────────────────────────────────────────────────────────────────────────

    def use(self, adapters: str | Sequence[str | None] | None) -> Use:
        """`with model.use(...):` the base computes with one adapter, one per row (None for the bare base), or none.

        While an adapter is merged, no other can be used. Raises UnknownAdapterError for a name that the model does not
        have, and in the forward pass HalkaError for a batch whose rows are no multiple of the names.
        Other threads' blocks wait for this one to end, and forward passes that they start outside of a block raise
        RuntimeError: a thread that is started within the block, as for a streamer, must hold the block itself.
        Coroutines of one thread must not await within a block. Blocks nest; the inner one counts.
        If you change an adapter's values by hand while a mixed batch decodes, the change counts from the next prompt.
        """
        return Use(self._using(adapters), adapters)

    @contextmanager
    def _using(self, adapters: str | Sequence[str | None] | None) -> Iterator[AdaptedModel]:
        if adapters is None or isinstance(adapters, str):
            names: tuple[str | None, ...] = (adapters,)
        else:
            names = tuple(adapters)
        with self._turns.take():
            if self.pool is not None:
                self.pool.ready(name for name in names if name is not None)
            self._put_parts()
            inner = self._resolve(names)
            self._outer.append(self._route)
            try:
                self._enter(inner)
                yield self
            finally:
                mixed_up = self._route is not inner
                self._enter(self._outer.pop())
                if inner is not None:
                    inner.forget()
                if mixed_up:
                    raise RuntimeError(
                        f"the block of `use({adapters!r})` ended while another's, begun within it, went on: what was "
                        "computed meanwhile used the other's adapters. Leave blocks in the order of their begin: no "
                        "generator may hold one open between its items"
                    )

    def as_now(self) -> AbstractContextManager[None]:
        """A block for later, in backward, in which layers are computed once more with the adapters of now."""
        return self._as_then(self.active, self._turns.owner)

    @contextmanager
    def _as_then(self, names: tuple[str | None, ...], owner: Flow | None) -> Iterator[None]:
        if not self._turns.waits_for_backward(owner):
            with self.use(names):
                yield
        elif self.active == names:
            yield
        else:
            raise RuntimeError(
                f"backward computes layers once more that were computed with {names}, but runs within "
                f"`use({self.active})`: let the block end before backward, or begin after it"
            )

    @property
    def in_use(self) -> set[str]:
        """The names of all adapters that a block, inner or outer, uses now."""
        routes = (route for route in (*self._outer, self._route) if route is not None)
        return {name for route in routes for name in route.names if name is not None}

    @property
    def active(self) -> tuple[str | None, ...]:
        """The names that the innermost `use` gave, one per row or one for all."""
        return self._route.names if self._route else (None,)

    # ── moving ──────────────────────────────────────────────────────────────────────────────────────────────────

    def to(self, device_or_dtype: str | torch.device | torch.dtype) -> AdaptedModel:
        """Move base and adapters to a device, or cast the base to a dtype; adapters stay fp32. Returns the model.

        Raises HalkaError within `use`.
        """
        with self._turns.take():
            if self._outer:
                raise HalkaError("moving needs an idle base: leave `use` first")
            merged = self.merged
            self.unmerge()
            base: Any = self.base
            base.to(device_or_dtype)
            self._put_parts()
            if merged is not None:
                self.merge(merged)
        return self

    def _put_parts(self) -> None:
        """Put every part on its target's device, if the base was moved."""
        device = self._base_device()
        if device != self._device:
            for adapter in self.adapters.values():
                for path, part in adapter.parts.items():
                    part.to(self._device_of(adapter.targets[path]))
            self._device = device

    def _base_device(self) -> torch.device:
        return next(self.base.parameters()).device

    def _device_of(self, target: Target) -> torch.device:
        """The device of a target's module; of virtual tokens, which have none, that of the base's first parameter."""
        module: object = target.module
        tensors = (*module.parameters(), *module.buffers()) if isinstance(module, nn.Module) else ()
        return tensors[0].device if tensors else self._base_device()

    # ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────

    def merge(self, name: str) -> None:
        """Let weights with the adapter inside stand in for the base's own until `unmerge`: no cost per token.

        Products are computed in fp32 and rounded once to the base's precision. The base's own tensors are set aside
        untouched, so that `unmerge` has every bit back.
        """
        with self._turns.take():
            adapter = self.adapter(name)
            if self._outer or self.merged is not None:
                raise HalkaError("merging needs an idle base: leave `use`, or `unmerge` what is merged")
            self._stand_ins.put(merged_weights(adapter), tied=False)
            self.merged = name

    def unmerge(self) -> None:
        """Put the base's own weights back, bit for bit. Raises HalkaError within `use`."""
        with self._turns.take():
            if self.merged is not None:
                if self._outer:
                    raise HalkaError(f"the merged adapter {self.merged!r} is in use: leave `use` first")
                self._stand_ins.restore()
                self.merged = None

    @contextmanager
    def in_precision(self, dtype: torch.dtype, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Within the block the base, as it is now, computes in `dtype`: what it would say if it rounded less.

        Copies of its weights in that precision stand in, or of these `weights` by its state's names. Raises HalkaError
        within `use`.
        """
        with self._turns.take():
            if self._outer:
                raise HalkaError("another precision needs an idle base: leave `use` first")
            outer, self._precision = self._precision, dtype
            try:
                with self._stand_ins.cast(dtype, weights or {}):
                    yield
            finally:
                self._precision = outer

    # ── how it acts ─────────────────────────────────────────────────────────────────────────────────────────────

    def _outside(self, arguments: dict[str, Any]) -> None:
        """Warn, once, if the base generates outside of any `use` although it has adapters."""
        cached = any(arguments.get(name) is not None for name in ("cache", "past_key_values"))
        generates = cached and arguments.get("use_cache") is True
        if self._warned or not generates or not self.adapters or self.merged is not None:
            return
        self._warned = True
        name = next(iter(self.adapters))
        warnings.warn(
            f"the bare base generates here, without any of the model's adapters ({', '.join(self.adapters)}): call "
            f"`base.generate` inside `with model.use({name!r}):`, or inside `with model.use(None):` if the bare base "
            "is meant",
            stacklevel=2,
        )

    def _here(self, name: str) -> Adapter:
        found = self.adapters.get(name)
        if found is None:
            known = ", ".join(map(repr, [*self.adapters])) or "none yet"
            raise UnknownAdapterError(f"no adapter {name!r} here (there are: {known}): `add` or `load` it first")
        return found

    def _resolve(self, names: tuple[str | None, ...]) -> Route | None:
        adapters = {name: self.adapter(name) for name in names if name is not None}
        if not names:
            raise HalkaError("`use` names no rows: name an adapter, or None for the bare base")
        if self.merged is not None:
            if set(names) != {self.merged}:
                raise HalkaError(
                    f"adapter {self.merged!r} is merged into the base: `unmerge` before using others or the bare base"
                )
            return Route(names, {}, {})
        if len(names) > 1 or not adapters:
            return None if names == (None,) else resolve(names, adapters)
        ((name, adapter),) = adapters.items()
        of, route = self._routes.get(name, (None, None))
        if route is None or of is not adapter:
            route = resolve(names, adapters)
            self._routes[name] = adapter, route
        return route

    def _enter(self, route: Route | None) -> None:
        if self._route is not None:
            self._memory.leave()
            self._entered.close()
            if self._route.full is not None:
                self._stand_ins.restore()
        self._route, self._cast = route, None
        self._hooks.forget()
        if route is not None:
            if route.full is not None:
                self._put_full(route.full)
            self._memory.enter(route.memory, self._bare)
            if route.experts:
                self._entered.enter_context(self._experts())

    def _begin(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """What a pass of that stack receives. Refuses a batch whose rows are not those that `use` named."""
        route = self._route
        if route is None:
            return None
        given = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        tokens = next((each for each in given if each is not None), None)
        if len(route.names) > 1 and tokens is not None:
            repeats(tokens.shape[0], len(route.names))
        if route.full is not None:
            self._put_full(route.full)
        return self._memory.begin(stack, args, kwargs)

    def _put_full(self, part: Part) -> None:
        """fp32 masters are cast afresh at every pass that will be differentiated, and whenever they have changed."""
        state = state_of(part.parameters())
        if torch.is_grad_enabled() or state != self._cast:
            self._stand_ins.put(part.weights(self._precision))
        self._cast = None if torch.is_grad_enabled() else state

    @contextmanager
    def own_weights(self) -> Iterator[None]:
        """Within the block the base has its own weights and no adapter, whatever is merged or in use."""
        with (
            self.lock,
            nullcontext() if self.merged is None else self._turns.take(),
            self._bare(),
            self._stand_ins.aside(),
        ):
            yield

    @contextmanager
    def _bare(self) -> Iterator[None]:
        self._outer.append(self._route)
        self._route = None
        try:
            with self._memory.aside():
                yield
        finally:
            self._route = self._outer.pop()

    def _acting(self) -> Route | None:
        """The route of this pass. Raises RuntimeError if it is another thread's, whose block has overtaken the pass."""
        route = self._route
        if route is not None:
            self._turns.check()
        return route
