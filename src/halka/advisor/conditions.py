"""The four ways in which a base is asked: as it is, after worked examples, with passages, with both."""

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
from halka.util.errors import HalkaError

CLOSED, EXAMPLES, DOCUMENTS, BOTH = CONDITIONS = ("closed", "examples", "documents", "both")
NOBODY = "no message by the user before the answer: give it one"

Find = Callable[[str], Sequence[Passage]]
"""A question to the passages that may answer it."""


def conditioned(
    model: AdaptedModel, example: Example, shots: Sequence[Example] = (), find: Find | None = None
) -> Example:
    """The example with `shots` as turns before its own, and every question with the passages that `find` gives.

    A base without a chat template reads all of it as one text.
    Raises ValueError for an example without a user's message.
    """
    asked = [_with_passages(model, each, find) for each in (*shots, example)]
    system = [message for message in example.prompt if message.role == "system"]
    turns = [message for each in asked for message in each.messages if message.role != "system"]
    if model.tokenizer.chat_template is None and shots:
        answer = turns.pop() if example.messages[-1].role == "assistant" else None
        text = "\n".join(
            f"{message.content}\n" if message.role == "assistant" else message.content for message in turns
        )
        turns = [Message("user", f"{text}\n"), *([] if answer is None else [answer])]
    return Example((*system, *turns), example.references, example.where)


def usable(model: AdaptedModel, examples: Sequence[Example]) -> tuple[list[int], list[Problem]]:
    """The places of the examples that the base can be asked, and what is wrong with the others.

    Its chat template takes them, their answer begins within its context, and a user asks. Raises ValueError where none
    is left.
    """
    encoded = encode_all(examples, model.tokenizer, context(model, None))
    asked = [index for index in encoded.kept if any(message.role == "user" for message in examples[index].prompt)]
    silent = sorted({*encoded.kept} - {*asked})
    places = [examples[index].where or f"example {index + 1}" for index in silent]
    problems = [*encoded.problems, *(Problem(place, NOBODY) for place in places)]
    if not asked:
        raise HalkaError(f"none of {len(examples)} examples can be used. {problems[0]}")
    return asked, problems


def best_asked(scores: Mapping[str, Score]) -> str:
    """The condition with the highest score; of those that are alike the first, which needs less of a prompt."""
    return max(scores, key=lambda each: scores[each].value)


def question_of(example: Example) -> str:
    """What the user asks last. Raises ValueError where nobody asks."""
    for message in reversed(example.prompt):
        if message.role == "user":
            return message.content
    raise HalkaError(f"{example.where or 'an example'}: {NOBODY}")


def _with_passages(model: AdaptedModel, example: Example, find: Find | None) -> Example:
    question = question_of(example)
    if find is None:
        return example
    last = max(number for number, message in enumerate(example.prompt) if message.role == "user")
    asked = user_message(model, prompted(question, find(question)))
    return Example((*example.messages[:last], asked, *example.messages[last + 1 :]), example.references, example.where)
