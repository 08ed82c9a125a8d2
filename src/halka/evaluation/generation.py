"""Answers to prompts, with any adapter for each: by the engine where it can, else by transformers' `generate`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from halka.core import AdaptedModel
from halka.data.examples import Example
from halka.data.prompts import Prompt, as_prompts
from halka.engine.constraint import Constraint
from halka.evaluation.by_engine import DRAWN, answers_by_engine, check_room, fitted, form_of, pieces_by_engine
from halka.models import context, without_dropout
from halka.models.attention.function import use_attention
from halka.models.float32_products import float32_products
from halka.models.layouts import layout_of
from halka.objectives import objective_of
from halka.storage.pool import AdapterPool
from halka.util.errors import HalkaError

AdapterNames = str | None | Sequence[str | None]
"""One adapter for all prompts, or one for each; None is the bare base."""

SAMPLING = (*DRAWN, "typical_p")


def generate(
    model: AdaptedModel,
    prompts: Sequence[Prompt],
    adapters: AdapterNames = None,
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    constraint: Constraint | None = None,
    **options: Any,
) -> list[str]:
    """Answer every prompt through the base's chat template; returns the decoded answers in the prompts' order.

    prompts        texts, conversations (lists of {"role", "content"} or `Message`s) or `Example`s
    adapters       one adapter's name for all prompts, None for the bare base, or a sequence with one for each
    batch_size     prompts at a time, whatever their adapters
    constraint     what every answer must be: `Constraint(schema={…})` or `Constraint(regex="…")`; any text if not given
    options        of transformers' `generate`. Without any, decoding is greedy; a `temperature` above 0, `top_p`,
                   `top_k`, … sample

    A classifier answers with its label's name, a tagger with a tag for each word.

    Raises:
        DataError: a prompt is none, the chat template refuses it, or it leaves no room for `max_new_tokens`.
        UnknownAdapterError: the model has no adapter of that name.
        HalkaError: a constraint that cannot be enforced, or with what the engine does not answer by; several answers
            to a prompt.
    """
    if several := [option for option in ("num_return_sequences", "return_dict_in_generate") if options.get(option)]:
        raise HalkaError(f"{several[0]} is not for texts, of which each prompt gets one: repeat the prompt instead")
    examples = as_prompts(prompts)
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, **_with_sampling(options)}
    return answers_of(model, adapters, examples, constraint=constraint, **options)


def answers_of(
    model: AdaptedModel,
    adapters: AdapterNames,
    examples: Sequence[Example],
    *,
    on_progress: Callable[[int], None] | None = None,
    **options: Any,
) -> list[str]:
    """The answer to every example's prompt, in order; `options` are those of `iter_answers`.

    `on_progress` is called with the number of examples that are answered.
    """
    answers = [""] * len(examples)
    for done, (index, text) in enumerate(iter_answers(model, adapters, examples, **options), start=1):
        answers[index] = text
        if on_progress is not None:
            on_progress(done)
    return answers


def iter_answers(
    model: AdaptedModel,
    adapters: AdapterNames,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    fit: bool = False,
    batch_size: int = 32,
    constraint: Constraint | None = None,
    **options: Any,
) -> Iterator[tuple[int, str]]:
    """Yield (index, answer) for every example's prompt, as soon as it is complete.

    With `fit` an answer whose prompt leaves less room than `max_new_tokens` is as long as that.
    Adapters of any families are used side by side; full copies of the weights by themselves. `options` are those of
    transformers' `generate`; without any, decoding is greedy. Decoders answer by the engine if it knows all options,
    with seeds from torch's generator; else `generate` does. Raises as `generate` does, at the first answer.
    """
    check_has_tokenizer(model)
    objective = objective_of(model)
    names, form = adapter_of_each(adapters, examples), form_of(model, options, max_new_tokens, constraint)
    if form is not None:
        yield from answers_by_engine(model, names, examples, batch_size, replace(form, fitted=fit))
        return
    beside = objective.answer_uses_context
    limits = {name: (context(model, name), _is_full(model, name)) for name in dict.fromkeys(names)}
    may_pad = layout_of(model.base).attends  # on layers with states a part acts on padding, too, which reaches the text
    rows = []
    items = []
    for index, (example, name) in enumerate(zip(examples, names, strict=True)):
        room, full = limits[name]
        item = objective.encode_prompt(model, example, room)
        most = fitted(max_new_tokens, len(item), room) if fit and beside else max_new_tokens
        new = most if beside else 0
        check_room(example.place(index), len(item), most, room, new)
        items.append(item)
        rows.append(_Row(len(item) + new, room, most, (name if full else None, None if may_pad else len(item))))
    for batch in _batches(rows, batch_size, lambda batch: _pool_fits(model, {names[i] for i in batch})):
        own = [names[i] for i in batch]
        used = model.use(own if len({*own}) > 1 else own[0])
        with (
            torch.inference_mode(),
            used,
            use_attention(model.base),
            without_dropout(model, own),
            float32_products(model.base),
        ):
            answers = objective.answers(model, own, [items[i] for i in batch], rows[batch[0]].most, options)
        yield from zip(batch, answers, strict=True)


def stream_answer(
    model: AdaptedModel,
    name: str | None,
    example: Example,
    *,
    max_new_tokens: int,
    constraint: Constraint | None = None,
    **options: Any,
) -> Iterator[str]:
    """The answer's text in pieces, as it is made; in one piece where the engine does not make it.

    Raises as `generate` does.
    """
    form = form_of(model, options, max_new_tokens, constraint)
    if form is None:
        yield from dict(iter_answers(model, name, [example], max_new_tokens=max_new_tokens, **options)).values()
    else:
        yield from pieces_by_engine(model, name, example, form)


def check_has_tokenizer(model: AdaptedModel) -> None:
    """Raises HalkaError for a model without one."""
    if model.tokenizer is None:
        raise HalkaError("to generate text the model needs its tokenizer: `halka.adapt(base, tokenizer)`")


def adapter_of_each(adapters: AdapterNames, examples: Sequence[Example]) -> list[str | None]:
    """The adapter of every example. Raises HalkaError for a sequence of another length."""
    if adapters is None or isinstance(adapters, str):
        return [adapters] * len(examples)
    if len(adapters) != len(examples):
        raise HalkaError(
            f"{len(adapters)} adapters for {len(examples)} examples: give one for each, or a single one for all"
        )
    return list(adapters)


def _with_sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' options, with `do_sample` where one of them asks for samples; a temperature of 0 is greedy."""
    if "do_sample" in options:
        return dict(options)
    if options.get("temperature") == 0:
        return {name: value for name, value in options.items() if name not in SAMPLING}
    return {**options, "do_sample": any(options.get(name) is not None for name in SAMPLING)}


@dataclass(frozen=True)
class _Row:
    """What decides which batch a prompt may join."""

    tokens: int  # of the prompt and the answer
    room: int | None  # positions for text beside the adapter's virtual tokens
    most: int  # new tokens, the same in all rows of a batch
    alike: Hashable  # the same in all rows of a batch: a copy of all weights, a length where nothing may be padded


def _batches(rows: Sequence[_Row], size: int, fits: Callable[[list[int]], bool]) -> Iterator[list[int]]:
    """Indices of rows that form a batch, the shortest first, at most `size` and as many as `fits` allows.

    In each batch the longest text has room beside the most virtual tokens.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index in sorted(range(len(rows)), key=lambda index: rows[index].tokens):
        groups[rows[index].most, rows[index].alike].append(index)
    for group in groups.values():
        batch: list[int] = []
        for index in group:
            rooms = [room for i in (*batch, index) if (room := rows[i].room) is not None]
            full = len(batch) >= size or rows[index].tokens > min(rooms, default=math.inf)
            if batch and (full or not fits([*batch, index])):
                yield batch
                batch = []
            batch.append(index)
        yield batch


def _pool_fits(model: AdaptedModel, names: set[str | None]) -> bool:
    """Whether these adapters can be in memory at once."""
    return not isinstance(model.pool, AdapterPool) or model.pool.fits(name for name in names if name is not None)


def _is_full(model: AdaptedModel, name: str | None) -> bool:
    return name is not None and any(target.role == "base" for target in model.adapter(name).targets.values())
