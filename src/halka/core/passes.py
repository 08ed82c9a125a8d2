"""What a pass of the base meets: hooks at the modules where parts act, virtual tokens, weights that are swapped in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from halka.core.adapter import Adapter
from halka.core.interfaces import Arguments, LinePlan, VirtualAttention
from halka.core.parts import ModulePart
from halka.core.routing import Edits, ExpertEdits, Place, Route, RowNames
from halka.core.targets import Target
from halka.util.calls import argument_of, received
from halka.util.compiled import see_hooks
from halka.util.errors import HalkaError
from halka.util.parameter_swap import ParameterSwap
from halka.util.rows import repeats
from halka.util.transfer import device_of
from halka.util.turns import Flow, Turns

Use = Callable[[RowNames], AbstractContextManager[object]]  # `AdaptedModel.use`


class Passes:
    """The route of the innermost block, for every pass of the base that runs within it.

    A pass over a padded batch has rows of one length. A pass over a line of tokens is called with `forest`, a
    `LinePlan`: then run i of it uses what `use` named i-th.
    """

    def __init__(
        self,
        base: nn.Module,
        attention: VirtualAttention,
        experts: Callable[[], AbstractContextManager[None]],
        outside: Callable[[dict[str, Any]], None],
    ):
        """experts: within its block the base's experts take `ExpertEdits`. outside: called with the arguments of a pass
        in a thread that is in no block."""
        self.swap = ParameterSwap(base)
        self.turns = Turns(base, attention.entries, self._begin, self._end, outside)
        self.route: Route | None = None
        self.outer: list[Route | None] = []  # those of the blocks around the innermost
        self._attention, self._experts = attention, experts
        self._entered = ExitStack()  # what the route changes in the base
        self._inputs: dict[str, Tensor] = {}  # what a sublayer received, from its source to its output
        self.modules = dict(base.named_modules())  # pyright: ignore[reportUnknownArgumentType]
        self._runs: tuple[int, ...] = ()  # of the pass, if it has a forest
        self._parts_at: Counter[Place] = Counter()
        self._hooks: dict[Place, list[RemovableHandle]] = {}

    # ── hooks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, adapter: Adapter) -> None:
        """Registers forward hooks where the adapter has a part."""
        see_hooks()
        for place, target in _places(adapter):
            if not self._parts_at[place]:
                self._hooks[place] = self._hook(place, target)
            self._parts_at[place] += 1

    def remove(self, adapter: Adapter) -> None:
        """Removes the hooks that no other adapter needs."""
        for place, _ in _places(adapter):
            self._parts_at[place] -= 1
            if not self._parts_at[place]:
                for handle in self._hooks.pop(place):
                    handle.remove()

    def _hook(self, place: Place, target: Target) -> list[RemovableHandle]:
        key, edited = place
        module = target.module
        argument = argument_of(module)
        source = None if target.source is None else self.modules[target.source]
        source_argument = "" if source is None else argument_of(source)

        def edit_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
            if (edits := self._edits(place)) is None:
                return None
            x = edits.edit(self._runs, received(args, kwargs, argument).to(target.device()))  # as accelerate will
            return ((x, *args[1:]), kwargs) if args else ((), {**kwargs, argument: x})

        def edit_output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor | None:
            if (edits := self._edits(place)) is None:
                return None
            x = self._inputs.pop(key) if target.source else received(args, kwargs, argument)
            return edits.edit(self._runs, x.to(device_of(y, target.name)), y)

        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._edits(place) is not None:
                self._inputs[key] = received(args, kwargs, source_argument)

        def edit_experts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
            if (route := self.route) is None or self._edits(place) is None:
                return None
            inputs, outputs = route.edits.get((key, "input")), route.edits.get((key, "output"))
            edits = ExpertEdits(route.names, self._runs, inputs, outputs)
            return args, {**kwargs, target.role.rpartition(".")[2]: edits}

        if target.experts:
            return [module.register_forward_pre_hook(edit_experts, with_kwargs=True)]
        if edited == "input":
            return [module.register_forward_pre_hook(edit_input, with_kwargs=True)]
        if source is None:  # the module's own output is edited before that of the sublayer which ends with it
            return [module.register_forward_hook(edit_output, with_kwargs=True, prepend=True)]
        return [
            source.register_forward_pre_hook(remember, with_kwargs=True),
            module.register_forward_hook(edit_output, with_kwargs=True),
        ]

    def _edits(self, place: Place) -> Edits | None:
        """This pass's edits there. Raises RuntimeError for another thread's, whose block has overtaken the pass."""
        if (route := self.route) is None:
            return None
        self.turns.check()
        return route.edits.get(place)

    # ── blocks ──────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def using(self, route: Route | None, adapters: object) -> Generator[None]:
        """Within the block of `use(adapters)`, which is this thread's turn, passes take this route. Blocks nest.

        Raises RuntimeError if it ends while a block that began within it goes on.
        """
        self.outer.append(self.route)
        try:
            self._enter(route)
            yield
        finally:
            mixed_up = self.route is not route
            self._enter(self.outer.pop())
            if mixed_up:
                raise RuntimeError(
                    f"the block of `use({adapters!r})` ended while another's, begun within it, went on: what was "
                    "computed meanwhile used the other's adapters. Leave blocks in the order of their begin: no "
                    "generator may hold one open between its items"
                )

    def _enter(self, route: Route | None) -> None:
        self._entered.close()
        self.route, self._runs, self._inputs = route, (), {}
        if route is None:
            return
        if route.weights is not None:
            self._entered.callback(self.swap.restore)
            self._swap_in(route)
        if route.virtual:
            self._entered.enter_context(self._attention.using(route.virtual, self.bare))
        if route.experts:
            self._entered.enter_context(self._experts())

    @contextmanager
    def bare(self) -> Generator[None]:
        """Within the block passes use no adapter, whatever is in use around it."""
        self.outer.append(self.route)
        runs, entered = self._runs, self._entered
        self.route, self._runs, self._entered = None, (), ExitStack()
        try:
            yield
        finally:
            self.route, self._runs, self._entered = self.outer.pop(), runs, entered

    @contextmanager
    def idle(self, busy: str) -> Generator[None]:
        """Within the block no other thread computes. Raises HalkaError that says `busy` within `use`."""
        with self.turns.take():
            if self.outer:
                raise HalkaError(busy)
            yield

    def as_now(self, use: Use) -> AbstractContextManager[None]:
        """A block for later, in backward, in which layers are computed once more with the adapters of now."""
        return self._again(use, self.names, self._runs, self.turns.owner)

    @contextmanager
    def _again(self, use: Use, names: RowNames, runs: tuple[int, ...], owner: Flow | None) -> Generator[None]:
        """Within the block layers compute as in a pass of these names and runs, in the turn of its owner."""
        in_backward, same = self.turns.waits_for_backward(owner), self.names == names
        if in_backward and not same:
            raise RuntimeError(
                f"backward computes layers once more that were computed with {names}, but runs within "
                f"`use({self.names})`: let the block end before backward, or begin after it"
            )
        with nullcontext() if in_backward or (same and self.turns.mine()) else use(names):
            before, self._runs = self._runs, runs
            try:
                yield
            finally:
                self._runs = before

    @property
    def names(self) -> RowNames:
        """The names that the innermost block uses, one per row or one for all."""
        return self.route.names if self.route else (None,)

    # ── passes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, entry: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """What a pass that begins there receives. Refuses a batch whose rows are not those that `use` named."""
        if (route := self.route) is None:
            return None
        line: LinePlan | None = kwargs.get("forest")
        self._runs = () if line is None else line.runs
        inputs = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        tokens = next((tensor for tensor in inputs if tensor is not None), None)
        if len(route.names) > 1:
            if self._runs and len(self._runs) != len(route.names):
                raise HalkaError(f"the line has {len(self._runs)} runs, but `use` named {len(route.names)} adapters")
            if tokens is not None and not self._runs:
                repeats(tokens.shape[0], len(route.names))
        self._swap_in(route)
        return self._attention.begin(entry, args, kwargs, self._runs) if route.virtual else None

    def _end(self, entry: nn.Module, kwargs: dict[str, Any], output: Any) -> Any:
        self._runs = ()
        return self._attention.end(entry, kwargs, output) if self.route and self.route.virtual else None

    def _swap_in(self, route: Route) -> None:
        """fp32 masters are cast afresh at every pass that will be differentiated, and whenever they have changed."""
        if (part := route.weights) is not None:
            self.swap.swap_in(route.cast.get([*part.parameters()], part.weights))


def _places(adapter: Adapter) -> Iterable[tuple[Place, Target]]:
    """Where parts of the adapter act on modules."""
    for path, part in adapter.parts.items():
        if isinstance(part, ModulePart):
            yield (adapter.targets[path].key, part.edits), adapter.targets[path]
