"""Answers by batched generation, and their scores with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from halka.core import AdaptedModel
from halka.data.batches import collate
from halka.data.examples import Example
from halka.data.metric import Metric
from halka.data.tokens import Tokens, encode_prompt
from halka.metrics import Score, score
from halka.models import context
from halka.models.attention import use_attention
from halka.training import mean_loss, pad_id


@dataclass(frozen=True)
class Prediction:
    """One example, what was asked, what was accepted and what was answered."""

    where: str
    prompt: str
    references: tuple[str, ...]
    prediction: str


@dataclass(frozen=True)
class Evaluation:
    """Scores by metric, and the predictions that they judge."""

    scores: dict[str, Score]
    predictions: tuple[Prediction, ...]


def evaluate(
    model: AdaptedModel,
    name: str | None,
    examples: Sequence[Example],
    metrics: Sequence[str | Metric],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Answer every example greedily with adapter `name` (None: the bare base) and score the answers.

    `on_progress` is told how many examples are done. Raises ValueError where there is no example, and for a metric
    that the gold answers themselves do not satisfy (a field that is not in them, say).
    """
    if not examples:
        raise ValueError("there are no examples to evaluate on")
    for number, example in enumerate(examples, start=1):
        if not example.answers:
            raise ValueError(f"{example.where or f'example {number}'} has no answer to compare with: give it one")
    references = [example.answers for example in examples]
    score([each[0] for each in references], references, metrics, resamples=1)
    answers: list[str] = [""] * len(examples)
    made = generate(model, name, examples, max_new_tokens=max_new_tokens, batch_size=batch_size)
    for done, (index, text) in enumerate(made, start=1):
        answers[index] = text
        if on_progress is not None:
            on_progress(done)
    predictions = tuple(
        Prediction(example.where, example.prompt[-1].content, example.answers, answer)
        for example, answer in zip(examples, answers, strict=True)
    )
    return Evaluation(score(answers, references, metrics, seed=seed), predictions)


def generate(
    model: AdaptedModel,
    name: str | None,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    **options: Any,
) -> Iterator[tuple[int, str]]:
    """(index, answer) for each example's prompt, prompts of like length together.

    `options` go to transformers' `generate`; without any, decoding is greedy. Raises ValueError for a prompt that
    leaves no room for `max_new_tokens` in the base's context.
    """
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise ValueError("to generate text the model needs its tokenizer: `halka.adapt(base, tokenizer)`")
    base: Any = model.base
    device = next(base.parameters()).device
    encoded = [encode_prompt(example, tokenizer) for example in examples]
    room = context(model, name)
    for number, (example, ids) in enumerate(zip(examples, encoded, strict=True), start=1):
        if room is not None and len(ids) + max_new_tokens > room:
            raise ValueError(
                f"{example.where or f'example {number}'}: a prompt of {len(ids)} tokens and {max_new_tokens} new ones "
                f"do not fit the {room} positions for text that this base has: shorten it or lower max_new_tokens"
            )
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([Tokens(encoded[i], [False] * len(encoded[i])) for i in chosen], pad_id(model), "left")
        batch = batch.to(device)
        with torch.inference_mode(), model.use(name), use_attention(base):
            made = base.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_id(model),
                **{"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **options},
            )
        texts = tokenizer.batch_decode(made[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        yield from zip(chosen, (text.strip() for text in texts), strict=True)


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
        raise ValueError("the text is too short for a perplexity: it needs at least two tokens")
    return math.exp(mean_loss(model, name, items))
