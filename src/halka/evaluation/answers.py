"""Answers by batched generation, and their scores with intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from halka.core import AdaptedModel
from halka.data.examples import Example
from halka.data.metric import Metric
from halka.data.tokens import Tokens
from halka.evaluation.metrics import Score, score
from halka.models import context
from halka.models.attention.function import use_attention
from halka.objectives import objective_of
from halka.training.loop import mean_loss
from halka.util.errors import HalkaError

Names = str | None | Sequence[str | None]
"""One adapter for all examples, or one for each; None is the bare base."""


@dataclass(frozen=True)
class Prediction:
    """One example, what was asked, what was accepted and what was answered."""

    where: str
    prompt: str
    references: tuple[str, ...]
    prediction: str


@dataclass(frozen=True)
class Evaluation:
    """Scores by metric, and the predictions that they judge; `by_adapter` has each one's own where several answered."""

    scores: dict[str, Score]
    predictions: tuple[Prediction, ...]
    by_adapter: dict[str | None, dict[str, Score]] = field(default_factory=dict)


def evaluate(
    model: AdaptedModel,
    name: Names,
    examples: Sequence[Example],
    metrics: Sequence[str | Metric],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Answer every example greedily with its adapter (see `generate`) and score the answers, by adapter too.

    `on_progress` is told how many examples are done. Raises ValueError where there is no example, and for a metric
    that the gold answers themselves do not satisfy (a field that is not in them, say).
    """
    if not examples:
        raise HalkaError("there are no examples to evaluate on")
    for number, example in enumerate(examples, start=1):
        if not example.answers:
            raise HalkaError(f"{example.where or f'example {number}'} has no answer to compare with: give it one")
    names = _one_each(name, examples)
    for each in dict.fromkeys(names) if model.labels else ():  # that its head can say what is right
        own = [example for example, other in zip(examples, names, strict=True) if other == each]
        objective_of(model).encode(model, each, own, None, "cut")
    references = [example.answers for example in examples]
    score([each[0] for each in references], references, metrics, resamples=1)
    answers: list[str] = [""] * len(examples)
    made = generate(model, names, examples, max_new_tokens=max_new_tokens, batch_size=batch_size)
    for done, (index, text) in enumerate(made, start=1):
        answers[index] = text
        if on_progress is not None:
            on_progress(done)
    predictions = tuple(
        Prediction(example.where, example.prompt[-1].content, example.answers, answer)
        for example, answer in zip(examples, answers, strict=True)
    )
    by_adapter = {}
    for each in dict.fromkeys(names) if len({*names}) > 1 else ():
        own = [index for index, other in enumerate(names) if other == each]
        by_adapter[each] = score([answers[i] for i in own], [references[i] for i in own], metrics, seed=seed)
    return Evaluation(score(answers, references, metrics, seed=seed), predictions, by_adapter)


def generate(
    model: AdaptedModel,
    name: Names,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    **options: Any,
) -> Iterator[tuple[int, str]]:
    """(index, answer) for each example's prompt, prompts of like length together.

    `name` is the adapter of all examples, or a sequence with one for each; None is the bare base. Adapters of any
    families share batches; full copies of the weights get batches of their own. A classifier answers by its label's
    name, a tagger by a tag for each word. `options` go to transformers' `generate`; without any, decoding is greedy.
    Raises ValueError for a prompt that leaves no room for `max_new_tokens` in the base's context.
    """
    if model.tokenizer is None:
        raise HalkaError("to generate text the model needs its tokenizer: `halka.adapt(base, tokenizer)`")
    objective = objective_of(model)
    new = max_new_tokens if objective.answer_uses_context else 0
    names = _one_each(name, examples)
    kinds = {each: (context(model, each), _is_full(model, each)) for each in dict.fromkeys(names)}
    rows = []
    items = []
    for number, (example, each) in enumerate(zip(examples, names, strict=True), start=1):
        room, full = kinds[each]
        item = objective.encode_prompt(model, example, room)
        if room is not None and len(item) + new > room:
            raise HalkaError(
                f"{example.where or f'example {number}'}: a prompt of {len(item)} tokens and {max_new_tokens} new ones "
                f"do not fit the {room} positions for text that this base has: shorten it or lower max_new_tokens"
            )
        items.append(item)
        rows.append(_Row(len(item) + new, room, each if full else None))
    for chosen in _batches(rows, batch_size, lambda batch: _fit_the_pool(model, {names[i] for i in batch})):
        using = [names[i] for i in chosen]
        asked = [items[i] for i in chosen]
        with torch.inference_mode(), model.use(using if len({*using}) > 1 else using[0]), use_attention(model.base):
            answers = objective.answers(model, using, asked, max_new_tokens, options)
        yield from zip(chosen, answers, strict=True)


@dataclass(frozen=True)
class _Row:
    """What decides which batch a row may join."""

    tokens: int  # of its prompt and its answer
    room: int | None  # positions for text beside its adapter's virtual tokens
    full: str | None  # its adapter, if that is a copy of all weights and acts on whole batches


def _batches(rows: Sequence[_Row], size: int, fit: Callable[[list[int]], bool]) -> Iterator[list[int]]:
    """Indices of rows that go together, the shortest first, as many as `fit`.

    The longest text fits beside the most virtual tokens.
    """
    groups: dict[str | None, list[int]] = defaultdict(list)
    for index in sorted(range(len(rows)), key=lambda index: rows[index].tokens):
        groups[rows[index].full].append(index)
    for group in groups.values():
        batch: list[int] = []
        for index in group:
            rooms = [room for i in (*batch, index) if (room := rows[i].room) is not None]
            full = len(batch) >= size or rows[index].tokens > min(rooms, default=math.inf)
            if batch and (full or not fit([*batch, index])):
                yield batch
                batch = []
            batch.append(index)
        yield batch


def _fit_the_pool(model: AdaptedModel, names: set[str | None]) -> bool:
    """Whether these can be in memory at once."""
    return model.pool is None or model.pool.fits(name for name in names if name is not None)


def _is_full(model: AdaptedModel, name: str | None) -> bool:
    return name is not None and any(each.role == "base" for each in model.adapter(name).targets.values())


def _one_each(name: Names, examples: Sequence[Example]) -> list[str | None]:
    """Every example's adapter. Raises ValueError for a sequence of another length."""
    if name is None or isinstance(name, str):
        return [name] * len(examples)
    if len(name) != len(examples):
        raise HalkaError(
            f"{len(name)} adapters were named for {len(examples)} examples: name one for each, or a single one for all"
        )
    return list(name)


def perplexity(model: AdaptedModel, name: str | None, text: str, *, window: int = 256) -> float:
    """exp of the mean loss per token over `text`, read in windows; the first token of each carries no loss.

    It measures forgetting: a neutral text's perplexity before and after tuning.
    """
    tokenizer: Any = model.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    window = min(window, context(model, name) or window)
    pieces = [ids[start : start + window] for start in range(0, len(ids), window)]
    items = [Tokens(piece, [False, *[True] * (len(piece) - 1)]) for piece in pieces if len(piece) > 1]
    if not items:
        raise HalkaError("the text is too short for a perplexity: it needs at least two tokens")
    return math.exp(mean_loss(model, name, items))
