"""The four ways to prompt the base: the question alone, after worked examples, with retrieved passages, with both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from halka.core import AdaptedModel
from halka.data.examples import Example, Message
from halka.data.readers import Problem
from halka.data.tokens import encode_all
from halka.evaluation.metrics import Score
from halka.evaluation.streaming import user_message
from halka.models import context
from halka.rag.passages import Passage
from halka.rag.prompt import prompted
from halka.util.errors import DataError

NO_QUESTION = "no user message before the answer: add one"

Retrieve = Callable[[str], Sequence[Passage]]
"""Maps a question to the passages that may answer it."""


def build_prompt(
    model: AdaptedModel, example: Example, shots: Sequence[Example] = (), retrieve: Retrieve | None = None
) -> Example:
    """The example with `shots` as earlier turns, and every question preceded by its retrieved passages.

    For a base without a chat template the turns are joined into one text.
    Raises DataError for an example without a user message.
    """
    asked = [_with_passages(model, shot, retrieve) for shot in (*shots, example)]
    system = [message for message in example.prompt if message.role == "system"]
    turns = [message for shot in asked for message in shot.messages if message.role != "system"]
    if model.tokenizer.chat_template is None and shots:
        answer = turns.pop() if example.messages[-1].role == "assistant" else None
        text = "\n".join(
            f"{message.content}\n" if message.role == "assistant" else message.content for message in turns
        )
        turns = [Message("user", f"{text}\n"), *([] if answer is None else [answer])]
    return Example((*system, *turns), example.references, example.where)


def usable_examples(model: AdaptedModel, examples: Sequence[Example]) -> tuple[list[int], list[Problem]]:
    """Indices of the examples that the base can be prompted with, and problems of the others.

    Usable is an example that the chat template accepts, whose answer begins within the base's context, and that has a
    user message. Raises DataError where none is left.
    """
    encoded = encode_all(examples, model.tokenizer, context(model, None))
    usable = [index for index in encoded.kept if any(message.role == "user" for message in examples[index].prompt)]
    silent = sorted({*encoded.kept} - {*usable})
    places = [examples[index].where or f"example {index + 1}" for index in silent]
    problems = [*encoded.problems, *(Problem(place, NO_QUESTION) for place in places)]
    if not usable:
        raise DataError(f"none of {len(examples)} examples can be used. {problems[0]}")
    return usable, problems


def best_condition(scores: Mapping[str, Score]) -> str:
    """The condition with the highest score; of equal ones the first, which has the shorter prompt."""
    return max(scores, key=lambda condition: scores[condition].value)


def question_of(example: Example) -> str:
    """The last user message. Raises DataError where there is none."""
    for message in reversed(example.prompt):
        if message.role == "user":
            return message.content
    raise DataError(f"{example.where or 'an example'}: {NO_QUESTION}")


def _with_passages(model: AdaptedModel, example: Example, retrieve: Retrieve | None) -> Example:
    question = question_of(example)
    if retrieve is None:
        return example
    last = max(number for number, message in enumerate(example.prompt) if message.role == "user")
    asked = user_message(model, prompted(question, retrieve(question)))
    return Example((*example.messages[:last], asked, *example.messages[last + 1 :]), example.references, example.where)
