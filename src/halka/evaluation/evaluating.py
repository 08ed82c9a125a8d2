"""Evaluation: score a model's answers to examples, with intervals; perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from halka.core import AdaptedModel
from halka.data.examples import Examples, as_examples
from halka.data.metric import Metric
from halka.data.tokens import Tokens, windows
from halka.evaluation.accepted import (
    accepted_answers,
    check_answered,
    longest_answer,
    texts_of,
    warn_of_longer,
    warn_of_unfit,
)
from halka.evaluation.generation import AdapterNames, adapter_of_each, answers_of
from halka.evaluation.metrics import Score, default_metrics, find_metric, score
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
    """Scores by metric and the predictions behind them; where several adapters answered, also scores by adapter.

    `accepted` is what each prediction was compared with: its references as training on the base teaches them.
    """

    scores: dict[str, Score]
    predictions: tuple[Prediction, ...]
    accepted: tuple[tuple[str, ...], ...]
    by_adapter: dict[str | None, dict[str, Score]] = field(default_factory=dict)


def evaluate(
    model: AdaptedModel,
    adapters: AdapterNames,
    examples: Examples,
    metrics: Sequence[str | Metric] | None = None,
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Answer every example greedily with its adapter and score the answers, by adapter too.

    adapters        one adapter's name for all examples, None for the bare base, or a sequence with one for each
    examples        `Example`s or rows of a known shape (see `as_examples`)
    metrics         names or `Metric`s; without any, those of `default_metrics`
    max_new_tokens  of an answer, with a warning of accepted ones that are longer; if not given, as many as the longest
                    accepted one has, or as its prompt leaves room for
    seed            of the intervals' bootstrap
    on_progress     called with the number of examples that are answered

    Raises:
        DataError: there are no examples, or one has no answer or a label that the adapter does not know.
        HalkaError: a metric is unknown, or the accepted answers themselves do not fit it (they lack its field, say),
            or the seed is negative.
    """
    examples = as_examples(examples)
    if not examples:
        raise DataError("there are no examples to evaluate on")
    check_answered(examples)
    names = adapter_of_each(adapters, examples)
    if model.labels:  # before the work begins: every label must be one that its adapter knows
        for name in dict.fromkeys(names):
            own = [example for example, other in zip(examples, names, strict=True) if other == name]
            objective_of(model).encode(model, name, own, None, "cut")
    accepted = accepted_answers(model, examples)
    references = texts_of(accepted)
    kind = kind_of(model.base)
    if metrics is None:
        metrics = default_metrics(examples, kind)
    elif not isinstance(metrics, str):  # which `score` refuses
        metrics = [*metrics]
    score([own[0] for own in references], references, metrics, seed, resamples=1)
    metrics = [find_metric(metric, kind) for metric in metrics]
    places = {name: [index for index, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    for name, own in places.items() if len(places) > 1 else ():
        try:
            score([references[i][0] for i in own], [references[i] for i in own], metrics, seed, resamples=1)
        except HalkaError as error:
            raise HalkaError(f"for {'the base' if name is None else f'adapter {name!r}'}: {error}") from None
    if max_new_tokens is None:
        room = longest_answer(accepted)
        warn_of_unfit(accepted)
    else:
        room = max_new_tokens
        warn_of_longer(accepted, room)
    options: dict[str, Any] = {"max_new_tokens": room, "fit": max_new_tokens is None, "batch_size": batch_size}
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
    scores = score(answers, references, metrics, seed=seed)
    return Evaluation(scores, predictions, tuple(references), by_adapter)


def check_has_perplexity(model: AdaptedModel) -> None:
    """Raises HalkaError for a base that does not predict a text's next tokens."""
    if (kind := kind_of(model.base)) != "causal-lm":
        raise HalkaError(f"this base is a {kind}: perplexity is of causal language models, which read on from a text")


def perplexity(model: AdaptedModel, name: str | None, text: str, *, window: int = 256) -> float:
    """exp of the mean loss per token of `text`, read in windows of tokens.

    Each window begins with the tokenizer's beginning-of-sequence token, which some bases cannot read without, or if
    the tokenizer puts none in front, with a token that carries no loss.
    Compared before and after tuning on a text unrelated to the task, it measures forgetting. Raises DataError for a
    text of fewer than two tokens, HalkaError for a base that is no causal language model and for a window of
    fewer than two.
    """
    check_has_perplexity(model)
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    if window < 2:
        raise HalkaError(f"window must be at least 2 tokens, not {window}: a window's first token carries no loss")
    parts = windows(ids, model.tokenizer, min(window, context(model, name) or window))
    items = [Tokens(part, [False, *[True] * (len(part) - 1)]) for part in parts if len(part) > 1]
    if len(ids) < 2:
        raise DataError("the text is too short for a perplexity: it needs at least two tokens")
    loss = mean_loss(model, name, items)
    return math.inf if loss > HUGE else math.exp(loss)  # infinite of a run that diverged
