"""`Prompt`: a text, conversation, example or row that a base is to answer; each becomes an `Example`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from halka.data.examples import Example, Message, checked_example
from halka.data.messages import as_message
from halka.data.readers import row_of
from halka.data.shapes import prompt_of
from halka.util.errors import DataError

Prompt = str | Example | Sequence[Message | Mapping[str, object]] | Mapping[str, object]
"""A text, which is a user's message; a conversation; an example or a row of a file, whose answer is not read."""


def as_prompts(prompts: Sequence[Prompt]) -> list[Example]:
    """Prompts as examples to be answered, which errors call "prompts[0]" and so on. Raises DataError as `as_prompt`."""
    if isinstance(prompts, str):
        raise DataError("prompts is one text: give a list of prompts, such as [prompt]")
    if isinstance(prompts, Mapping | Example | Message) or hasattr(prompts, "columns"):  # a table iterates over these
        raise DataError(f"prompts are of type {type(prompts).__name__}: give a list of prompts, such as a list of rows")
    if not isinstance(prompts, Iterable):
        raise DataError(f"prompts are {prompts!r}: give a list of prompts")
    return [as_prompt(prompt, f"prompts[{index}]") for index, prompt in enumerate(prompts)]


def as_prompt(prompt: Prompt, place: str) -> Example:
    """A prompt as an example to be answered, which errors call `place`.

    Raises DataError for what is no prompt.
    """
    if isinstance(prompt, Example):
        return checked_example(prompt, place)
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"{place} is empty")
        return Example((as_message({"role": "user", "content": prompt}, place),), where=place)
    if isinstance(prompt, Message) or (isinstance(prompt, Mapping) and "role" in prompt):
        raise DataError(f"{place} is one message: a conversation is a list of messages, and prompts a list of those")
    if isinstance(prompt, Mapping):
        try:
            return Example((*prompt_of(row_of(place, prompt)),), where=place)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
    if not isinstance(prompt, Iterable):
        raise DataError(f"{place} is a {type(prompt).__name__}: give a text, a conversation or a row")
    messages = tuple(as_message(message, f"{place}: message {n}") for n, message in enumerate(prompt, start=1))
    example = Example(messages, where=place)
    if not example.prompt:
        raise DataError(f"{place} has no message to answer")
    return example
