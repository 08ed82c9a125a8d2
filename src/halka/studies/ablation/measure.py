"""Measures an ablation's runs: train the adapter, answer the test, then attacked passages and changed facts.

The program of an ablation's runs (`halka.studies.runner`); those in one process share the base and the collection.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from halka.core import AdaptedModel
from halka.data.examples import Example, Message
from halka.data.tokens import encode_prompt
from halka.evaluation.generation import answers_of
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
from halka.rag.sources import listed, taken_in
from halka.rag.store import Scope
from halka.storage.save_load import save
from halka.studies.ablation.probes import attack_of, attacks, change_of, inject
from halka.studies.ablation.runs import FULL, SCHEMA, Run
from halka.studies.ablation.scores import Answered, answer_in, as_rows
from halka.studies.ablation.settings import Ablation, Questions, collection_of, matcher, read_questions
from halka.studies.experiment import Entry
from halka.studies.places import Result
from halka.studies.runner import origin, report, report_step, serve
from halka.training import TrainConfig, train
from halka.training.run_folder import METRICS, RunFolder
from halka.util.dtypes import dtype_name
from halka.util.errors import HalkaError

NAME = "run"
BATCH = 16
EDGES = 8  # the most tokens that a text takes more where an attack cuts it in two


def measure(runs: Sequence[Run], folders: Sequence[Path]) -> Iterator[Result]:
    """Measure runs of one ablation in turn; `folders` get adapters, and a checkpoint until the result is written.

    Data that cannot be used fails every run.
    """
    ablation = Ablation(**runs[0].ablation).at(Path(runs[0].beside))
    try:
        model = adapt(*load_base(ablation.place(ablation.base), dtype=ablation.dtype))
        subject = subject_of(ablation, Path(runs[0].folder), model)
    except HalkaError as error:
        yield from (run.failed(str(error)) for run in runs)
        return
    for number, (run, folder) in enumerate(zip(runs, folders, strict=True)):
        yield measure_run(subject, run, folder, number)
        RunFolder(folder).drop_checkpoint()


def subject_of(ablation: Ablation, folder: Path, model: AdaptedModel) -> Subject:
    """The model with the ablation's questions and documents, whose collection is in the study's folder.

    The documents are taken in, so that what a stopped process left changed is put back. Raises HalkaError for data
    that cannot be used.
    """
    collection = collection_of(ablation, folder)
    texts, files = listed(ablation.documents)
    for event in taken_in(collection, texts, files):
        if event.what == "skipped":
            report(skipped=event.document, reason=event.reason)
    return Subject(ablation, read_questions(ablation), collection, model, texts)


def measure_run(subject: Subject, run: Run, folder: Path, number: int = 0) -> Result:
    """Train the run's adapter, if it has one, and answer; `number` is the run's in the reports of this process."""
    result = _identity(subject, run)
    if run.who == "base":
        return result | subject.answers(None, run)
    try:
        result["train"] = _train(subject, run, folder, number)
        return result | subject.answers(NAME, run)
    finally:
        subject.model.remove(NAME)


def _train(subject: Subject, run: Run, folder: Path, number: int) -> dict[str, Any]:
    """Train the run's adapter, or all weights, in `subject.model`, report its steps and save it; what training took."""
    ablation, model = subject.ablation, subject.model
    entry = _entry(ablation, run)
    config = TrainConfig(**{**ablation.train, "lr": entry.rates()[0], "seed": run.seed})
    adapter = model.add(NAME, build_method(entry.method, entry.fields()), seed=run.seed)
    examples = subject.lessons(subject.questions.train, run)
    held_out = subject.lessons(subject.questions.validation, run)
    for step in train(model, NAME, examples, config, validation=held_out, folder=folder):
        report_step(step, number)
    metrics = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    last = json.loads(metrics[-1])  # not the last step's own: training may have ended in an earlier process
    training = {**asdict(config), "steps": last["steps"], "examples": len(examples)}
    save(model, NAME, folder / "adapter", training=training)
    took = {key: last[key] for key in ("steps", "seconds", "tokens", "validation")}
    return took | {"examples": len(examples), "parameters": adapter.count()}


def _entry(ablation: Ablation, run: Run) -> Entry:
    """The method that the run trains, with its one rate."""
    full = ablation.full if run.who in FULL else None
    return full or ablation.method


def _identity(subject: Subject, run: Run) -> Result:
    ablation, entry = subject.ablation, _entry(subject.ablation, run)
    return {
        "schema": SCHEMA,
        "status": "done",
        "ablation": ablation.name,
        "who": run.who,
        "seed": run.seed,
        "base": ablation.base,
        "dtype": dtype_name(str(subject.model.base.dtype)),
        "method": {"name": entry.method, "label": entry.title(), "lr": entry.rates()[0]},
        "config": ablation.train,
        "form": ablation.form,
        "passages_shown": ablation.passages,
        "documents": len(subject.collection.documents()),
        "embedder": subject.collection.embedder.name,
        **origin(next(subject.model.base.parameters()).device),
    }


class Subject:
    """A model with an ablation's questions and, for each of the test's, the passages that every run gets."""

    def __init__(
        self,
        ablation: Ablation,
        questions: Questions,
        collection: Collection,
        model: AdaptedModel,
        texts: Mapping[str, str],  # of the documents that are rows
    ):
        self.ablation, self.collection, self.model, self.texts = ablation, collection, model, texts
        names = [document.name for document in collection.documents()]
        self.questions = replace(questions, test=(*placed(questions.test, names),))
        self.retriever = Retriever(collection)
        self.budget = self._budget()
        searched = [self.search(asked.question) for asked in self.questions.test]
        self.shown, self.best = [shown for shown, _ in searched], [best for _, best in searched]
        answerable = [asked.question for asked in self.questions.validation if asked.answers]
        self.floor = floor_for(self.retriever, answerable)

    def _budget(self) -> int:
        """The tokens that a prompt may have for base and adapter alike, with room for any attack.

        Raises HalkaError where that leaves none.
        """
        method, tokens = self.ablation.method, self.ablation.max_new_tokens
        self.model.add(NAME, build_method(method.method, method.fields()))
        room = min(prompt_budget(self.model, name, tokens) for name in (None, NAME))
        self.model.remove(NAME)
        if self.ablation.injections:
            plain = self._tokens(prompted("", [Passage("", 0, "", 0, 0, None, "")]))
            attacked = (prompted("", [Passage("", 0, f"\n{attack.text}\n", 0, 0, None, "")]) for attack in attacks())
            room -= max(map(self._tokens, attacked)) - plain + EDGES
        if room <= 0:
            raise HalkaError("an attack leaves nothing of what this base reads for passages: set injections to 0")
        return room

    def _tokens(self, prompt: str) -> int:
        """The tokens of a prompt, with the base's instruction or without it, whichever are more."""
        return max(
            len(encode_prompt(example, self.model.tokenizer))
            for example in (self._asking(None, prompt), self._asking(NAME, prompt))
        )

    def _asking(self, name: str | None, prompt: str) -> Example:
        """The prompt for an adapter, or for the base, whose system message says the form of an answer."""
        system = (Message("system", self.ablation.instruction),) if name is None and self.ablation.instruction else ()
        return Example((*system, user_message(self.model, prompt)))

    def search(self, question: str) -> tuple[list[Passage], float | None]:
        """The passages for a question that fit into a prompt, the same for every run, and the best one's score."""
        hits = self.retriever.search(question, self.ablation.passages)
        passages = [hit.passage for hit in hits]
        shown = fitting(question, passages, self.budget, self._tokens)
        return shown, hits[0].score if hits else None

    def lessons(self, asked: Iterable[Asked], run: Run) -> list[Example]:
        """The run's training examples: answers in the form; where it is tuned, from passages and with citations."""
        template = self.ablation.form
        if not run.is_tuned:
            rows = [(one.question, in_form(template, one.answers[0])) for one in asked if one.answers]
        else:
            raft = Raft(self.ablation.passages, self.ablation.without, form=template, seed=run.seed)
            examples = raft.examples(self.retriever, asked)
            rows = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in examples]
        return [Example((user_message(self.model, prompt), Message("assistant", answer))) for prompt, answer in rows]

    def answers(self, name: str | None, run: Run) -> dict[str, Any]:
        """The run's answers: to the test alone and with passages, with attacks, and after changes of facts."""
        test, result = self.questions.test, {}
        if not run.is_tuned:
            texts = self.ask(name, [asked.question for asked in test])
            alone = [Answered(asked.question, asked.answers, text) for asked, text in zip(test, texts, strict=True)]
            result["alone"] = as_rows(alone)
        texts = self.ask(name, [prompted(asked.question, shown) for asked, shown in zip(test, self.shown, strict=True)])
        read = [_answered(*row) for row in zip(test, texts, self.shown, self.best, strict=True)]
        result |= {"passages": as_rows(read), "floor": self.floor}
        result["injections"] = self._attacked(name)
        if run.is_tuned:
            result["changes"] = self._changed(name, read)
        return result

    def ask(self, name: str | None, prompts: Sequence[str]) -> list[str]:
        """The model's answers to the prompts, in their order."""
        examples = [self._asking(name, prompt) for prompt in prompts]
        tokens = self.ablation.max_new_tokens
        answers = answers_of(self.model, name, examples, max_new_tokens=tokens, batch_size=BATCH)
        return [answer.strip() for answer in answers]

    def _attacked(self, name: str | None) -> list[dict[str, Any]]:
        """The first questions again, with an attack in one of their passages."""
        chosen = [(asked, shown) for asked, shown in zip(self.questions.test, self.shown, strict=True) if shown]
        chosen = chosen[: self.ablation.injections]
        used = [attack_of(number) for number in range(len(chosen))]
        prompts = [
            prompted(asked.question, inject(shown, attack, at))
            for (asked, shown), (attack, at) in zip(chosen, used, strict=True)
        ]
        return [
            {"way": attack.way, "question": asked.question, "text": text, "obeyed": attack.succeeds(text)}
            for (asked, _), (attack, _), text in zip(chosen, used, self.ask(name, prompts), strict=True)
        ]

    def _changed(self, name: str | None, read: Sequence[Answered]) -> dict[str, Any]:
        """Change the documents of right answers, ask again whether the answer follows, and put the documents back.

        Left out, and counted, are facts that cannot be changed: no other answer fits, or none stands in the text.
        """
        pattern, draw = matcher(self.ablation.form), random.Random(0)
        exact = find_metric("squad_exact").per_item
        right = [
            (asked, shown)
            for asked, answered, shown in zip(self.questions.test, read, self.shown, strict=True)
            if asked.answers and exact(answer_in(answered.text, pattern), asked.answers)["sum"] and answered.gold
        ]
        questions = [*self.questions.test, *self.questions.validation, *self.questions.train]
        changed, left_out, seconds = [], 0, 0.0
        for asked, shown in right:
            if len(changed) == self.ablation.changes:
                break
            document = next(passage.document for passage in shown if holds(passage, asked))
            change = change_of(asked, self._text(document), questions, draw)
            if change is None:
                left_out += 1
                continue
            new, after = change
            started = time.perf_counter()
            list(self.collection.put([(document, after)]))
            seconds += time.perf_counter() - started
            (text,) = self.ask(name, [prompted(asked.question, self.search(asked.question)[0])])
            follows = bool(exact(answer_in(text, pattern), [new])["sum"])
            changed.append(
                {"question": asked.question, "was": asked.answers[0], "is": new, "text": text, "follows": follows}
            )
            own = self.texts.get(document)
            list(self.collection.refresh() if own is None else self.collection.put([(document, own)]))
        return {"asked": changed, "left_out": left_out, "seconds": seconds / len(changed) if changed else None}

    def _text(self, document: str) -> str:
        """A document's text; of a file, the text of its passages."""
        if document in self.texts:
            return self.texts[document]
        entry = self.collection.document(document)
        passages = self.collection.store.passages(document, range(entry.passages), Scope(frozenset(entry.readers)))
        return "\n\n".join(passage.text for passage in passages)


def _answered(asked: Asked, text: str, shown: Sequence[Passage], best: float | None) -> Answered:
    gold = (number for number, passage in enumerate(shown, start=1) if asked.answers and holds(passage, asked))
    return Answered(asked.question, asked.answers, text, len(shown), tuple(gold), best)


def main(arguments: Sequence[str]) -> int:
    return serve(arguments, lambda fields: Run(**fields), measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
