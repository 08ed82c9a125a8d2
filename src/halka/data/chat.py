"""A conversation's text as the base's chat template writes it, and where in it the assistant's answers stand.

The template is a program that only renders, so the places are found by rendering: what stands before an answer is what
the template writes for the messages before it with its generation prompt, and this must be how the whole begins. The
last answer reaches to the end; an earlier one must stand there as it was given, closed as the last one is. A template
that drops or rewrites messages breaks one of these and is refused, because the model would learn other than was given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from halka.data.examples import Example, Message
from halka.util.errors import DataError


@dataclass(frozen=True)
class Chat:
    """The text, and from which to which character each answer goes, its closing token included."""

    text: str
    answers: list[tuple[int, int]]

    @property
    def prompt(self) -> str:
        """The text before the last answer: what inference begins with."""
        return self.text[: self.answers[-1][0]]


def write(
    conversations: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool
) -> list[str | DataError]:
    """Each conversation's text, or why the template does not write it."""
    if not conversations:
        return []
    dicts = [[{"role": m.role, "content": m.content} for m in messages] for messages in conversations]
    try:
        texts = tokenizer.apply_chat_template(dicts, tokenize=False, add_generation_prompt=generation_prompt)
        return cast("list[str | DataError]", texts)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        if len(conversations) > 1:  # one of them: ask one by one
            return [write([messages], tokenizer, generation_prompt)[0] for messages in conversations]
        has_system = any(message.role == "system" for message in conversations[0])
        way_out = " Put the system text into the user's first message." if has_system else ""
        return [DataError(f"the base's chat template refuses the conversation: {error}.{way_out}")]


def write_answers(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Chat | DataError]:
    """Each example's text with the places of its answers, or why they cannot be found."""
    answers = [[i for i, m in enumerate(example.messages) if m.role == "assistant"] for example in examples]
    texts = write([example.messages for example in examples], tokenizer, generation_prompt=False)
    before = [example.messages[:i] for example, found in zip(examples, answers, strict=True) for i in found]
    prompts = iter(write(before, tokenizer, generation_prompt=True))
    marks = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip())
    chats: list[Chat | DataError] = []
    for example, found, text in zip(examples, answers, texts, strict=True):
        openings = {i: next(prompts) for i in found}
        try:
            chats.append(_locate(example.messages, text, openings, marks))
        except DataError as error:
            chats.append(error)
    return chats


def _locate(
    messages: Sequence[Message], text: str | DataError, openings: dict[int, str | DataError], marks: tuple[str, ...]
) -> Chat:
    if len(messages) - 1 not in openings:
        raise DataError("the conversation does not end with the assistant's answer")
    if isinstance(text, DataError):
        raise text
    for number, message in enumerate(messages, start=1):
        if message.role != "assistant" and message.content.strip() not in text:
            raise DataError(f"the base's chat template drops or rewrites message {number} (by the {message.role})")
    end, closing = _close(text, marks)
    spans: list[tuple[int, int]] = []
    for index, prompt in openings.items():
        if isinstance(prompt, DataError):
            raise prompt
        if not text.startswith(prompt):
            raise DataError(
                f"the base's chat template writes what comes before the answer in message {index + 1} otherwise when "
                "it prompts for that answer: the model would learn from a prompt that it never sees. End the "
                "conversation at its first answer, or give the tokenizer a chat_template that keeps turns as they are."
            )
        last = index == len(messages) - 1
        spans.append((len(prompt), end if last else _earlier(text, len(prompt), messages[index], index, closing)))
    return Chat(text, spans)


def _close(text: str, marks: tuple[str, ...]) -> tuple[int, str]:
    """Where the last answer ends, and the token that closes it: blanks behind it are not the answer's.

    Without a closing token all blanks are, for nothing else tells that the answer is over.
    """
    stripped = text.rstrip()
    if not stripped.endswith(marks):
        return len(text), ""
    return len(stripped), max((mark for mark in marks if stripped.endswith(mark)), key=len)


def _earlier(text: str, start: int, message: Message, index: int, closing: str) -> int:
    """Where an answer that is not the last one ends."""
    content = message.content.strip()
    at = _skip_blanks(text, start)
    if text.startswith(content, at):
        at = _skip_blanks(text, at + len(content))
        if text.startswith(closing, at):
            return at + len(closing)
    raise DataError(
        f"the base's chat template rewrites the answer in message {index + 1} once others follow (some templates strip "
        "thoughts), or closes it otherwise than the last one. End the conversation at its first answer, or give the "
        "tokenizer a chat_template that keeps turns as they are."
    )


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
