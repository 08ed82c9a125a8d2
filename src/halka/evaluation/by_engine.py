"""Answers to examples' prompts by the engine, where its answers are those of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from halka.core import AdaptedModel
from halka.data.answers import decoded_answer
from halka.data.examples import Example
from halka.data.tokens import encode_prompt
from halka.engine.constraint import Constraint
from halka.engine.engine import Engine
from halka.engine.kept import kept_of
from halka.engine.request import Answer, Request
from halka.engine.sampling import SEEDS, Sampling
from halka.engine.stopping import Stopping
from halka.models import without_dropout
from halka.models.layouts import layout_of
from halka.objectives import objective_of
from halka.objectives.language_modelling import LanguageModelling
from halka.util.errors import DataError, HalkaError

ALL = 2**16  # tokens of prompts beside answers: as many as without, for nobody waits for the next token
DRAWN = ("temperature", "top_k", "top_p", "min_p")  # what the engine knows of `generate`'s options for sampling
PENALTY = "repetition_penalty"  # which it knows, too, of the base's generation config as well
UNKNOWN = {
    "no_repeat_ngram_size": 0,
    "bad_words_ids": [],
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": {},
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "stop_strings": [],
    "guidance_scale": 1,
    "num_beams": 1,
}
"""What a generation config may ask of `generate` that the engine has not, each with the value that asks for nothing, as
None does."""


@dataclass(frozen=True)
class Form:
    """What the engine is asked of every answer, as `Request` has it."""

    sampling: Sampling
    stopping: Stopping
    constraint: Constraint | None
    fitted: bool = False  # an answer whose prompt leaves less room is shorter


def form_of(
    model: AdaptedModel, options: Mapping[str, Any], max_new_tokens: int, constraint: Constraint | None
) -> Form | None:
    """These options of transformers' `generate` as the engine has them; None if it cannot answer by them.

    Raises HalkaError for fewer than one new token, unless answers are labels, and if it cannot and there is a
    constraint, to which nobody else keeps.
    """
    stopping = Stopping() if model.labels else Stopping(max_new_tokens)
    decodes = isinstance(objective_of(model), LanguageModelling) and _engine_answers(model)
    unknown = options.keys() - {"do_sample", PENALTY, *DRAWN}
    if not decodes or unknown:
        if constraint is not None:
            why = f"{', '.join(sorted(unknown))} is for transformers' `generate`" if decodes else _why_not(model)
            raise HalkaError(f"a constraint is kept by the engine alone, which does not answer here: {why}")
        return None
    sampling: dict[str, Any] = {PENALTY: options.get(PENALTY)}
    if options.get("do_sample"):
        drawn = {name: options.get(name) for name in DRAWN}
        sampling |= {**drawn, "temperature": 1.0 if drawn["temperature"] is None else drawn["temperature"]}
    return Form(Sampling(**sampling), stopping, constraint)


def _why_not(model: AdaptedModel) -> str:
    asked = [option for option in UNKNOWN if _asks(model, option)]
    if asked and _decodes(model):
        return f"the base's generation config sets {', '.join(asked)}"
    if (layers := layout_of(model.base).obstacle) is not None:
        return f"{type(model.base).__name__} has {layers}"
    return f"{type(model.base).__name__} makes no text token by token"


def _engine_answers(model: AdaptedModel) -> bool:
    """Whether an engine makes the same greedy answers as the base's own `generate`, by its generation config."""
    return _decodes(model) and not any(_asks(model, option) for option in UNKNOWN)


def _decodes(model: AdaptedModel) -> bool:
    layout = layout_of(model.base)
    return layout.generates and layout.obstacle is None and not model.labels


def _asks(model: AdaptedModel, option: str) -> bool:
    config = getattr(model.base, "generation_config", None)
    return getattr(config, option, None) not in (None, UNKNOWN[option])


def answers_by_engine(
    model: AdaptedModel, names: Sequence[str | None], examples: Sequence[Example], rows: int, form: Form
) -> Iterator[tuple[int, str]]:
    """Every answer with its index, in the order in which they end."""
    if not examples:
        return
    with _engine_of(model, rows) as engine:
        place: dict[Answer, int] = {}
        for index, (name, example) in enumerate(zip(names, examples, strict=True)):
            place[_submitted(engine, name, example, index, form)] = index
        while place:
            engine.step()
            for answer in [answer for answer in place if answer.finish is not None]:
                if answer.error is not None:
                    raise answer.error
                text = decoded_answer(answer.tokens, model.tokenizer, engine.ends, engine.opening)
                yield place.pop(answer), text


def pieces_by_engine(model: AdaptedModel, name: str | None, example: Example, form: Form) -> Iterator[str]:
    """The answer's text in pieces, as it is made."""
    with _engine_of(model, 1) as engine:
        answer = _submitted(engine, name, example, 0, form)
        shown = 0
        while answer.finish is None:
            engine.step()
            if len(text := answer.text) > shown:
                yield text[shown:]
                shown = len(text)
    if answer.error is not None:
        raise answer.error


def fitted(max_new_tokens: int, prompt: int, room: int | None) -> int:
    """As many new tokens as there is room for beside a prompt of so many, at least one and at most `max_new_tokens`."""
    return max_new_tokens if room is None else max(1, min(max_new_tokens, room - prompt))


def check_room(place: str, prompt: int, max_new_tokens: int, room: int | None, new: int) -> None:
    """Raises DataError for a prompt of so many tokens whose answer, which takes `new`, does not fit."""
    if room is not None and prompt + new > room:
        way = "shorten it or lower max_new_tokens" if prompt < room else "shorten it"
        raise DataError(
            f"{place}: a prompt of {prompt} tokens and {max_new_tokens} new ones do not fit the "
            f"{room} positions for text that this base has: {way}"
        )


@contextmanager
def _engine_of(model: AdaptedModel, rows: int) -> Iterator[Engine]:
    """An engine for answers that nobody waits for token by token, with what the last one left on the model."""
    with (
        without_dropout(model, model.adapters),
        kept_of(model) as kept,
        Engine(model, rows=rows, prefill_beside=ALL, kept=kept) as engine,
    ):
        yield engine


def _submitted(engine: Engine, name: str | None, example: Example, index: int, form: Form) -> Answer:
    """The answer to an example's prompt, under way. Raises DataError for one that leaves no room for it."""
    prompt, room, stopping = encode_prompt(example, engine.model.tokenizer), engine.room(name), form.stopping
    if form.fitted:
        stopping = replace(stopping, max_new_tokens=fitted(stopping.max_new_tokens, len(prompt), room))
    check_room(example.place(index), len(prompt), stopping.max_new_tokens, room, stopping.max_new_tokens)
    request = Request(prompt, name, _seeded(form.sampling), stopping, form.constraint, chat=True)
    return engine.submit(request)[0]


def _seeded(sampling: Sampling) -> Sampling:
    """With a seed for one request, from torch's generator of the CPU: `torch.manual_seed` makes it repeatable."""
    return sampling if sampling.greedy else replace(sampling, seed=int(torch.randint(SEEDS - 1, (), device="cpu")))
