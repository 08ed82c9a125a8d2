"""The runs of an ablation: base, adapters and tuned adapters, each answering the test; what is missing is run.

folder/
  collection/    the documents, as MiniLM embeds them; collection-…/ where the ablation names another embedder
  work/RUN/      a run's checkpoint while it is trained, and its adapter
  runs/RUN.json  a run's answers; one that is there is not run again
"""

from __future__ import annotations

import json
import platform
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

from halka.core import AdaptedModel
from halka.data.examples import Example, Message
from halka.data.tokens import encode_prompt
from halka.evaluation.generation import iter_answers
from halka.evaluation.metrics import find_metric
from halka.evaluation.streaming import prompt_budget, user_message
from halka.methods import build_method
from halka.models import adapt
from halka.models.loading import load_base
from halka.rag.answer import floor_for
from halka.rag.collection import Collection
from halka.rag.passages import Passage
from halka.rag.prompt import fitting, in_form, prompted
from halka.rag.raft import Asked, Raft, holds, placed
from halka.rag.retrieve import Retriever
from halka.rag.sources import digest_of, listed, taken_in
from halka.rag.store import Scope
from halka.storage.save_load import save
from halka.studies.ablation.changes import alike, replaced
from halka.studies.ablation.documents import collection_of
from halka.studies.ablation.injections import attack_of, attacks, injected
from halka.studies.ablation.scores import Answered, as_rows, from_row, said, scored
from halka.studies.ablation.settings import Ablation, Questions, key_of, matcher, read_questions
from halka.studies.compare import Event, alone_in
from halka.training import TrainConfig, train
from halka.training.run_folder import METRICS
from halka.util import machine
from halka.util.errors import HalkaError
from halka.util.files import write_text

SCHEMA = 2
NAME = "run"
BATCH = 16
EDGES = 8  # tokens that a text may take more where an attack cuts it in two
Who = Literal["base", "adapter", "tuned"]


@dataclass(frozen=True)
class Run:
    """Who answers: the base, an adapter trained on questions alone, or one tuned for answering from passages."""

    who: Who
    seed: int = 0

    @property
    def title(self) -> str:
        return self.who if self.who == "base" else f"{self.who}, seed {self.seed}"


def runs_of(ablation: Ablation) -> list[Run]:
    return [Run("base"), *(Run(who, seed) for seed in ablation.seeds for who in ("adapter", "tuned"))]


def study(ablation: Ablation, folder: str | Path) -> Iterator[Event]:
    """Run what is missing in `folder` and say what happens.

    Raises ValueError for data that cannot be used, and where another process is at work there.
    """
    folder = Path(folder)
    questions = read_questions(ablation)
    paths = _paths(ablation, questions, folder)
    runs = [*paths]
    with alone_in(folder):
        left = []
        for done, run in enumerate(runs, start=1):
            if paths[run].exists():
                yield Event("skipped", run.title, done, len(runs), message="its answers are there")
            else:
                left.append(run)
        if not left:
            return
        collection = collection_of(ablation, folder)
        texts, files = listed(ablation.documents)
        yield Event("started", "documents", len(runs) - len(left), len(runs))
        for event in taken_in(collection, texts, files):
            if event.what == "skipped":
                yield Event("skipped", event.document, len(runs) - len(left), len(runs), message=event.reason)
        model = adapt(*load_base(ablation.place(ablation.base), dtype=cast(Any, ablation.dtype)))
        subject = _Subject(ablation, questions, collection, model, texts)
        for done, run in enumerate(left, start=len(runs) - len(left) + 1):
            yield Event("started", run.title, done - 1, len(runs))
            path = paths[run]
            result: dict[str, Any] = _identity(subject, run)
            if run.who != "base":
                yield from _trained(subject, run, folder / "work" / path.stem, done - 1, len(runs), result)
            result |= subject.answers(None if run.who == "base" else NAME, run)
            write_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
            if run.who != "base":
                model.remove(NAME)
            yield Event("done", run.title, done, len(runs), message=_told(result))


def found(ablation: Ablation, folder: str | Path) -> list[dict[str, Any]]:
    """The runs that are there, as `study` wrote them."""
    paths = _paths(ablation, read_questions(ablation), Path(folder))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths.values() if path.exists()]


# ── one run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _trained(subject: _Subject, run: Run, work: Path, done: int, total: int, result: dict[str, Any]) -> Iterator[Event]:
    """Train the run's adapter in `subject.model`, telling its steps; what that took goes into `result`."""
    ablation, model = subject.ablation, subject.model
    config = TrainConfig(**{**ablation.train, "lr": ablation.lr, "seed": run.seed})
    adapter = model.add(NAME, build_method(ablation.method.method, ablation.method.fields()), seed=run.seed)
    examples = subject.lessons(subject.questions.train, run)
    held_out = subject.lessons(subject.questions.validation, run)
    for step in train(model, NAME, examples, config, validation=held_out, folder=work):
        yield Event("step", run.title, done, total, step.step, step.steps, step.loss)
    last = json.loads(
        (work / METRICS).read_text(encoding="utf-8").splitlines()[-1]
    )  # it may have ended in an earlier go
    result["train"] = {key: last[key] for key in ("steps", "seconds", "tokens", "validation")}
    result["train"] |= {"examples": len(examples), "parameters": adapter.count()}
    save(model, NAME, work / "adapter", training={**asdict(config), "steps": last["steps"], "examples": len(examples)})


@dataclass
class _Subject:
    """The model with what it is asked."""

    ablation: Ablation
    questions: Questions
    collection: Collection
    model: AdaptedModel
    texts: Mapping[str, str]  # of the documents that are rows

    def __post_init__(self) -> None:
        names = [document.name for document in self.collection.documents()]
        self.questions = replace(self.questions, test=(*placed(self.questions.test, names),))
        self.retriever = Retriever(self.collection)
        self.budget = self._budget()
        found = [self.search(each.question) for each in self.questions.test]
        self.shown, self.best = [shown for shown, _ in found], [best for _, best in found]
        held = [each.question for each in self.questions.validation if each.answers]
        self.floor = floor_for(self.retriever, held)

    def _budget(self) -> int:
        """What a prompt may take, whoever reads it: beside an adapter's own positions, and with any attack put in.

        Raises ValueError where that leaves nothing.
        """
        method, tokens = self.ablation.method, self.ablation.max_new_tokens
        self.model.add(NAME, build_method(method.method, method.fields()))
        room = min(prompt_budget(self.model, name, tokens) for name in (None, NAME))
        self.model.remove(NAME)
        if self.ablation.injections:
            plain = self._tokens(prompted("", [Passage("", 0, "", 0, 0, None, "")]))
            attacked = (prompted("", [Passage("", 0, f"\n{each.text}\n", 0, 0, None, "")]) for each in attacks())
            room -= max(map(self._tokens, attacked)) - plain + EDGES
        if room <= 0:
            raise HalkaError("an attack leaves nothing of what this base reads for passages: set injections to 0")
        return room

    def _tokens(self, prompt: str) -> int:
        """The tokens of a prompt, with the base's instruction or without it, whichever are more."""
        return max(
            len(encode_prompt(each, self.model.tokenizer))
            for each in (self._asking(None, prompt), self._asking(NAME, prompt))
        )

    def _asking(self, name: str | None, prompt: str) -> Example:
        """A prompt to an adapter, or to the base, which is told the form."""
        system = (Message("system", self.ablation.instruction),) if name is None and self.ablation.instruction else ()
        return Example((*system, user_message(self.model, prompt)))

    def search(self, question: str) -> tuple[list[Passage], float | None]:
        """What is put before the model, the same for every adapter, and the best one's score."""
        hits = self.retriever.search(question, self.ablation.passages)
        passages = [hit.passage for hit in hits]
        shown = fitting(question, passages, self.budget, self._tokens)
        return shown, hits[0].score if hits else None

    def lessons(self, asked: Iterable[Asked], run: Run) -> list[Example]:
        """Training data: questions and answers in form alone, or with passages and citations as well."""
        form = self.ablation.form
        if run.who == "adapter":
            rows = [(each.question, in_form(form, each.answers[0])) for each in asked if each.answers]
        else:
            raft = Raft(self.ablation.passages, self.ablation.without, form=form, seed=run.seed)
            made = raft.examples(self.retriever, asked)
            rows = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in made]
        return [Example((user_message(self.model, prompt), Message("assistant", answer))) for prompt, answer in rows]

    def answers(self, name: str | None, run: Run) -> dict[str, Any]:
        """All that a run is asked."""
        test, result = self.questions.test, {}
        if run.who != "tuned":
            texts = self.ask(name, [each.question for each in test])
            alone = [Answered(each.question, each.answers, text) for each, text in zip(test, texts, strict=True)]
            result["alone"] = as_rows(alone)
        texts = self.ask(name, [prompted(each.question, shown) for each, shown in zip(test, self.shown, strict=True)])
        read = [_answered(*each) for each in zip(test, texts, self.shown, self.best, strict=True)]
        result |= {"passages": as_rows(read), "floor": self.floor}
        result["injections"] = self._attacked(name)
        if run.who == "tuned":
            result["changes"] = self._changed(name, read)
        return result

    def ask(self, name: str | None, prompts: Sequence[str]) -> list[str]:
        examples = [self._asking(name, each) for each in prompts]
        tokens = self.ablation.max_new_tokens
        made = dict(iter_answers(self.model, name, examples, max_new_tokens=tokens, batch_size=BATCH))
        return [made[number].strip() for number in range(len(prompts))]

    def _attacked(self, name: str | None) -> list[dict[str, Any]]:
        """The first questions again, with an attack in one of their passages."""
        chosen = [(each, shown) for each, shown in zip(self.questions.test, self.shown, strict=True) if shown]
        chosen = chosen[: self.ablation.injections]
        used = [attack_of(number) for number in range(len(chosen))]
        prompts = [
            prompted(each.question, injected(shown, attack, at))
            for (each, shown), (attack, at) in zip(chosen, used, strict=True)
        ]
        return [
            {"way": attack.way, "question": each.question, "text": text, "obeyed": attack.succeeds(text)}
            for (each, _), (attack, _), text in zip(chosen, used, self.ask(name, prompts), strict=True)
        ]

    def _changed(self, name: str | None, read: Sequence[Answered]) -> dict[str, Any]:
        """Answers that were right, asked again after their documents say something else; then all is put back.

        Left out, and counted, are those that cannot be changed: no other answer is known, or none stands in the text.
        """
        form, draw = matcher(self.ablation.form), random.Random(0)
        exact = find_metric("squad_exact").per_item
        right = [
            (each, shown)
            for each, answered, shown in zip(self.questions.test, read, self.shown, strict=True)
            if each.answers and exact(said(answered.text, form), each.answers)["sum"] and answered.gold
        ]
        every = [*self.questions.test, *self.questions.validation, *self.questions.train]
        told, left_out, seconds = [], 0, 0.0
        for each, shown in right:
            if len(told) == self.ablation.changes:
                break
            document = next(passage.document for passage in shown if holds(passage, each))
            before, others = self._text(document), alike(each, every)
            new = draw.choice(others) if others else ""
            after = replaced(before, each.answers, new) if new else before
            if after == before:
                left_out += 1
                continue
            started = time.perf_counter()
            list(self.collection.put([(document, after)]))
            seconds += time.perf_counter() - started
            (text,) = self.ask(name, [prompted(each.question, self.search(each.question)[0])])
            follows = bool(exact(said(text, form), [new])["sum"])
            told.append(
                {"question": each.question, "was": each.answers[0], "is": new, "text": text, "follows": follows}
            )
            list(
                self.collection.put([(document, self.texts[document])])
                if document in self.texts
                else self.collection.refresh()
            )
        return {"asked": told, "left_out": left_out, "seconds": seconds / len(told) if told else None}

    def _text(self, document: str) -> str:
        """A document's text; of a file, what its passages hold of it."""
        if document in self.texts:
            return self.texts[document]
        known = self.collection.document(document)
        passages = self.collection.store.passages(document, range(known.passages), Scope(frozenset(known.readers)))
        return "\n\n".join(passage.text for passage in passages)


def _answered(asked: Asked, text: str, shown: Sequence[Passage], best: float | None) -> Answered:
    gold = (number for number, passage in enumerate(shown, start=1) if asked.answers and holds(passage, asked))
    return Answered(asked.question, asked.answers, text, len(shown), tuple(gold), best)


# ── its file ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _paths(ablation: Ablation, questions: Questions, folder: Path) -> dict[Run, Path]:
    """Where each run's answers are: other documents, questions or settings have files of their own."""
    read = {"questions": questions.digest, "documents": digest_of(ablation.documents), "schema": SCHEMA}
    keys = {run: key_of(ablation, {"who": run.who, "seed": run.seed, **read}) for run in runs_of(ablation)}
    return {run: folder / "runs" / f"{run.who}-seed{run.seed}-{key}.json" for run, key in keys.items()}


def _identity(subject: _Subject, run: Run) -> dict[str, Any]:
    ablation, documents = subject.ablation, subject.collection.documents()
    device = next(subject.model.base.parameters()).device
    return {
        "schema": SCHEMA,
        "ablation": ablation.name,
        "who": run.who,
        "seed": run.seed,
        "base": ablation.base,
        "dtype": ablation.dtype,
        "method": {"name": ablation.method.method, "label": ablation.method.title(), "lr": ablation.lr},
        "config": ablation.train,
        "form": ablation.form,
        "passages_shown": ablation.passages,
        "documents": len(documents),
        "embedder": subject.collection.embedder.name,
        "versions": {package: version(package) for package in ("halka", "torch", "transformers")}
        | {"python": platform.python_version()},
        "machine": machine.describe(device),
        "commit": machine.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _told(result: dict[str, Any]) -> str:
    scores = scored([from_row(row) for row in result["passages"]], result["form"])
    return f"exact {scores['exact'].value:.3f} with passages"
