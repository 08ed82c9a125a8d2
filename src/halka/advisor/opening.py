"""The base as the probes ask it: loaded, with the examples that it can read and with what finds passages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from halka.advisor.conditions import Find, usable
from halka.advisor.folder import COLLECTION
from halka.advisor.questions import Questions
from halka.advisor.request import Need, Sample
from halka.core import AdaptedModel
from halka.data.examples import Example
from halka.models import adapt
from halka.models.kinds import usual_kind
from halka.models.layouts import LAYOUTS
from halka.models.loading import base_config, load_base
from halka.rag.collection import Collection
from halka.rag.passages import Passage
from halka.rag.retrieve import Retriever
from halka.rag.sources import listed, taken_in
from halka.util.errors import HalkaError

Progress = Callable[[str, str], None]


def decoder_config(base: str) -> Any:
    """The configuration of a base that makes texts. Raises ValueError for another, and as `base_config` does."""
    config = base_config(base)
    layout = LAYOUTS.get(config.model_type)
    if usual_kind(config) != "causal-lm" or (layout is not None and not layout.causal):
        raise HalkaError(f"{base} does not make texts from left to right: the advisor asks language models")
    return config


def opened(need: Need, sample: Sample, folder: Path, progress: Progress) -> tuple[Questions, int, dict[str, str]]:
    """The base with all that can be asked of it; the number of documents; what cannot be used, and why.

    Raises ValueError where no example is left, and as `load_base` does.
    """
    missing: dict[str, str] = {}
    progress("base", f"loading {need.base}")
    model = adapt(*load_base(need.base, dtype=cast(Any, need.dtype), quantize=cast(Any, need.quantize)))
    train, held_out = (_used(model, each, missing) for each in (sample.train, sample.held_out))
    find, documents = _finding(need, folder, missing, progress) if need.documents else (None, 0)
    asked = Questions(model, train, held_out, sample.metric, need.max_new_tokens, find)
    return _that_fit(asked, missing), documents, missing


def _used(model: AdaptedModel, examples: Sequence[Example], missing: dict[str, str]) -> tuple[Example, ...]:
    """Those that are `usable`; others are told. Raises ValueError where none is left."""
    kept, problems = usable(model, examples)
    if problems:
        lost = f"{len(problems)} of {len(examples)} examples cannot be used with this base, the first: "
        missing.setdefault("examples", lost + str(problems[0]))
    return tuple(examples[index] for index in kept)


def _that_fit(questions: Questions, missing: dict[str, str]) -> Questions:
    """Without the held-out examples that the base's context does not hold. Raises ValueError if that is all."""
    held = tuple(each for each in questions.held_out if questions.fits(each))
    if lost := len(questions.held_out) - len(held):
        missing["held-out examples"] = f"{lost} of {len(questions.held_out)} are longer than the base's context"
    if not held:
        raise HalkaError(
            f"none of {lost} held-out examples fits the base's context with {questions.max_new_tokens} new tokens: "
            "shorten them, or lower max_new_tokens"
        )
    return replace(questions, held_out=held)


def _finding(need: Need, folder: Path, missing: dict[str, str], progress: Progress) -> tuple[Find | None, int]:
    """What finds passages, None where no document can be read; and the number of documents."""
    collection = Collection(folder / COLLECTION)
    for number, event in enumerate(taken_in(collection, *listed(need.documents), folder), start=1):
        progress("documents", f"{number} taken in: {event.document}")
    documents = len(collection.documents())
    if not documents:
        missing["documents"] = f"{', '.join(need.documents)}: there is none that can be read"
        return None, 0
    retriever, known = Retriever(collection), dict[str, list[Passage]]()

    def find(question: str) -> list[Passage]:
        if question not in known:
            known[question] = [hit.passage for hit in retriever.search(question, need.passages)]
        return known[question]

    return find, documents
