"""Accepted answers as training teaches them: their texts and tokens, and the room that answers need for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from halka.core import AdaptedModel
from halka.data.answers import decoded_answer, end_tokens, opening
from halka.data.examples import Example, Item, Message
from halka.data.tokens import Tokens
from halka.evaluation.generation import check_has_tokenizer
from halka.models import context
from halka.objectives import objective_of
from halka.util.errors import DataError


@dataclass(frozen=True)
class Accepted:
    """One accepted answer.

    text     that a model which learned it answers: chat templates set thoughts anew, or begin them in the prompt
    tokens   of the answer: its own, what the chat template writes before it, and the one that ends it
    fits     whether the base's context holds them beside the prompt's
    """

    text: str
    tokens: int
    fits: bool


def check_answered(examples: Sequence[Example]) -> None:
    """Raises DataError for an example that has no answer to compare with."""
    for index, example in enumerate(examples):
        if example.is_text:
            raise DataError(
                f"{example.place(index)} is raw text, which has no answer to score: its measure is the validation loss "
                "of a training (best_by loss)"
            )
        if not example.answers:
            raise DataError(f"{example.place(index)} has no answer to compare with: give it one")


def accepted_answers(model: AdaptedModel, examples: Sequence[Example]) -> list[tuple[Accepted, ...]]:
    """The accepted answers of each example. One that the chat template refuses, but a model may give, is as it stands.

    A class or tags are one token. Raises HalkaError for a model that has no tokenizer.
    """
    check_has_tokenizer(model)
    if model.labels:
        return [tuple(Accepted(answer, 1, True) for answer in example.answers) for example in examples]
    answered = [_answered(example, answer) for example in examples for answer in example.answers]
    items, text_of = _items(model, answered), _text_of(model)
    room = context(model) if objective_of(model).answer_uses_context else None
    accepted = list[Accepted]()
    for index, example in enumerate(answered):
        answer, item = str(example.answer), items.get(index)
        if item is None:
            tokens = len(model.tokenizer.encode(answer, add_special_tokens=False)) + 1
            accepted.append(Accepted(answer, tokens, True))
        else:
            text = text_of(item) if isinstance(item, Tokens) else answer
            accepted.append(Accepted(text, item.labels, room is None or len(item) <= room))
    every = iter(accepted)
    return [tuple(next(every) for _ in example.answers) for example in examples]


def texts_of(accepted: Sequence[Sequence[Accepted]]) -> list[tuple[str, ...]]:
    """What each example's answer is compared with."""
    return [tuple(answer.text for answer in own) for own in accepted]


def longest_answer(accepted: Sequence[Sequence[Accepted]]) -> int:
    """Tokens of the longest accepted answer that the context holds; of the longest if it holds none."""
    every = [answer for own in accepted for answer in own]
    return max(answer.tokens for answer in [answer for answer in every if answer.fits] or every)


def too_long(accepted: Sequence[Sequence[Accepted]], room: int) -> int:
    """The number of examples all of whose answers are longer than `room` tokens; what ends them needs no room."""
    return sum(min(answer.tokens for answer in own) - 1 > room for own in accepted)


def warn_of_unfit(accepted: Sequence[Sequence[Accepted]]) -> None:
    """Warn of examples whose answers the context does not hold."""
    if cut := sum(not any(answer.fits for answer in own) for own in accepted):
        warnings.warn(
            f"{cut} of {len(accepted)} accepted answers do not fit the base's context beside their prompts, so that no "
            "answer can equal them: shorten them, or leave them out",
            stacklevel=3,
        )


def warn_of_longer(accepted: Sequence[Sequence[Accepted]], room: int) -> None:
    """Warn of examples whose answers are all too long."""
    if cut := too_long(accepted, room):
        warnings.warn(
            f"{cut} of {len(accepted)} accepted answers are longer than {room} tokens, so that no answer can equal "
            "them: raise max_new_tokens, or shorten them",
            stacklevel=3,
        )


def _answered(example: Example, answer: str) -> Example:
    """The example with this answer, which alone is learned; its own may call tools."""
    before = [replace(turn, learned=turn.role != "assistant") for turn in example.prompt]
    own = next((m for m in example.messages[len(before) :] if m.written == answer), Message("assistant", answer))
    return Example((*before, replace(own, learned=True)), where=example.where)


def _text_of(model: AdaptedModel) -> Callable[[Tokens], str]:
    """Maps an example's tokens to the answer that they teach."""
    tokenizer, begin = model.tokenizer, opening(model.tokenizer)
    ends = end_tokens(getattr(model.base, "generation_config", None), tokenizer)

    def text_of(item: Tokens) -> str:
        taught = [token for token, loss in zip(item.ids, item.loss, strict=True) if loss]
        return decoded_answer(taught, tokenizer, ends, begin)

    return text_of


def _items(model: AdaptedModel, examples: Sequence[Example]) -> dict[int, Item]:
    """The tokens of those examples that can be learned, by their indices."""
    try:
        encoded = objective_of(model).encode(model, None, examples, None, "cut")
    except DataError:  # none can
        return {}
    return dict(zip(encoded.kept, encoded.items, strict=True))
