"""`ValidationScore`: a task's primary metric on its validation examples, by which the best evaluation may be chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from halka.core import AdaptedModel
from halka.data.metric import Metric
from halka.data.task import Task
from halka.evaluation.accepted import (
    Accepted,
    accepted_answers,
    check_answered,
    longest_answer,
    texts_of,
    warn_of_longer,
)
from halka.evaluation.generation import answers_of
from halka.evaluation.metrics import default_metrics, find_metric, score
from halka.models import context
from halka.models.kinds import kind_of
from halka.objectives import objective_of
from halka.util.errors import DataError


def primary_metric(task: Task, kind: str | None) -> Metric:
    """The metric that compares adapters on a task; of one that names none, the first of `default_metrics`.

    Raises HalkaError for an unknown name.
    """
    if not task.metrics:
        return find_metric(default_metrics([*task.train, *task.validation], kind)[0], kind)
    metrics = [find_metric(metric, kind) for metric in task.metrics]
    return next((metric for metric in metrics if metric.name == task.primary), None) or find_metric(task.primary, kind)


class ValidationScore:
    """What `halka.train` takes as `score`: called, it scores adapter `name` with the weights that it has then.

    on_progress   called with the number of validation examples that are answered
    """

    def __init__(self, model: AdaptedModel, name: str, task: Task, on_progress: Callable[[int], None] | None = None):
        """Raises HalkaError for an unknown metric, one that the accepted answers do not fit, or a prompt that leaves
        no room for any of its answers: before a training begins, not at its first evaluation."""
        check_answered(task.validation)
        self.metric = primary_metric(task, kind_of(model.base))
        self.name = f"score ({self.metric.name})"  # as a checkpoint has it
        self._model, self._adapter, self._task, self._on_progress = model, name, task, on_progress
        accepted = accepted_answers(model, task.validation)
        self._references = texts_of(accepted)
        self._room = task.max_new_tokens or longest_answer(accepted)
        self._check(accepted)
        warn_of_longer(accepted, self._room)

    def __call__(self) -> float:
        """The metric's value, with its sign changed where less of it is better."""
        return self.rank(self.value())

    def value(self) -> float:
        """What the metric says. Raises as `generate` does."""
        answers = answers_of(
            self._model,
            self._adapter,
            self._task.validation,
            max_new_tokens=self._room,
            fit=self._task.max_new_tokens is None,
            on_progress=self._on_progress,
        )
        return score(answers, self._references, [self.metric], resamples=1)[self.metric.name].value

    def rank(self, value: float) -> float:
        """The metric's value as a number of which more is better."""
        return value if self.metric.higher_is_better else -value

    def _check(self, accepted: Sequence[Sequence[Accepted]]) -> None:
        score([accepted[0] for accepted in self._references], self._references, [self.metric], resamples=1)
        objective, positions = objective_of(self._model), context(self._model, self._adapter)
        why = "the task's max_new_tokens" if self._task.max_new_tokens else "as long as the shortest that is accepted"
        for index, (example, own) in enumerate(zip(self._task.validation, accepted, strict=True)):
            tokens = len(objective.encode_prompt(self._model, example, positions))
            new = self._task.max_new_tokens or min(answer.tokens for answer in own)
            if positions is not None and tokens + new * objective.answer_uses_context > positions:
                raise DataError(
                    f"{example.place(index)}: a prompt of {tokens} tokens leaves no room for an answer of {new} "
                    f"({why}) in the {positions} positions for text that this base has: "
                    "shorten it, leave it out of the validation examples, name a smaller max_new_tokens in the task, "
                    "or train with best_by loss"
                )
