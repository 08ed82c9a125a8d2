"""Progress on stderr: bars where that is a terminal, plain lines where it is not."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn
from rich.table import Column
from rich.text import Text

from halka.cli.command import say
from halka.report.units import duration, size
from halka.util.text import one_line

if TYPE_CHECKING:
    from rich.progress import TaskID

    from halka.studies.runner import Event
    from halka.training import Step

PAUSE = 2.0  # seconds between two lines on one probe
LINES = 20  # at most so many lines a run, evaluations aside
WORTH_SAYING = 0.005  # of the tokens; less is what follows the last labels of long examples


class _Bars:
    """A block that shows bars, if stderr is a terminal."""

    def __init__(self, *columns: ProgressColumn):
        self.bars: Progress | None = None
        if sys.stderr.isatty():
            self.bars = Progress(*columns, console=Console(stderr=True, highlight=False, markup=False))

    def __enter__(self) -> Any:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def tell(self, text: str) -> None:
        """Print a line above the bars."""
        if self.bars is not None:
            self.bars.console.print(text, soft_wrap=True)
        else:
            say(text)


class _TextColumn(ProgressColumn):
    """One of a bar's texts in one line, cut at the terminal's width."""

    def __init__(self, field: str):
        super().__init__()
        self.field = field

    def render(self, task: Any) -> Text:
        return Text(task.fields[self.field], no_wrap=True, overflow="ellipsis")


def _bar() -> tuple[ProgressColumn, ProgressColumn]:
    return BarColumn(bar_width=16, table_column=Column(no_wrap=True)), MofNCompleteColumn(
        table_column=Column(no_wrap=True)
    )


class StepProgress(_Bars):
    """The steps of a training run, or of several that are trained together; `named`: with their names."""

    def __init__(self, *, named: bool = False) -> None:
        super().__init__(_TextColumn("name"), *_bar(), _TextColumn("text"))
        self.named = named
        self.tasks: dict[str, TaskID] = {}
        self.validations: dict[str, str] = {}

    def step(self, step: Step, name: str = "") -> None:
        """Show a step."""
        if step.validation is not None:
            score = "" if step.score is None else f", score {step.score:.4f}"
            self.validations[name] = f", validation {step.validation:.4f}{score}{' (best)' if step.best else ''}"
        left = duration((step.steps - step.step) * step.seconds / step.step)
        speed = f"{step.tokens_per_second:.0f} tokens/s"
        if step.saved is not None and step.saved >= WORTH_SAYING:
            speed += f" ({step.saved:.0%} of them saved by packing)"
        text = f"{left} left, loss {step.loss:.4f}{self.validations.get(name, '')}, {speed}, {size(step.memory)}"
        if self.bars is None:
            every = -(-step.steps // LINES)
            if step.step in (1, step.steps) or step.step % every == 0 or step.validation is not None:
                say(f"{name + ': ' if self.named else ''}step {step.step}/{step.steps}: {text}")
        elif name not in self.tasks:
            shown = name if self.named else ""
            self.tasks[name] = self.bars.add_task("", completed=step.step, total=step.steps, name=shown, text=text)
        else:
            self.bars.update(self.tasks[name], completed=step.step, text=text)

    def scored(self, name: str, count: int, total: int) -> None:
        """Show, beside the bar of a run, that so many of its validation examples are answered for a score."""
        if self.bars is not None and name in self.tasks:
            self.bars.update(self.tasks[name], text=f"scoring: {count} of {total} validation examples")


class CountProgress(_Bars):
    """A count of one kind of thing, of a total that may be unknown (None)."""

    def __init__(self, what: str, total: int | None) -> None:
        super().__init__(_TextColumn("name"), *_bar())
        self.what, self.total = what, total
        self.task = self.bars.add_task("", total=total, name=what) if self.bars is not None else None

    def done(self, count: int) -> None:
        """Show that `count` are done."""
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, completed=count)
        elif self.total is not None and (count == self.total or count % -(-self.total // LINES) == 0):
            say(f"{self.what}: {count} of {self.total}")


class RunsProgress(_Bars):
    """The runs of an experiment: one bar for all, one for each under way, and a line for each that ended."""

    def __init__(self) -> None:
        super().__init__(_TextColumn("name"), *_bar(), _TextColumn("text"))
        self.all: TaskID | None = None
        self.running: dict[str, TaskID] = {}

    def event(self, event: Event) -> None:
        """Show what happened to a run."""
        if event.kind != "step" and (self.bars is None or event.kind != "started"):
            text = f": {one_line(event.message)}" if event.message else ""
            node = f" on {event.node}" if event.kind == "started" and event.node else ""
            self.tell(f"[{event.done}/{event.total}] {event.kind} {event.run}{node}{text}")
        if self.bars is None:
            self._tell_of(event)
            return
        if self.all is None:
            self.all = self.bars.add_task("", name="all runs", total=event.total, text="")
        self.bars.update(self.all, completed=event.done, total=event.total)
        if event.kind == "started":
            self.running[event.run] = self.bars.add_task("", name=event.run, total=None, text="")
        elif event.run in self.running:
            task = self.running[event.run]
            if event.kind == "step":
                texts = ("" if event.loss is None else f"loss {event.loss:.4f}", event.node)
                text = ", ".join(filter(None, texts))
                self.bars.update(task, completed=event.step, total=event.steps, text=text)
            else:
                self.bars.remove_task(self.running.pop(event.run))

    def _tell_of(self, event: Event) -> None:
        """A quarter of a run's steps at a time, where there are no bars."""
        if event.kind == "step" and event.step and event.steps and event.step % -(-event.steps // 4) == 0:
            text = "" if event.loss is None else f", loss {event.loss:.4f}"
            node = f" on {event.node}" if event.node else ""
            self.tell(f"[{event.done}/{event.total}] step {event.step}/{event.steps} of {event.run}{node}{text}")


class TokensProgress:
    """Called with how many of how many examples are tokenized: prints a line at most each `pause` seconds."""

    def __init__(self, pause: float | None = None) -> None:
        self._pause = (PAUSE if sys.stderr.isatty() else 10 * PAUSE) if pause is None else pause
        self._at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._at >= self._pause:
            self._at = now
            say(f"tokenizing: {done:,} of {total:,} examples")


class ProbesProgress:
    """Called with what a probe does: prints a line, at most one in a while unless the probe changes."""

    def __init__(self) -> None:
        self._probe, self._at = "", 0.0

    def __call__(self, probe: str, activity: str) -> None:
        now = time.monotonic()
        if probe == self._probe and now - self._at < (PAUSE if sys.stderr.isatty() else 10 * PAUSE):
            return
        self._probe, self._at = probe, now
        say(f"{probe}: {activity}")
