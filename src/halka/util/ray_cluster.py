"""Programs on a Ray cluster: each is a task that runs a process; files go to it, and what it leaves comes back.

`pip install 'halka[ray]'` brings Ray, which this machine and every node need, beside Halka (docs/distributed.md).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from halka.util.errors import HalkaError
from halka.util.ray_connection import RayConnection, described, last_line, suffices
from halka.util.ray_node import Kind, Mailbox, Program, run

LOSSES = 3  # times that a program loses its node before it is given up
TIMEOUT = 300.0  # seconds that a program waits for a node, where all that could run it are gone
VERSIONS = "Have all nodes, the head too, this version of Halka, and of Ray?"
LOOK = 5.0  # seconds without news after which the nodes are looked at


@dataclass(frozen=True)
class News:
    """What happened to a program on a node.

    kind    it has "begun"; it printed a "line"; its node was "lost", and it runs again; it is "over"
    text    the line; how the node was lost; without a `code`, why there is none
    code    the process's exit code
    files   that the process left, by their paths in its folder
    """

    kind: Literal["begun", "line", "lost", "over"]
    node: str = ""
    text: str = ""
    code: int | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass
class _Attempt:
    """A program that was submitted.

    losses   nodes that it had before, and lost
    node     where it runs; "" until it does
    letters  the number of its letter that is to be read next
    early    the kinds and texts of letters that came too early, by their numbers
    gap      since when later ones wait for that letter
    """

    key: str
    program: Program
    number: int
    losses: int = 0
    node: str = ""
    letters: int = 0
    early: dict[int, tuple[Kind, str]] = field(default_factory=dict)
    gap: float | None = None

    def take(self, place: int, letter: tuple[Kind, str]) -> None:
        """A letter of this number has come, perhaps once more."""
        if place >= self.letters:
            self.early[place] = letter

    def in_turn(self, patience: float = LOOK) -> Iterator[tuple[Kind, str]]:
        """The kinds and texts of the letters that are next, as the program sent them.

        One for which others have waited so many seconds is lost, as if its mailbox was, and left out.
        """
        if not self.early or self.letters in self.early:
            self.gap = None
        else:
            self.gap = self.gap or time.monotonic()
            if time.monotonic() >= self.gap + patience:
                self.letters = min(self.early)
        while (letter := self.early.pop(self.letters, None)) is not None:
            self.letters += 1
            yield letter


class RayCluster:
    """Runs programs on a Ray cluster, as many at a time as its nodes have room for.

    Each takes a GPU where the cluster has some, else a node's processor; with `jobs`, a share of it, so that so many
    run side by side. The smallest node decides on the number of threads, which is the same for all. No program goes to
    a GPU that has less memory than it needs, as far as nodes report that.

    address   "ray", the cluster that this machine is part of (or $RAY_ADDRESS), or "ray://HOST:10001"
    shared    files that every program gets, by their paths in its folder
    timeout   seconds that a program waits for a node, where all that could run it are gone

    Raises HalkaError where Ray is not installed, the cluster cannot be reached, or no node takes tasks.
    """

    def __init__(
        self, address: str, *, jobs: int = 1, shared: Mapping[str, bytes] | None = None, timeout: float = TIMEOUT
    ):
        self.connection, self.timeout = RayConnection(address), timeout
        self.ray = self.connection.ray
        try:
            self.gpus, self.threads = self.connection.share(jobs)
        except HalkaError:
            self.connection.close()
            raise
        self.shared = self.ray.put({**(shared or {})})
        self.task = self.ray.remote(run)
        self.post = self._mailbox()
        self.mail = self.post.take.remote()
        self.tasks: dict[Any, _Attempt] = {}
        self.numbers = itertools.count()
        self.news: deque[tuple[str, News]] = deque()
        self.alone_since: float | None = None

    def start(self, key: str, program: Program) -> None:
        """Submit a program; `key` names it in `report`. Raises HalkaError where no node could ever run it."""
        if reason := self._lacking(program):
            raise HalkaError(reason)
        self._submit(_Attempt(key, program, next(self.numbers)))

    def report(self) -> tuple[str, News]:
        """Wait for what happens next to one of the programs, and return it with the program's key.

        Raises HalkaError where the connection is lost, and where a program waits in vain for a node.
        """
        errors = self.ray.exceptions
        try:
            while not self.news:
                ready, _ = self.ray.wait([self.mail, *self.tasks], num_returns=1, timeout=LOOK)
                if not ready:
                    self._look()
                elif ready[0] == self.mail:
                    self._read()
                else:
                    self._end(ready[0])
        except (ConnectionError, errors.LocalRayletDiedError, errors.RayActorError) as error:
            raise HalkaError(
                f"the Ray cluster was lost ({last_line(error)}); what is finished is kept. {VERSIONS}"
            ) from error
        return self.news.popleft()

    def close(self) -> None:
        """End the programs that run, and leave the cluster."""
        with suppress(ConnectionError, self.ray.exceptions.RayError):
            for task in self.tasks:
                self.ray.cancel(task, force=True)
            if self.tasks:
                self.ray.wait([*self.tasks], num_returns=len(self.tasks), timeout=LOOK)
            self.ray.kill(self.post)
        self.connection.close()

    # ── nodes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _lacking(self, program: Program) -> str | None:
        """Why no node can run the program; None if one can."""
        needs = {"CPU": self.threads, "GPU": self.gpus, "memory": program.memory or 0}
        needs |= {"gpu_memory": self._gpu_memory(program)}
        nodes = self.connection.nodes()
        if any(suffices(node, needs) for node in nodes):
            return None
        present = "; ".join(sorted({described(node) for node in nodes})) or "none"
        return (
            f"{program.title} takes {described(needs)}, and no node of the Ray cluster has that (its nodes: "
            f"{present}): add one by `ray start --address=HEAD:6379`, with --memory=BYTES if Ray is to give more of it"
        )

    def _gpu_memory(self, program: Program) -> float:
        """Bytes that a GPU must have of which the program gets its share."""
        return (program.gpu_memory or 0) / self.gpus if self.gpus else 0

    def _look(self) -> None:
        """Raises HalkaError where a program has waited too long for a node."""
        waiting = [attempt.program for attempt in self.tasks.values() if not attempt.node]
        reason = next(filter(None, map(self._lacking, waiting)), None)
        if reason is None:
            self.alone_since = None
            return
        self.alone_since = self.alone_since or time.monotonic()
        if time.monotonic() - self.alone_since >= self.timeout:
            raise HalkaError(reason)

    # ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _mailbox(self) -> Any:
        """The actor that programs send their lines to, beside this process or, by ray://, on the head node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        return self.ray.remote(Mailbox).options(**options).remote()

    def _submit(self, attempt: _Attempt) -> None:
        program = attempt.program
        options = {"num_cpus": self.threads, "num_gpus": self.gpus, "memory": program.memory, "max_retries": 0}
        options |= self.connection.away_from_small_gpus(self._gpu_memory(program))
        task = self.task.options(name=program.title, **options)
        self.tasks[task.remote(program, self.shared, self.threads, attempt.number, self.post)] = attempt

    def _read(self) -> None:
        """Take what programs have sent, in their order; of those that are over or lost, nothing counts."""
        attempts = {attempt.number: attempt for attempt in self.tasks.values()}
        for number, place, kind, text in self.ray.get(self.mail):
            if (attempt := attempts.get(number)) is not None:
                attempt.take(place, (kind, text))
                self._hear(attempt)
        self.mail = self.post.take.remote()

    def _hear(self, attempt: _Attempt, patience: float = LOOK) -> None:
        for kind, text in attempt.in_turn(patience):
            attempt.node = text if kind == "begun" else attempt.node
            self.news.append((attempt.key, News(kind, attempt.node, text)))

    def _end(self, task: Any) -> None:
        """Take what a task returns, or run its program again where its node was lost."""
        attempt, errors = self.tasks[task], self.ray.exceptions
        lost = errors.NodeDiedError, errors.WorkerCrashedError, errors.OutOfMemoryError, errors.ObjectLostError
        try:
            code, files, letters = self.ray.get(task)
            end = time.monotonic() + LOOK
            while attempt.letters < letters and self.ray.wait([self.mail], timeout=max(0, end - time.monotonic()))[0]:
                self._read()
            while attempt.early:
                self._hear(attempt, patience=0)
            news = News("over", attempt.node, code=code, files=files)
        except lost as error:
            losses = attempt.losses + 1
            news = News("lost" if losses < LOSSES else "over", attempt.node, _loss(attempt.node, error, losses))
            if losses < LOSSES:
                self._submit(_Attempt(attempt.key, attempt.program, next(self.numbers), losses))
        except errors.RayError as error:
            news = News("over", attempt.node, f"its task failed: {last_line(error)}. {VERSIONS}")
        del self.tasks[task]
        self.news.append((attempt.key, news))


def _loss(node: str, error: Exception, losses: int) -> str:
    reason = f"{node or 'its node'} was lost ({type(error).__name__})"
    if losses < LOSSES:
        return f"{reason}: it begins anew, for the {('second', 'third')[losses - 1]} time"
    return f"{reason}, as {losses - 1} others before"
