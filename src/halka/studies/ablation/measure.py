"""Measures an ablation's runs: train the adapter, answer the test, then attacked passages and changed facts.

The program of an ablation's runs (`halka.studies.runner`); those in one process share the base and the collection.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from halka.core import AdaptedModel
from halka.data.examples import Example, Message
from halka.data.tokens import encode_prompt
from halka.evaluation.generation import iter_answers
from halka.evaluation.metrics import find_metric
from halka.evaluation.streaming import prompt_budget, user_message
from halka.methods import build_method
from halka.models import adapt
from halka.models.loading import load_base
from halka.models.rates import own_rate
from halka.rag.answer import floor_for
from halka.rag.collection import Collection
from halka.rag.passages import Passage
from halka.rag.prompt import fitting, in_form, prompted
from halka.rag.questions import Asked, holds, placed
from halka.rag.retrieve import Retriever
from halka.rag.sources import digest_of, listed, taken_in
from halka.storage.save_load import save
from halka.studies.ablation.attacks import attack_of, attacks, inject
from halka.studies.ablation.kept import KeptAnswers
from halka.studies.ablation.runs import SCHEMA, Run, data_of
from halka.studies.ablation.scores import Answered, answer_in, as_rows
from halka.studies.ablation.searched import Searched, changed_facts, kept_in
from halka.studies.ablation.settings import FULL, Ablation, Lessons, Questions, collection_of, matcher, questions_of
from halka.studies.experiment import Entry
from halka.studies.hosts import Result
from halka.studies.runner import origin, report, report_step, serve
from halka.training import TrainConfig, TrainResult, train
from halka.training.run_folder import RunFolder
from halka.util.dtypes import dtype_name
from halka.util.errors import HalkaError
from halka.util.files import in_turn
from halka.util.process import run_process

NAME = "run"
BATCH = 16
EDGES = 8  # the most tokens that a text takes more where an attack cuts it in two


def measure(runs: Sequence[Run], folders: Sequence[Path]) -> Iterator[Result]:
    """Measure runs of one ablation in turn; `folders` get adapters, and what a stopped run goes on from: a checkpoint
    and answers, until the result is written.

    Data that cannot be used, or is not that by which the runs are named, fails every run.
    """
    ablation = Ablation(**runs[0].ablation).at(Path(runs[0].beside))
    try:
        if changed := [name for name, digest in data_of(ablation).items() if digest != runs[0].data[name]]:
            raise HalkaError(
                f"ablation {ablation.name} has other {' and '.join(changed)} than when the study was begun: begin the "
                "study anew, whose runs then have names of their own, or put them back and run the failed ones again"
            )
        model = adapt(*load_base(ablation.place(ablation.base), dtype=ablation.dtype))
        subject = subject_of(ablation, Path(runs[0].folder), model)
    except HalkaError as error:
        yield from (run.failed(str(error)) for run in runs)
        return
    for number, (run, folder) in enumerate(zip(runs, folders, strict=True)):
        yield measure_run(subject, run, folder, number)
        RunFolder(folder).drop_checkpoint()
        KeptAnswers(folder).drop()


def subject_of(ablation: Ablation, folder: Path, model: AdaptedModel) -> Subject:
    """The model with the ablation's questions and documents, whose collection is in the study's folder.

    The documents are taken in, so that what a stopped process left changed is put back, and searched; other processes
    of the study wait meanwhile. Raises HalkaError for data that cannot be used.
    """
    with in_turn(folder / "searching.lock"):
        collection = collection_of(ablation, folder)
        texts, files = listed(ablation.documents)
        for event in taken_in(collection, texts, files):
            if event.what == "skipped":
                report(skipped=event.document, reason=event.reason)
        return Subject(ablation, questions_of(ablation), collection, model, texts, folder)


def measure_run(subject: Subject, run: Run, folder: Path, number: int = 0) -> Result:
    """Train the run's adapter, if it has one, and answer; `number` is the run's in the reports of this process."""
    result, kept = _identity(subject, run), KeptAnswers(folder)
    if run.who == "base":
        return result | subject.answers(None, run, kept)
    if not RunFolder(folder).resumable:
        kept.drop()  # they are of another training
    try:
        rate, result["train"] = _train(subject, run, folder, number)
        result["method"]["lr"] = rate
        return result | subject.answers(NAME, run, kept)
    finally:
        subject.model.remove(NAME)


def _train(subject: Subject, run: Run, folder: Path, number: int) -> tuple[float, dict[str, Any]]:
    """Train the run's adapter, or all weights, in `subject.model`, report its steps and save it.

    Returns the learning rate, and what training took.
    """
    ablation, model = subject.ablation, subject.model
    entry = _entry(ablation, run)
    adapter = model.add(NAME, build_method(entry.method, entry.fields()), seed=run.seed)
    rate = entry.rate or own_rate(model, NAME)
    config = TrainConfig(**{**ablation.train, "lr": rate, "seed": run.seed})
    examples = subject.lessons(subject.questions.train, run, ablation.lessons)
    held_out = subject.lessons(subject.questions.validation, run, Lessons())
    for step in train(model, NAME, examples, config, validation=held_out, folder=folder):
        report_step(step, number)
    steps = RunFolder(folder).steps()  # those of an earlier process, too
    result = TrainResult.of(steps, adapter.count())
    training = {**asdict(config), "steps": result.steps, "best_step": result.best_step, "examples": len(examples)}
    save(model, NAME, folder / "adapter", training=training)
    return rate, {
        "steps": result.steps,
        "best_step": result.best_step,
        "seconds": result.seconds,
        "tokens": result.tokens,
        "computed": steps[-1].computed,
        "validation": result.validation_loss,
        "curve": [{"step": step.step, "validation": step.validation} for step in steps if step.validation is not None],
        "examples": len(examples),
        "parameters": result.parameters,
    }


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
        "method": {"name": entry.method, "label": entry.title(), "lr": entry.rate, "fields": entry.fields()},
        "config": ablation.train,
        "lessons": asdict(ablation.raft(run.seed, ablation.lessons)) if run.is_tuned else None,
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
        folder: Path,
    ):
        self.ablation, self.collection, self.model, self.texts = ablation, collection, model, texts
        names = [document.name for document in collection.documents()]
        self.questions = replace(questions, test=(*placed(questions.test, names),))
        self.retriever = Retriever(collection)
        self.budget = self._budget()
        work = {
            "base": ablation.base,  # whose tokens say what fits beside the instruction
            "instruction": ablation.instruction,
            "documents": digest_of(ablation.documents),
            "questions": questions.digest,
            "embedder": collection.embedder.name,
            "passages": ablation.passages,
            "budget": self.budget,
            "changes": ablation.changes > 0,
            "schema": SCHEMA,
        }
        self.searched = kept_in(folder, work, self._search_all)

    def _search_all(self) -> Searched:
        """Search for each test question, as it is and after a change of its document."""
        results = [self.search(asked.question) for asked in self.questions.test]
        shown, best = [shown for shown, _ in results], [best for _, best in results]
        answerable = [asked.question for asked in self.questions.validation if asked.answers]
        floor = floor_for(self.retriever, answerable)
        changes, left_out, seconds = [], 0, None
        if self.ablation.changes:
            changes, left_out, seconds = changed_facts(self.questions, shown, self.collection, self.texts, self.search)
        return Searched(shown, best, floor, changes, left_out, seconds)

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

    def lessons(self, asked: Iterable[Asked], run: Run, lessons: Lessons) -> list[Example]:
        """The run's training examples: answers in the form; where it is tuned, from passages and with citations.

        Validation takes plain `lessons`, so that losses of runs with other ones compare.
        """
        template = self.ablation.form
        if not run.is_tuned:
            rows = [(one.question, in_form(template, one.answers[0])) for one in asked if one.answers]
        else:
            examples = self.ablation.raft(run.seed, lessons).examples(self.retriever, asked)
            rows = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in examples]
        return [Example((user_message(self.model, prompt), Message("assistant", answer))) for prompt, answer in rows]

    def answers(self, name: str | None, run: Run, kept: KeptAnswers) -> dict[str, Any]:
        """The run's answers: to the test alone and with passages, with attacks, and after changes of facts."""
        test, shown, result = self.questions.test, self.searched.shown, {}
        if not run.is_tuned:
            texts = self.ask(name, [asked.question for asked in test], kept)
            alone = [Answered(asked.question, asked.answers, text) for asked, text in zip(test, texts, strict=True)]
            result["alone"] = as_rows(alone)
        prompts = [prompted(asked.question, passages) for asked, passages in zip(test, shown, strict=True)]
        rows = zip(test, self.ask(name, prompts, kept), shown, self.searched.best, strict=True)
        read = [_answered(*row) for row in rows]
        result |= {"passages": as_rows(read), "floor": self.searched.floor}
        result["injections"] = self._attacked(name, kept)
        result["changes"] = self._changed(name, read, kept)
        return result

    def ask(self, name: str | None, prompts: Sequence[str], kept: KeptAnswers) -> list[str]:
        """The model's answers to the prompts, in their order; those that are not kept yet are made."""
        examples = [self._asking(name, prompt) for prompt in prompts]
        keys, texts = [*map(kept.key, examples)], kept.all()
        missing = {key: example for key, example in zip(keys, examples, strict=True) if key not in texts}
        missing_keys, limit = [*missing], self.ablation.max_new_tokens
        answers = iter_answers(self.model, name, [*missing.values()], max_new_tokens=limit, batch_size=BATCH)
        for index, text in answers:
            texts[missing_keys[index]] = text.strip()
            kept.add(missing_keys[index], text.strip())
        return [texts[key] for key in keys]

    def _attacked(self, name: str | None, kept: KeptAnswers) -> list[dict[str, Any]]:
        """The first questions again, with an attack in one of their passages."""
        both = zip(self.questions.test, self.searched.shown, strict=True)
        chosen = [(asked, shown) for asked, shown in both if shown][: self.ablation.injections]
        used = [attack_of(number) for number in range(len(chosen))]
        prompts = [
            prompted(asked.question, inject(shown, attack, at))
            for (asked, shown), (attack, at) in zip(chosen, used, strict=True)
        ]
        return [
            {"way": attack.way, "question": asked.question, "text": text, "obeyed": attack.succeeds(text)}
            for (asked, _), (attack, _), text in zip(chosen, used, self.ask(name, prompts, kept), strict=True)
        ]

    def _changed(self, name: str | None, read: Sequence[Answered], kept: KeptAnswers) -> dict[str, Any]:
        """Ask again where the right answers' documents have changed: whether the answer follows, or stays as it was."""
        pattern, exact = matcher(self.ablation.form), find_metric("squad_exact").per_item

        def is_right(text: str, answers: Sequence[str]) -> bool:
            return bool(exact(answer_in(text, pattern), answers)["sum"])

        test = self.questions.test
        right = [
            change for change in self.searched.changes if is_right(read[change.place].text, test[change.place].answers)
        ][: self.ablation.changes]
        prompts = [prompted(test[change.place].question, change.shown) for change in right]
        rows = [
            {
                "question": test[change.place].question,
                "was": test[change.place].answers[0],
                "is": change.new,
                "text": text,
                "follows": is_right(text, [change.new]),
                "stays": is_right(text, test[change.place].answers),
            }
            for change, text in zip(right, self.ask(name, prompts, kept), strict=True)
        ]
        return {"asked": rows, "left_out": self.searched.left_out, "seconds": self.searched.seconds}


def _answered(asked: Asked, text: str, shown: Sequence[Passage], best: float | None) -> Answered:
    gold = (number for number, passage in enumerate(shown, start=1) if asked.answers and holds(passage, asked))
    return Answered(asked.question, asked.answers, text, len(shown), tuple(gold), best)


def main(arguments: Sequence[str]) -> int:
    return serve(arguments, lambda fields: Run(**fields), measure)


if __name__ == "__main__":
    run_process(lambda: main(sys.argv[1:]))
