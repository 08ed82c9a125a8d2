"""`AdaptedModel`: a frozen base, its named adapters, and which of them acts just now."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from halka.core.adapter import Adapter
from halka.core.interfaces import Kept, Pool, VirtualAttention
from halka.core.parts import Method
from halka.core.passes import Passes, computed_again
from halka.core.routing import AdapterNames, Route, RowNames, resolve
from halka.core.targets import LINEAR_ROLES, VIRTUAL_ROLES, Target, select
from halka.core.weights import BaseWeights
from halka.util.cached import Changes
from halka.util.errors import HalkaError, UnknownAdapterError
from halka.util.initial import skip_init
from halka.util.kinds import check_own_labels
from halka.util.must_enter import MustEnter
from halka.util.quantised import parameter_count, quantization_of
from halka.util.seeds import seeded
from halka.util.transfer import move


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
        attention: VirtualAttention,
        tokenizer: Any = None,
        experts: Callable[[], AbstractContextManager[None]] = nullcontext,
        head: Callable[[Method, Sequence[Target]], Method] | None = None,
        labels: Sequence[str] = (),
        outside: Callable[[AdaptedModel, Mapping[str, Any]], None] = lambda model, arguments: None,
    ):
        """experts: within its block the base's experts take `ExpertEdits`, by the last word of their roles.
        outside: called with the model and the arguments of a pass in a thread that is in no block."""
        self.base = base
        self.tokenizer = tokenizer
        self.head = head  # joins every new adapter's method with a classifier's head, trained whole
        self.labels = tuple(labels)  # what the base's head tells apart, by place
        self.targets = tuple(targets)
        self.adapters: dict[str, Adapter] = {}
        self.pool: Pool | None = None  # where adapters come from that are not here
        self.kept: Kept | None = None  # until the base is moved
        self._passes = Passes(base, attention, experts, partial(outside, self))
        self._weights = BaseWeights(self._passes, self.adapter)
        self.lock = self._passes.turns.lock  # held by whoever uses the adapters or changes them
        self._latest: Route | None = None  # of the adapter that was last used for whole batches, as in training
        self._device = next(base.parameters()).device  # where the parts were last put
        for parameter in base.parameters():
            parameter.requires_grad_(False)

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
        self._check_new(name, method, labels)
        modules = dict(self.base.named_modules())  # pyright: ignore[reportUnknownArgumentType]
        wanted = select(method.name, method.roles(), self.targets, modules)
        if self.head is not None and state is None:
            method = self.head(method, wanted)
            wanted = select(method.name, method.roles(), self.targets, modules)
        roles = {target.role for target in wanted}  # at linear layers a state needs no weights
        turn = self._passes.turns.take() if roles & {*VIRTUAL_ROLES} else nullcontext()  # `models.attention` reads them
        own = nullcontext() if state is not None and roles <= {*LINEAR_ROLES, "attn", "mlp"} else self.own_weights()
        with self.lock, own, turn, torch.inference_mode(False), seeded(seed), torch.device("cpu"):
            if name in self.adapters:
                raise HalkaError(f"there is an adapter {name!r} already: remove it first, or choose another name")
            self._put_parts()
            with nullcontext() if state is None else skip_init():
                adapter = Adapter.build(method, wanted, self._device)
            adapter.labels = tuple(labels)
            if state is not None:
                adapter.load_state_dict(state, assign=True)
            Changes.watch(adapter.parameters())
            self.adapters[name] = adapter
            self._passes.add(adapter)
            self._passes.turns.watch(True)
        return adapter

    def use(self, adapters: AdapterNames | Route) -> AbstractContextManager[AdaptedModel]:
        """`with model.use(...):` the base computes with one adapter, one per row (None for the bare base), or none.

        While an adapter is merged, no other can be used. Raises UnknownAdapterError for a name that the model does not
        have, and in the forward pass HalkaError for a batch whose rows are no multiple of the names.
        Other threads' blocks wait for this one to end, and forward passes that they start outside of a block raise
        RuntimeError: a thread that is started within the block, as for a streamer, must hold the block itself.
        Coroutines of one thread must not await within a block. Blocks nest; the inner one counts.
        A `Route` that was resolved before, for these adapters, may take the place of names.
        """
        return MustEnter(
            self._using(adapters),
            lambda: (
                f"`model.use({adapters!r})` did nothing, because no `with` entered it: write "
                f"`with model.use({adapters!r}):` around the calls that shall use it"
            ),
        )

    def remove(self, name: str) -> None:
        """Forget an adapter. The base is as if it had never been there. Raises HalkaError while it is in use."""
        with self.lock:
            self._here(name)
            if name in self.in_use:
                raise HalkaError(f"adapter {name!r} is in use: leave its `with model.use(...)` first")
            if merged := self.merged == name:
                self.unmerge()
            adapter = self.adapters.pop(name)
            self._latest = None
            self._passes.remove(adapter)
            self._passes.turns.watch(bool(self.adapters) or merged)  # a pass may have begun with what was merged
            for follower in (self.pool, self.kept):
                if follower is not None:
                    follower.removed(name)

    def adapter(self, name: str) -> Adapter:
        """The adapter of that name. Raises UnknownAdapterError that lists the names there are."""
        if name in self.adapters or self.pool is None:
            return self._here(name)
        with self.lock:
            self.pool.ready([name])
            return self._here(name)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """That adapter's trainable parameters, and no others. Passes may miss what is written into their `.data`."""
        return self.adapter(name).parameters()

    def labels_of(self, name: str | None) -> tuple[str, ...]:
        """What adapter `name` tells apart, by place: its own labels, else the base's, which are the bare base's."""
        return (() if name is None else self.adapter(name).labels) or self.labels

    @property
    def active(self) -> RowNames:
        """The names that the innermost `use` gave, one per row or one for all."""
        return self._passes.names

    @property
    def in_use(self) -> set[str]:
        """The names of all adapters that a block, inner or outer, uses now."""
        routes = (route for route in (*self._passes.outer, self._passes.route) if route is not None)
        return {name for route in routes for name in route.names if name is not None}

    def as_now(self) -> AbstractContextManager[None]:
        """A block for later, in backward, in which layers are computed once more with the adapters of now."""
        passes = self._passes
        return computed_again(self.use, passes, passes.names, passes.runs, passes.turns.owner)

    # ── the base ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def merged(self) -> str | None:
        """The name of the adapter that is merged into the base's weights now."""
        return self._weights.merged

    def merge(self, name: str) -> None:
        """Let weights with the adapter inside stand in for the base's own until `unmerge`: no cost per token.

        Products are computed in fp32 and rounded once to the base's precision. The base's own tensors are set aside
        untouched, of a GPU on the CPU, so that `unmerge` has every bit back. Raises HalkaError within `use`, and for
        what is no weight.
        """
        self._weights.merge(name)

    def unmerge(self) -> None:
        """Put the base's own weights back, bit for bit. Raises HalkaError within `use`."""
        self._weights.unmerge()

    def own_weights(self, *, computing: bool = True) -> AbstractContextManager[None]:
        """Within the block the base has its own weights and no adapter, whatever is merged or in use. Without
        `computing` they are only read, where they are: those that wait on the CPU need no room on a GPU."""
        return self._weights.own(computing=computing)

    def idle(self, busy: str) -> AbstractContextManager[None]:
        """Within the block no other thread computes. Raises HalkaError that says `busy` within `use`."""
        return self._passes.idle(busy)

    def to(self, device_or_dtype: str | torch.device | torch.dtype) -> AdaptedModel:
        """Move base and adapters to a device, or cast the base to a dtype; adapters stay fp32. Returns the model.

        Raises HalkaError within `use`, OutOfMemoryError where it does not fit: then all is as it was.
        """
        with self.idle("moving needs an idle base: leave `use` first"):
            merged = self.merged
            self.unmerge()
            if self.kept is not None:
                self.kept.close()
                self.kept = None
            try:
                move(self.base, device_or_dtype)
            finally:
                self._put_parts()
                if merged is not None:
                    self.merge(merged)
        return self

    def __repr__(self) -> str:
        total, parameter = parameter_count(self.base), next(self.base.parameters())
        dtype = quantization_of(self.base) or str(parameter.dtype).removeprefix("torch.")
        lines = [f"AdaptedModel of {type(self.base).__name__}: {total:,} parameters, {dtype} on {parameter.device}"]
        used = self.in_use
        for name, adapter in self.adapters.items():
            state = ", in use" if name in used else ", merged" if name == self.merged else ""
            share = f"{adapter.count():,} trained parameters ({adapter.count() / total:.2%})"
            lines.append(f"  {name}: {adapter.method}, {share}{state}")
        return "\n".join(lines if self.adapters else [*lines, "  no adapters yet: model.add(name, method)"])

    def _check_new(self, name: object, method: object, labels: Sequence[str]) -> None:
        if isinstance(method, type) or not isinstance(method, Method):
            kind = f"the class {method.__name__}" if isinstance(method, type) else f"a {type(method).__name__}"
            raise HalkaError(
                f"{name!r} needs a method such as halka.LoRA(rank=16), not {kind}; "
                "halka.method_from_peft(config, model) translates peft's configurations"
            )
        if not name or not isinstance(name, str):
            raise HalkaError(f"an adapter's name is a non-empty string, not {name!r}")
        check_own_labels(name, labels, self.labels)

    def _here(self, name: str) -> Adapter:
        adapter = self.adapters.get(name)
        if adapter is None:
            names = ", ".join(map(repr, [*self.adapters])) or "none yet"
            raise UnknownAdapterError(f"no adapter {name!r} here (there are: {names}): `add` or `load` it first")
        return adapter

    @contextmanager
    def _using(self, adapters: AdapterNames | Route) -> Generator[AdaptedModel]:
        named = adapters.names if isinstance(adapters, Route) else adapters
        names: RowNames = (named,) if named is None or isinstance(named, str) else tuple(named)
        with self._passes.turns.take():
            if self.pool is not None:
                self.pool.ready(name for name in names if name is not None)
            own = {name: self.adapter(name) for name in names if name is not None}
            self._put_parts()
            route = self._resolve(names, own, adapters if isinstance(adapters, Route) else None)
            with self._passes.using(route, adapters):
                yield self

    def _resolve(self, names: RowNames, own: Mapping[str, Adapter], before: Route | None) -> Route | None:
        if not names:
            raise HalkaError("`use` names no rows: name an adapter, or None for the bare base")
        if self.merged is not None:
            if set(names) != {self.merged}:
                raise HalkaError(
                    f"adapter {self.merged!r} is merged into the base: `unmerge` before using others or the bare base"
                )
            return Route(names)
        if before is not None:
            assert before.adapters == own, f"the route of {names} was resolved for others of these names"
            return before
        if names == (None,):
            return None
        if len(names) > 1:
            return resolve(names, own)
        if (latest := self._latest) is None or latest.names != names:
            latest = resolve(names, own)
            self._latest = latest if latest.weights is None else None  # else it keeps what is cast after the block
        return latest

    def _put_parts(self) -> None:
        """Put every part on its target's device, if the base was moved."""
        device = next(self.base.parameters()).device
        if device != self._device:
            for adapter in self.adapters.values():
                for path, part in adapter.parts.items():
                    part.to(adapter.targets[path].device() or device)
            self._device = device
