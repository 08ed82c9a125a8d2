"""What a pass of the base meets: hooks at the modules where parts act, virtual tokens, weights that are swapped in."""

from __future__ import annotations

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
from halka.util.own_hook import OwnHook
from halka.util.parameter_swap import ParameterSwap
from halka.util.rows import repeats
from halka.util.transfer import device_of
from halka.util.turns import Flow, Turns


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
        self.modules = dict(base.named_modules())  # pyright: ignore[reportUnknownArgumentType]
        self.runs: tuple[int, ...] = ()  # of the pass, if it has a forest
        self.inputs: dict[str, Tensor] = {}  # what a sublayer received, from its source to its output
        self._hooks: dict[Place, _Hooks] = {}

    def add(self, adapter: Adapter) -> None:
        """Registers forward hooks where the adapter has a part."""
        see_hooks()
        for place, target in _places(adapter):
            if place not in self._hooks:
                self._hooks[place] = _Hooks(self, place, target)
                if (last := self._hooks.get((f"{place[0]}.residual", place[1]))) is not None:
                    last.register()
            self._hooks[place].parts += 1

    def remove(self, adapter: Adapter) -> None:
        """Removes the hooks that no other adapter needs."""
        for place, _ in _places(adapter):
            self._hooks[place].parts -= 1
            if not self._hooks[place].parts:
                self._hooks.pop(place).remove()

    def edits(self, place: Place) -> Edits | None:
        """This pass's edits there. Raises as `Turns.check` and `Turns.check_backward` do: it may be of another pass."""
        if (route := self.route) is None:
            self.turns.check_backward()
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
        self.route, self.runs, self.inputs = route, (), {}
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
        runs, entered = self.runs, self._entered
        self.route, self.runs, self._entered = None, (), ExitStack()
        try:
            yield
        finally:
            self.route, self.runs, self._entered = self.outer.pop(), runs, entered

    @contextmanager
    def idle(self, busy: str) -> Generator[None]:
        """Within the block no other thread computes. Raises HalkaError that says `busy` within `use`."""
        with self.turns.take():
            if self.outer:
                raise HalkaError(busy)
            yield

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
        self.runs = () if line is None else line.runs
        inputs = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        tokens = next((tensor for tensor in inputs if tensor is not None), None)
        if len(route.names) > 1:
            if self.runs and len(self.runs) != len(route.names):
                raise HalkaError(f"the line has {len(self.runs)} runs, but `use` named {len(route.names)} adapters")
            if tokens is not None and not self.runs:
                repeats(tokens.shape[0], len(route.names))
        self._swap_in(route)
        return self._attention.begin(entry, args, kwargs, self.runs) if route.virtual else None

    def _end(self, entry: nn.Module, kwargs: dict[str, Any], output: Any) -> Any:
        self.runs = ()
        return self._attention.end(entry, kwargs, output) if self.route and self.route.virtual else None

    def _swap_in(self, route: Route) -> None:
        """fp32 masters are cast afresh at every pass that will be differentiated, and whenever they have changed."""
        if (part := route.weights) is not None:
            self.swap.swap_in(route.cast.get([*part.parameters()], part.weights))


class _Hooks:
    """The forward hooks at one place, where some adapters have parts."""

    def __init__(self, passes: Passes, place: Place, target: Target):
        self.parts = 0  # there, in all adapters
        self._passes, self._place, self._target = passes, place, target
        module, source = target.module, None if target.source is None else passes.modules[target.source]
        self._argument, self._of_source = argument_of(module), "" if source is None else argument_of(source)
        self._handles: list[RemovableHandle] = []
        self.register()

    def register(self) -> None:
        """Anew: what comes is remembered, then edited; a sublayer is edited after its last module, whoever is first."""
        self.remove()
        module = self._target.module
        own = self._target.source is None and self._target.role != "mlp"  # that of a mixture is a sublayer's
        if self._target.experts or self._place[1] == "input":
            hook = OwnHook(module, self._edit_experts if self._target.experts else self._edit_input)
            self._handles = [module.register_forward_pre_hook(hook, with_kwargs=True)]
        else:
            hook = OwnHook(module, self._edit_output)
            self._handles = [module.register_forward_hook(hook, with_kwargs=True, prepend=own)]
        if self._target.source is not None:
            hook = OwnHook(source := self._passes.modules[self._target.source], self._remember)
            self._handles += [source.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _edit_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if (edits := self._passes.edits(self._place)) is None:
            return None
        x = received(args, kwargs, self._argument)
        x = edits.edit(self._passes.runs, x.to(self._target.device()))  # where accelerate will put it
        return ((x, *args[1:]), kwargs) if args else ((), {**kwargs, self._argument: x})

    def _remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the sublayer receives, until its output is edited."""
        if self._passes.edits(self._place) is not None:
            self._passes.inputs[self._target.key] = received(args, kwargs, self._of_source)

    def _edit_output(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
    ) -> Tensor | None:
        if (edits := self._passes.edits(self._place)) is None:
            return None
        target, inputs = self._target, self._passes.inputs
        x = inputs.pop(target.key) if target.source else received(args, kwargs, self._argument)
        return edits.edit(self._passes.runs, x.to(device_of(y, target.name)), y)

    def _edit_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        passes, key = self._passes, self._target.key
        if (route := passes.route) is None or passes.edits(self._place) is None:
            return None
        both = (route.edits.get((key, "input")), route.edits.get((key, "output")))
        return args, {**kwargs, self._target.role.rpartition(".")[2]: ExpertEdits(route.names, passes.runs, *both)}


@contextmanager
def computed_again(
    use: Callable[[RowNames], AbstractContextManager[object]],
    passes: Passes,
    names: RowNames,
    runs: tuple[int, ...],
    owner: Flow | None,
) -> Generator[None]:
    """Activation checkpointing: in backward, recompute layers with a forward pass's names, runs and owner's turn."""
    in_backward, same = passes.turns.waits_for_backward(owner), passes.names == names
    if in_backward and not same:
        raise RuntimeError(
            f"backward computes layers once more that were computed with {names}, but runs within "
            f"`use({passes.names})`: let the block end before backward, or begin after it"
        )
    with nullcontext() if in_backward or (same and passes.turns.mine()) else use(names):
        before, passes.runs = passes.runs, runs
        try:
            yield
        finally:
            passes.runs = before


def _places(adapter: Adapter) -> Iterable[tuple[Place, Target]]:
    """Where parts of the adapter act on modules."""
    for path, part in adapter.parts.items():
        if isinstance(part, ModulePart):
            yield (adapter.targets[path].key, part.edits), adapter.targets[path]
