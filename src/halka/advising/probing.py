"""`probe`: the probes in their order, within a time, each kept on the disk as soon as it is done.

folder/
  strength.json, knowledge.json, learnability.json, cleanliness.json, fit.json   a probe's result, and of what it is
  sizes.json      how many examples the time allowed
  pilot/          the pilot's checkpoints, while it is trained
  documents/      the collection, which `halka ask --collections FOLDER --collection documents` can go on with
  prompted.jsonl, questions.jsonl   the held-out examples as the base is best asked, and the training questions
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

from halka.advising.cleanliness import cleanliness
from halka.advising.commands import ASKED, COLLECTION, PROMPTED
from halka.advising.conditions import CLOSED, Find, question_of
from halka.advising.evidence import Cleanliness, Evidence, Fit, Knowledge, Learnability, Strength, Subject, restored
from halka.advising.fitting import fit
from halka.advising.knowledge import knowledge
from halka.advising.learning import ALL_WEIGHTS, PLANS, learnability
from halka.advising.questions import Questions
from halka.advising.strength import strength
from halka.advising.worth import usual_metric
from halka.core import AdaptedModel
from halka.data.examples import Example
from halka.data.task import split_off
from halka.data.tokens import encode_all
from halka.estimating import estimate
from halka.files import write_text
from halka.machine import available
from halka.models import adapt
from halka.models.loading import load_base
from halka.rag.collection import Collection
from halka.rag.passages import Passage
from halka.rag.retrieve import Retriever
from halka.rag.sources import digest_of, listed, taken_in
from halka.run import TrainingError

PROBES = ("fit", "cleanliness", "strength", "knowledge", "learnability")
PILOT, SIZES = "pilot", "sizes.json"
MOST_HELD_OUT, LEAST_HELD_OUT, MOST_TRAIN = 48, 16, 512
ASKING = 0.35  # share of the time for making answers; the rest is the pilot's
TRIED = 8  # examples that tell how long an answer takes
SCHEMA = 1
T = TypeVar("T")
Progress = Callable[[str, str], None]
"""Is told of which probe, and what it does."""


@dataclass(frozen=True)
class Need:
    """What is asked about, and for whom.

    train, held_out     examples that end with their answer; without held-out ones some of the others are held out
    metric              what answers are worth; without one it follows from how they look
    documents           files, folders, and .jsonl files of rows with "name" and "text"
    target              the score that is needed, as a share of the metric's range
    tasks               how many such tasks there are, for storage and serving
    memory, device      bytes of the GPU, or a named device, that is to train it; else this machine
    full                whether full fine-tuning is tried, too: it needs memory for all of its gradients and moments
    passages            how many a prompt holds
    data, flags         what the data are called, and how commands name them
    """

    base: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...] = ()
    metric: str | None = None
    max_new_tokens: int = 64
    documents: tuple[str, ...] = ()
    target: float | None = None
    tasks: int = 1
    memory: int | None = None
    device: str | None = None
    dtype: str = "bfloat16"
    quantize: str | None = None
    full: bool = False
    passages: int = 3
    batch_size: int = 8
    data: str = "data"
    flags: tuple[str, ...] = ()


def probe(
    need: Need,
    folder: str | Path,
    *,
    minutes: float = 10.0,
    skip: Sequence[str] = (),
    progress: Progress = lambda probe, doing: None,
) -> Evidence:
    """Run the probes that are not in `folder` yet; those of other data, base or settings are run anew.

    minutes   about how long the base may be asked and trained; loading and taking in documents come on top
    skip      probes of `PROBES` to leave out

    Raises ValueError for a probe that there is not, for data that cannot be used, and as `load_base` does.
    """
    if unknown := {*skip} - {*PROBES}:
        raise ValueError(f"there is no probe {', '.join(sorted(unknown))}: they are {', '.join(PROBES)}")
    if minutes <= 0:
        raise ValueError(f"minutes must be above 0, not {minutes}")
    return _Probing(need, Path(folder), 60 * minutes, frozenset(skip), progress).evidence()


@dataclass
class _Probing:
    need: Need
    folder: Path
    seconds: float
    skip: frozenset[str]
    progress: Progress
    missing: dict[str, str] = field(default_factory=dict)

    def evidence(self) -> Evidence:
        train, held_out, split = _split(self.need)
        metric = self.need.metric or usual_metric([each.answers[0] for each in (*train, *held_out)])
        self.key = self._digest(train, held_out, metric)
        for name in self.skip:
            self.missing[name] = "skipped"
        clean = self._kept("cleanliness", Cleanliness, lambda: cleanliness(train, held_out))
        lacking = self._too_large()
        model, questions = None, None
        if lacking is None and not {"strength", "knowledge", "learnability"} <= self.skip:
            self.progress("base", f"loading {self.need.base}")
            model = self._loaded()
            questions = Questions(model, train[:MOST_TRAIN], held_out, metric, self.need.max_new_tokens)
            questions = self._with_documents(questions)
            questions = self._sized(self._that_fit(questions))
        elif lacking is not None:
            self.missing |= dict.fromkeys(("strength", "knowledge", "learnability"), lacking)
        length = self._length(model, train)
        hardware = self._kept("fit", Fit, lambda: self._fit(length))
        found: dict[str, Any] = {"strength": None, "knowledge": None, "learnability": None}
        if questions is not None:
            found = self._asked(questions)
        subject = Subject(
            base=self.need.base,
            parameters=0 if model is None else sum(each.numel() for each in model.base.parameters()),
            data=self.need.data,
            train=len(train),
            held_out=len(held_out if questions is None else questions.held_out),
            metric=metric,
            length=length,
            split_off=split,
            documents=0 if questions is None or questions.find is None else self.documents,
            paths=self.need.documents,
            flags=self.need.flags,
            out=str(self.folder),
            tasks=self.need.tasks,
            target=self.need.target,
        )
        return Evidence(subject, cleanliness=clean, fit=hardware, missing=self.missing, **found)

    # ── what is asked of the base ───────────────────────────────────────────────────────────────────────────────

    def _loaded(self) -> AdaptedModel:
        base, tokenizer = load_base(self.need.base, dtype=self.need.dtype, quantize=self.need.quantize)
        model = adapt(base, tokenizer)
        if model.labels or not hasattr(base, "generate"):
            raise ValueError(f"{self.need.base} does not make texts: the advisor asks language models")
        return model

    def _asked(self, questions: Questions) -> dict[str, Any]:
        """The probes that ask the base, in the time there is."""
        started = time.perf_counter()

        def told(probe: str) -> Callable[[str], None]:
            return lambda doing: self.progress(probe, doing)

        strong = self._kept("strength", Strength, lambda: strength(questions, told("strength")))
        self._leave(questions, strong)
        known = self._kept("knowledge", Knowledge, lambda: knowledge(questions, told("knowledge")))

        def pilot() -> Learnability:
            left = self.seconds - (time.perf_counter() - started) - self.one * len(questions.held_out) * len(PLANS)
            return learnability(
                questions,
                max(left, (1 - ASKING) * self.seconds / 2),
                batch_size=self.need.batch_size,
                checkpointing=self._is_tight(questions),
                plans=(*PLANS, ALL_WEIGHTS) if self.need.full else PLANS,
                folder=self.folder / PILOT / self.key,
                progress=told("learnability"),
            )

        learned = None
        try:
            learned = self._kept("learnability", Learnability, pilot)
        except TrainingError as error:
            self.missing["learnability"] = f"training failed: {error}"
        rmtree(self.folder / PILOT, ignore_errors=True)
        return {"strength": strong, "knowledge": known, "learnability": learned}

    def _that_fit(self, questions: Questions) -> Questions:
        """Without the held-out examples that the base's context does not hold. Raises ValueError if that is all."""
        fit = tuple(each for each in questions.held_out if questions.fits(each))
        if lost := len(questions.held_out) - len(fit):
            self.missing["held-out examples"] = (
                f"{lost} of {len(questions.held_out)} are longer than the base's context"
            )
        if not fit:
            raise ValueError(
                f"none of {lost} held-out examples fits the base's context with {questions.max_new_tokens} new tokens: "
                "shorten them, or lower max_new_tokens"
            )
        return replace(questions, held_out=fit)

    def _is_tight(self, questions: Questions) -> bool:
        """Whether the trials' batches together would not fit here."""
        config, length = questions.model.base.config, self._length(questions.model, questions.train)
        told = estimate(config, ["lora"], batch_size=self.need.batch_size * len(PLANS), length=length)
        memory = told.rows[0].memory
        assert memory is not None
        return memory.total + told.process > available()

    def _leave(self, questions: Questions, strong: Strength | None) -> None:
        """What the next commands read."""
        best = CLOSED if strong is None else max(strong.scores, key=lambda each: strong.scores[each].value)
        rows = [questions.put(each, best) for each in questions.held_out]
        told = [
            {"messages": [asdict(message) for message in each.messages], "references": each.answers} for each in rows
        ]
        _write_rows(self.folder / PROMPTED, told)
        asked = [{"question": question_of(each), "answers": each.answers} for each in questions.train]
        _write_rows(self.folder / ASKED, asked)

    def _sized(self, questions: Questions) -> Questions:
        """As many held-out examples as the time allows; those of an earlier go, if there was one."""
        held_out = questions.held_out[:MOST_HELD_OUT]
        started = time.perf_counter()
        questions.answers(None, [questions.put(each, CLOSED) for each in held_out[:TRIED]])
        self.one = (time.perf_counter() - started) / min(TRIED, len(held_out))
        path = self.folder / SIZES
        if (known := _read(path)).get("key") == self.key:
            return questions.first(known["held_out"])
        asked = 3 + len(PLANS) + (0 if questions.find is None else 8)  # closed ones; with examples they cost twice
        count = max(LEAST_HELD_OUT, int(ASKING * self.seconds / (self.one * asked)))
        write_text(path, json.dumps({"key": self.key, "held_out": min(count, len(held_out))}) + "\n")
        return questions.first(min(count, len(held_out)))

    def _with_documents(self, questions: Questions) -> Questions:
        if not self.need.documents:
            return questions
        texts, files = listed(self.need.documents)
        collection = Collection(self.folder / COLLECTION)
        for number, event in enumerate(taken_in(collection, texts, files), start=1):
            self.progress("documents", f"{number} taken in: {event.document}")
        self.documents = len(collection.documents())
        if not self.documents:
            raise ValueError(f"{', '.join(self.need.documents)}: no document that can be read")
        return replace(questions, find=_finding(collection, self.need.passages))

    # ── what is asked of the configuration ──────────────────────────────────────────────────────────────────────

    def _too_large(self) -> str | None:
        """Why the base cannot be asked on this machine; None if it can."""
        told = estimate(
            self.need.base, ["prompt"], batch_size=1, length=8, dtype=self.need.dtype, quantize=self.need.quantize
        )
        room = available()
        if told.base_bytes <= room:
            return None
        return f"the base takes {told.base_bytes / 1e9:.1f} GB where {room / 1e9:.1f} are free here"

    def _fit(self, length: int) -> Fit:
        return fit(
            self.need.base,
            length=length,
            batch_size=self.need.batch_size,
            tasks=self.need.tasks,
            dtype=self.need.dtype,
            memory=self.need.memory,
            device=self.need.device,
            progress=lambda doing: self.progress("fit", doing),
        )

    @staticmethod
    def _length(model: AdaptedModel | None, train: Sequence[Example]) -> int:
        """The length in tokens that nine in ten examples stay below; of a base that is not here by characters."""
        if model is None:
            lengths = [sum(len(each.content) for each in example.messages) // 3 for example in train]
        else:
            lengths = [len(each) for each in encode_all(train[:MOST_TRAIN], model.tokenizer).tokens]
        return max(16, int(statistics.quantiles([*lengths, lengths[0]], n=10)[-1]))

    # ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────

    def _kept(self, name: str, kind: type[T], run: Callable[[], T]) -> T | None:
        """A probe's result: what is there, or what it gives now; None where it is skipped."""
        if name in self.skip:
            return None
        path = self.folder / f"{name}.json"
        known = _read(path)
        if known.get("key") == self.key:
            return restored(kind, known["found"])
        self.progress(name, "begins")
        found = run()
        told = {"key": self.key, "found": asdict(found)}  # type: ignore[call-overload]
        write_text(path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        return found

    def _digest(self, train: Sequence[Example], held_out: Sequence[Example], metric: str) -> str:
        """The same for the same question, however the data are called."""
        need = asdict(replace(self.need, train=(), held_out=(), documents=(), data="", flags=(), target=None))
        read = {
            "schema": SCHEMA,
            "need": need,
            "seconds": self.seconds,
            "metric": metric,
            "train": [asdict(each) for each in train],
            "held_out": [asdict(each) for each in held_out],
            "documents": digest_of(self.need.documents) if self.need.documents else None,
        }
        return hashlib.sha256(json.dumps(read, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _split(need: Need) -> tuple[tuple[Example, ...], tuple[Example, ...], bool]:
    """What to learn from and what to be judged by, and whether the second was taken from the first."""
    if wrong := next((each for each in (*need.train, *need.held_out) if not each.answers), None):
        raise ValueError(f"{wrong.where or 'an example'} has no answer to learn or to compare with: give it one")
    if len(need.train) < 2:
        raise ValueError(f"{len(need.train)} examples tell nothing: give at least two")
    if need.held_out:
        return need.train, need.held_out, False
    train, held_out = split_off(need.train, min(MOST_HELD_OUT, round(0.25 * len(need.train))), "0/validation")
    if not train:
        raise ValueError("all examples ask the same: give some that differ, or --validation")
    return tuple(train), tuple(held_out), True


def _finding(collection: Collection, count: int) -> Find:
    retriever, known = Retriever(collection), dict[str, list[Passage]]()

    def find(question: str) -> list[Passage]:
        if question not in known:
            known[question] = [hit.passage for hit in retriever.search(question, count)]
        return known[question]

    return find


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
