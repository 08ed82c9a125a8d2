"""Examples as rows of data files, which the advised commands read: as they are, and as the pilot asks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from halka.advisor.conditions import DOCUMENTS, usable
from halka.advisor.questions import Questions
from halka.data.examples import Example

TOLD = 50  # examples after which progress is told


def rows(examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
    """The examples as data files have them."""
    for each in examples:
        yield {"messages": [asdict(message) for message in each.messages], "references": each.references}


def with_passages(
    questions: Questions, examples: Sequence[Example], progress: Callable[[str], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """The same, each question with its passages; without the examples that the base cannot be asked."""
    kept, _ = usable(questions.model, examples)
    for number, index in enumerate(kept, start=1):
        yield from rows([questions.put(examples[index], DOCUMENTS)])
        if number % TOLD == 0 or number == len(kept):
            progress(f"passages found for {number} of {len(kept)} examples")
