"""Evaluation: score a model's answers to examples, with intervals; perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from halka.core import AdaptedModel
from halka.data.examples import Examples, as_examples
from halka.data.metric import Metric
from halka.data.tokens import Tokens
from halka.evaluation.generation import AdapterNames, adapter_of_each, answers_of
from halka.evaluation.metrics import Score, default_metrics, score
from halka.models import context
from halka.models.kinds import kind_of
from halka.objectives import objective_of
from halka.training import mean_loss
from halka.util.errors import DataError, HalkaError

HUGE = 700.0  # nats: no float holds the perplexity of more than some 709


@dataclass(frozen=True)
class Prediction:
    """The model's answer to one example; `prompt` is the last message before it, `references` are accepted answers."""

    where: str
    prompt: str
    references: tuple[str, ...]
    prediction: str


@dataclass(frozen=True)
class Evaluation:
    """Scores by metric and the predictions behind them; where several adapters answered, also scores by adapter."""

    scores: dict[str, Score]
    predictions: tuple[Prediction, ...]
    by_adapter: dict[str | None, dict[str, Score]] = field(default_factory=dict)


def evaluate(
    model: AdaptedModel,
    adapters: AdapterNames,
    examples: Examples,
    metrics: Sequence[str | Metric] | None = None,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Answer every example greedily with its adapter and score the answers, by adapter too.

    adapters      one adapter's name for all examples, None for the bare base, or a sequence with one for each
    examples      `Example`s or rows of a known shape (see `as_examples`)
    metrics       names or `Metric`s; without any, those of `default_metrics`
    seed          of the intervals' bootstrap
    on_progress   called with the number of examples that are answered

    Raises:
        DataError: there are no examples, or one has no answer or a label that the adapter does not know.
        HalkaError: a metric is unknown, or the accepted answers themselves do not fit it (they lack its field, say).
    """
    examples = as_examples(examples)
    if not examples:
        raise DataError("there are no examples to evaluate on")
    for index, example in enumerate(examples):
        if not example.answers:
            raise DataError(f"{example.place(index)} has no answer to compare with: give it one")
    names = adapter_of_each(adapters, examples)
    if model.labels:  # before the work begins: every label must be one that its adapter knows
        for name in dict.fromkeys(names):
            own = [example for example, other in zip(examples, names, strict=True) if other == name]
            objective_of(model).encode(model, name, own, None, "cut")
    references = [example.answers for example in examples]
    metrics = default_metrics(examples, kind_of(model.base)) if metrics is None else metrics
    score([accepted[0] for accepted in references], references, metrics, resamples=1)
    places = {name: [index for index, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    for name, own in places.items() if len(places) > 1 else ():
        try:
            score([references[i][0] for i in own], [references[i] for i in own], metrics, resamples=1)
        except HalkaError as error:
            raise HalkaError(f"for {'the base' if name is None else f'adapter {name!r}'}: {error}") from None
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    answers = answers_of(model, names, examples, on_progress=on_progress, **options)
    predictions = tuple(
        Prediction(example.where, example.prompt[-1].content, example.answers, answer)
        for example, answer in zip(examples, answers, strict=True)
    )
    by_adapter = {
        name: score([answers[i] for i in own], [references[i] for i in own], metrics, seed=seed)
        for name, own in places.items()
        if len(places) > 1
    }
    return Evaluation(score(answers, references, metrics, seed=seed), predictions, by_adapter)


def check_has_perplexity(model: AdaptedModel) -> None:
    """Raises HalkaError for a base that does not predict a text's next tokens."""
    if (kind := kind_of(model.base)) != "causal-lm":
        raise HalkaError(f"this base is a {kind}: perplexity is of causal language models, which read on from a text")


def perplexity(model: AdaptedModel, name: str | None, text: str, *, window: int = 256) -> float:
    """exp of the mean loss per token of `text`, read in windows of tokens; the first token of each carries no loss.

    Compared before and after tuning on a text unrelated to the task, it measures forgetting. Raises DataError for a
    text of fewer than two tokens, HalkaError for a base that is no causal language model.
    """
    check_has_perplexity(model)
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    window = min(window, context(model, name) or window)
    windows = [ids[start : start + window] for start in range(0, len(ids), window)]
    items = [Tokens(part, [False, *[True] * (len(part) - 1)]) for part in windows if len(part) > 1]
    if not items:
        raise DataError("the text is too short for a perplexity: it needs at least two tokens")
    loss = mean_loss(model, name, items)
    return math.inf if loss > HUGE else math.exp(loss)  # infinite of a run that diverged
