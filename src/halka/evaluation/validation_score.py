"""`ValidationScore`: a task's primary metric on its validation examples, by which the best evaluation may be chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from halka.core import AdaptedModel
from halka.data.metric import Metric
from halka.data.task import Task
from halka.evaluation.evaluating import evaluate
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
        return find_metric(default_metrics([*task.train, *task.validation], kind)[0])
    metrics = map(find_metric, task.metrics)
    return next((metric for metric in metrics if metric.name == task.primary), None) or find_metric(task.primary)


class ValidationScore:
    """What `halka.train` takes as `score`: called, it scores adapter `name` with the weights that it has then.

    on_progress   called with the number of validation examples that are answered
    """

    def __init__(self, model: AdaptedModel, name: str, task: Task, on_progress: Callable[[int], None] | None = None):
        """Raises HalkaError for an unknown metric, one that the accepted answers do not fit, or a prompt that leaves
        no room for its answer: before a training begins, not at its first evaluation."""
        self.metric = primary_metric(task, kind_of(model.base))
        self.name = f"score ({self.metric.name})"  # as a checkpoint has it
        self._model, self._adapter, self._task, self._on_progress = model, name, task, on_progress
        self._room = answer_room(task, model.tokenizer)
        self._check()

    def __call__(self) -> float:
        """The metric's value, with its sign changed where less of it is better."""
        return self.rank(self.value())

    def value(self) -> float:
        """What the metric says. Raises as `evaluate` does."""
        examples, metrics = self._task.validation, [self.metric]
        options = {"max_new_tokens": self._room, "on_progress": self._on_progress}
        evaluation = evaluate(self._model, self._adapter, examples, metrics, **options)
        return evaluation.scores[self.metric.name].value

    def rank(self, value: float) -> float:
        """The metric's value as a number of which more is better."""
        return value if self.metric.higher_is_better else -value

    def _check(self) -> None:
        references = [example.answers for example in self._task.validation]
        score([accepted[0] for accepted in references], references, [self.metric], resamples=1)
        objective, positions = objective_of(self._model), context(self._model, self._adapter)
        new = self._room if objective.answer_uses_context else 0
        why = "the task's max_new_tokens" if self._task.metrics else "as long as the longest that is expected"
        for index, example in enumerate(self._task.validation):
            tokens = len(objective.encode_prompt(self._model, example, positions))
            if positions is not None and tokens + new > positions:
                raise DataError(
                    f"{example.place(index)}: a prompt of {tokens} tokens leaves no room for an answer of {new} "
                    f"({why}) in the {positions} positions for text that this base has: "
                    "shorten it, leave it out of the validation examples, or train with best_by loss"
                )


def answer_room(task: Task, tokenizer: Any) -> int:
    """Tokens of an answer: what the task says; of one without metrics, its longest validation answer and an end."""
    if task.metrics:
        return task.max_new_tokens
    answers = [answer for example in task.validation for answer in example.answers]
    return 1 + max(len(tokenizer.encode(answer, add_special_tokens=False)) for answer in answers)
