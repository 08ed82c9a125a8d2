"""What the next commands read, left in the advisor's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from halka.advisor.conditions import best_asked
from halka.advisor.folder import HELD_OUT, HELD_OUT_SHOWN, SHOWN, TRAIN, Kept
from halka.advisor.questions import Questions
from halka.advisor.request import Need, Sample
from halka.advisor.rows import rows, with_passages
from halka.evaluation.metrics import Score


def leave_examples(kept: Kept, sample: Sample) -> None:
    """The examples as they were split."""
    kept.write_rows(TRAIN, rows(sample.given))
    kept.write_rows(HELD_OUT, rows(sample.held_out))


def leave_prompts(kept: Kept, name: str, questions: Questions, scores: Mapping[str, Score]) -> None:
    """The held-out examples as the base is best asked, if it was."""
    if scores:
        best = best_asked(scores)
        kept.write_rows(name, rows(questions.put(each, best) for each in questions.held_out))


def leave_passages(kept: Kept, sample: Sample, questions: Questions, progress: Callable[[str], None]) -> None:
    """All examples with their passages; to find them takes a while."""
    for name, examples in ((SHOWN, sample.given), (HELD_OUT_SHOWN, questions.held_out)):
        kept.write_rows(name, with_passages(questions, examples, progress))


def train_flags(need: Need, sample: Sample, folder: Path) -> tuple[str, ...]:
    """How `halka train` names the data: as they were split, where they were split here."""
    if not sample.split_off:
        return need.flags
    kind = need.flags[need.flags.index("--kind") :][:2] if "--kind" in need.flags else ()
    return ("--data", str(folder / TRAIN), "--validation", str(folder / HELD_OUT), *kind)
