"""`Turns`: threads share one base, and each must find there what it put there itself, or nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import nn

from halka.util.errors import HalkaError
from halka.util.own_hook import OwnHook


class Flow(NamedTuple):
    """Who computes: a thread, or one of the coroutines that share it."""

    thread: int
    task: int | None

    @classmethod
    def mine(cls) -> Flow:
        loop = asyncio._get_running_loop()
        task = None if loop is None else asyncio.current_task(loop)
        return cls(get_ident(), None if task is None else id(task))

    def holds(self, other: Flow) -> bool:
        """Whether the other goes on within what this one does: it is the same, or its thread's loop runs in there."""
        return self.thread == other.thread and self.task in (None, other.task)


class _Blocks(threading.local):
    """How many turns this thread has, at any base: several models may have adapted one."""

    count = 0


_blocks = _Blocks()


class Turns:
    """Threads take turns with a base, whose passes are checked: those of other threads are refused meanwhile.

    entries     the modules where its passes begin
    begin, end  called with every pass in the thread whose turn it is, to change what it receives and returns
    outside     called with the arguments of every pass in a thread that has no turn, while the passes are watched
    """

    def __init__(
        self,
        base: nn.Module,
        entries: Iterable[nn.Module],
        begin: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any],
        end: Callable[[nn.Module, dict[str, Any], Any], Any],
        outside: Callable[[dict[str, Any]], None],
    ):
        self.lock = threading.RLock()
        self._base, self._entries, self._begin, self._end = base, tuple(entries), begin, end
        self._outside = outside
        self.owner: Flow | None = None  # whose turn it is
        self._count = 0  # of turns so far
        self._begun: dict[int, int] = {}  # that count when a thread's last pass outside of any turn began
        self._installed = 0  # that count when the hooks were put there
        self._always = False
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Raises HalkaError, as whatever holds turns does: an adapted model."""
        raise HalkaError(
            "an adapted model is neither pickled nor copied: halka.save and halka.load keep an adapter, and outside of "
            "`use` copy.deepcopy(model.base) is the base without any"
        )

    @contextmanager
    def take(self) -> Iterator[None]:
        """Within the block it is this thread's turn, once the others have had theirs. Blocks nest.

        Raises RuntimeError if another coroutine of this thread has the turn: to wait for it would be for ever.
        """
        with self.lock:
            me = Flow.mine()
            if self.owner is not None:
                if not self.owner.holds(me):
                    raise RuntimeError(
                        "another coroutine of this thread is inside `with model.use(...)`, or changes the base: do not "
                        "await within a block, or run blocks in threads of their own (asyncio.to_thread)"
                    )
                yield
                return
            self.owner = me
            _blocks.count += 1
            try:
                self._install()
                self._count += 1
                yield
            finally:
                _blocks.count -= 1
                self.owner = None
                self._install()

    def watch(self, always: bool) -> None:
        """Check passes at any time, or only while it is somebody's turn: then the base runs without hooks otherwise."""
        self._always = always
        self._install()

    def mine(self) -> bool:
        """Whether it is this thread's or coroutine's turn."""
        return self.owner is not None and self.owner.holds(Flow.mine())

    def waits_for_backward(self, flow: Flow | None) -> bool:
        """Whether it is that one's turn while it waits for autograd, which asks this in a thread of its own."""
        return flow is not None and self.owner == flow and _autograds_own_thread()

    def check(self) -> None:
        """Raises RuntimeError if it is not this thread's or coroutine's turn, nor within that one's backward pass."""
        if torch.compiler.is_compiling():  # `_before` and `_after` stay out of compiled code, and do check
            return
        if not self.mine() and not _autograds_own_thread():
            raise RuntimeError(
                "the base was called outside of `with model.use(...)` while another thread is, or was just now, inside "
                "one, or changes the base: it would have computed with what that thread put there. Wrap the call in "
                "`with model.use(...)` in the thread that makes it (None for the bare base): it waits its turn. If the "
                "other thread's block waits for this call, as with a streamer, move its `with` into this thread"
            )

    def check_backward(self) -> None:
        """Raises HalkaError if autograd computes a part of a pass once more while it is nobody's turn."""
        if torch.compiler.is_compiling():
            return
        if self.owner is None and torch._C._current_graph_task_id() != -1:
            raise HalkaError(
                "backward computes a layer once more, as gradient checkpointing does, but outside of `model.use(...)`, "
                "where nobody knows the adapter of its forward pass: gradients might be wrong. Call backward within "
                "the block of the forward pass (`use(None)` for the bare base, the adapter's name while it is merged), "
                "or train a `halka.view`"
            )

    def _install(self) -> None:
        wanted = self._always or self.owner is not None
        if wanted and not self._hooks:
            self._begun.clear()
            self._installed = self._count

            def own(module: nn.Module, hook: Callable[..., Any]) -> Any:
                return OwnHook(module, torch.compiler.disable(hook))  # compiled code would check but once

            self._hooks = [
                *(it.register_forward_pre_hook(own(it, self._before), with_kwargs=True) for it in self._entries),
                *(it.register_forward_hook(own(it, self._finished), with_kwargs=True) for it in self._entries),
                *(it.register_forward_hook(own(it, self._after)) for it in {*self._entries, self._base}),
            ]
        elif not wanted:
            while self._hooks:
                self._hooks.pop().remove()

    def _before(self, entry: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Refuse a pass or let it begin. Torch gives no kwargs while another thread takes the hook away."""
        count = self._count
        if self.owner is None:
            self._begun[get_ident()] = count
            if not _blocks.count:
                self._outside(kwargs or {})
            return None
        self.check()
        return self._begin(entry, args, kwargs or {})

    def _finished(self, entry: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        """What a pass in whose turn it is returns. `_after` refuses those of others."""
        *kwargs, output = rest
        return self._end(entry, kwargs[0] if kwargs else {}, output) if self.mine() else None

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Refuse the result of a pass outside of any turn if one began meanwhile."""
        if not self.mine() and self._begun.get(get_ident(), self._installed) != self._count:
            self.check()


def _autograds_own_thread() -> bool:
    """Whether autograd computes a part of a pass once more, in a thread of its own, as it does for a GPU."""
    if torch._C._current_graph_task_id() == -1:
        return False
    started_by_python = (one for one in threading.enumerate() if not isinstance(one, threading._DummyThread))
    return all(thread.ident != get_ident() for thread in started_by_python)
