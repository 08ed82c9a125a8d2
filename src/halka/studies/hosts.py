"""Where a study's runs are run, each group of them in a process: `Host`, and `Here`, which is this machine."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from halka.util.machine import cores
from halka.util.openmp import environment
from halka.util.python import program

Result = dict[str, Any]  # a run's result, as its JSON file holds it
Line = dict[str, Any]
"""What happened to a group: a line that its process reported (`runner.report`), or one of

{"begun": node}    its process runs, on that node of a cluster; "" is this machine
{"lost": reason}   its node was lost, and it runs again
{"over": reason}   nothing more comes; the reason is that of the runs without a result
"""


class Run(Protocol):
    """One part of a study: a dataclass whose fields its process reads."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> str:
        """Its files' name, the same for the same work."""
        ...

    @property
    def title(self) -> str:
        """Its name in messages."""
        ...

    def failed(self, error: str) -> Result:
        """The result that records why the run failed; its "status" is "failed"."""
        ...


R = TypeVar("R", bound=Run)


@dataclass(frozen=True)
class Group(Generic[R]):
    """Runs that share a process.

    files   of each run, the file that the process reads and that of its result
    """

    runs: tuple[R, ...]
    files: tuple[tuple[Path, Path], ...]

    @property
    def key(self) -> str:
        """The first run's."""
        return self.runs[0].key

    @property
    def log(self) -> Path:
        """The file of the process's stderr."""
        return self.files[0][0].with_name("log.txt")


class Host(Protocol[R]):
    """Runs groups of runs."""

    def has_room(self) -> bool:
        """Whether another group may be started."""
        ...

    def start(self, group: Group[R]) -> None:
        """Run the group as soon as there is a processor for it."""
        ...

    def report(self) -> tuple[Group[R], Line]:
        """Wait for what happens next to one of the groups that were started."""
        ...

    def close(self) -> None:
        """End the groups that run."""
        ...


class Here(Generic[R]):
    """The processes of this machine, at most `jobs` at a time, which share the processor's cores.

    program   the module that serves the runs
    """

    def __init__(self, program: str, jobs: int = 1):
        self.program, self.jobs = program, jobs
        self.environment = environment(max(1, cores() // jobs))
        self.lines: queue.Queue[tuple[Group[R], Line]] = queue.Queue()
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._listening: list[threading.Thread] = []

    def has_room(self) -> bool:
        return len(self.processes) < self.jobs

    def start(self, group: Group[R]) -> None:
        arguments = [str(file) for pair in group.files for file in pair]
        with group.log.open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                program(self.program, *arguments),
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                errors="replace",  # libraries print what they like
                env=self.environment,
            )
        self.processes[group.key] = process
        self.lines.put((group, {"begun": ""}))
        self._listening.append(threading.Thread(target=self._listen, args=(group, process), daemon=True))
        self._listening[-1].start()

    def report(self) -> tuple[Group[R], Line]:
        group, line = self.lines.get()
        if "over" in line:
            del self.processes[group.key]
        return group, line

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for thread in self._listening:  # which read the logs of what has ended
            thread.join(10)

    def _listen(self, group: Group[R], process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        try:
            with process.stdout:
                for text in process.stdout:
                    if (line := reported(text)) is not None:
                        self.lines.put((group, line))
        finally:  # without this line the study would wait for ever
            self.lines.put((group, {"over": without_result(process.wait(), _text_of(group.log))}))


def _text_of(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return str(error)


def without_result(code: int, log: str) -> str:
    """Why a run whose process ended with that exit code and that stderr has no result."""
    return f"the process ended with {code} (−9: killed, often for its memory). {log[-500:]}".strip()


def reported(text: str) -> Line | None:
    """A line that `runner.report` printed; None for what libraries print."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    shapes = ({"step", "steps", "loss"}, {"skipped", "reason"}, {"run", "ended"})
    return line if isinstance(line, dict) and any(keys <= line.keys() for keys in shapes) else None
