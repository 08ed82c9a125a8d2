"""Render conversations with the base's chat template, and find the assistant's answers in the text.

A template can only render, so answers are located by rendering: the messages before an answer, rendered with the
generation prompt, must be a prefix of the whole text. The last answer reaches to the end; an earlier one must appear
there verbatim, behind what the template writes before the last or nothing, closed by the same token as the last. A
template that drops or rewrites messages breaks one of these conditions and is refused, because the model would learn
something else than the data.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from jinja2 import TemplateError
from transformers import AddedToken, PreTrainedTokenizerBase

from halka.data.examples import Example, Message
from halka.util.errors import DataError

CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")  # how templates write the present time
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a chat template may raise for messages that it refuses."""
OWN_TEMPLATE = "save the base with a chat_template of your own (docs/data.md)"


_time = ContextVar[datetime | None]("time", default=None)  # that templates write; None: the present one


def writes_time(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes the present time into its texts, as Llama 3's do the day."""
    return bool(tokenizer.chat_template) and CLOCK.search(tokenizer.get_chat_template()) is not None


@contextmanager
def written_at(time: datetime) -> Iterator[None]:
    """Chat templates write this time where they write the present one."""
    token = _time.set(time)
    try:
        yield
    finally:
        _time.reset(token)


@dataclass(frozen=True)
class Chat:
    """A conversation's text, and the start and end character of each answer, its closing token included."""

    text: str
    answers: list[tuple[int, int]]

    @property
    def prompt(self) -> str:
        """The text before the last answer, as inference sees it."""
        return self.text[: self.answers[-1][0]]


def write(
    conversations: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool
) -> list[str | DataError]:
    """Each conversation's text, or the error that says why the template refuses it."""
    if not conversations:
        return []
    dicts = [[{"role": m.role, "content": m.content} for m in messages] for messages in conversations]
    template, time = None, _time.get()
    if time is not None and writes_time(tokenizer):
        template = CLOCK.sub(lambda call: repr(time.strftime(call[2])), tokenizer.get_chat_template())
    try:
        texts = tokenizer.apply_chat_template(
            dicts, chat_template=template, tokenize=False, add_generation_prompt=generation_prompt
        )
        return cast("list[str | DataError]", texts)
    except TEMPLATE_ERRORS as error:
        if len(conversations) > 1:  # find out which one
            return [write([messages], tokenizer, generation_prompt)[0] for messages in conversations]
        has_system = any(message.role == "system" for message in conversations[0])
        way_out = " Put the system text into the user's first message." if has_system else ""
        return [DataError(f"the base's chat template refuses the conversation: {error}.{way_out}")]


def write_answers(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Chat | DataError]:
    """Each example's text with its answers to learn, or the error that says why they cannot be located."""
    answers = [[i for i, m in enumerate(e.messages) if m.role == "assistant" and m.learned] for e in examples]
    texts = write([example.messages for example in examples], tokenizer, generation_prompt=False)
    before = [example.messages[:i] for example, indices in zip(examples, answers, strict=True) for i in indices]
    prompts = iter(write(before, tokenizer, generation_prompt=True))
    marks = _marks(tokenizer)
    chats: list[Chat | DataError] = []
    for example, indices, text in zip(examples, answers, texts, strict=True):
        openings = {i: next(prompts) for i in indices}
        try:
            chats.append(_locate(example.messages, text, openings, marks))
        except DataError as error:
            chats.append(error)
    return chats


def closing(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that the template closes the last message with; empty if there is none, or it refuses the messages."""
    (text,) = write([messages], tokenizer, generation_prompt=False)
    return "" if isinstance(text, DataError) else _close(text, messages[-1], _marks(tokenizer))[1]


def opening(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes between its prompt for the last message, an answer, and that; empty if it refuses."""
    (text,) = write([messages], tokenizer, generation_prompt=False)
    (prompt,) = write([messages[:-1]], tokenizer, generation_prompt=True)
    return _between(prompt, text, messages[-1])


def _marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    return tuple(token.content for token in added_tokens(tokenizer).values())


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, AddedToken]:
    """The tokens that were added to the vocabulary, without blank ones: special ones, and what closes an answer."""
    return {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}


def _locate(
    messages: Sequence[Message], text: str | DataError, openings: dict[int, str | DataError], marks: tuple[str, ...]
) -> Chat:
    if len(messages) - 1 not in openings:
        more = " that is to be learned" if messages and messages[-1].role == "assistant" else ""
        raise DataError(f"the conversation does not end with the assistant's answer{more}")
    if isinstance(text, DataError):
        raise text
    for number, message in enumerate(messages, start=1):
        if message.role != "assistant" and message.content.strip() not in text:
            raise DataError(f"the base's chat template drops or rewrites message {number} (by the {message.role})")
    answer = messages[-1].content.strip()
    if answer not in text and _squeezed(answer) not in _squeezed(text):  # Qwen3's sets thoughts' line breaks anew
        raise DataError(
            f"the base's chat template drops or rewrites a part of the answer in message {len(messages)}, as some do "
            f"with thoughts: {OWN_TEMPLATE} that keeps it"
        )
    end, closing = _close(text, messages[-1], marks)
    begin = _between(openings[len(messages) - 1], text, messages[-1])
    spans: list[tuple[int, int]] = []
    for index, prompt in openings.items():
        if isinstance(prompt, DataError):
            raise prompt
        if not text.startswith(prompt):
            raise DataError(
                f"the base's chat template renders the messages before the answer in message {index + 1} differently "
                "when it prompts for that answer: the model would train on a prompt that it never sees later. End the "
                f"conversation at its first answer, or {OWN_TEMPLATE} that keeps turns unchanged."
            )
        last = index == len(messages) - 1
        spans.append(
            (len(prompt), end if last else _earlier(text, len(prompt), messages[index], index, begin, closing))
        )
    return Chat(text, spans)


def _between(prompt: str | DataError, text: str | DataError, answer: Message) -> str:
    """What stands between the prompt and the answer in the text; empty where one of them is not there."""
    if isinstance(text, DataError) or isinstance(prompt, DataError) or not text.startswith(prompt):
        return ""
    return text[len(prompt) : max(text.find(answer.content.strip(), len(prompt)), len(prompt))]


def _squeezed(text: str) -> str:
    """Without blanks and line breaks."""
    return "".join(text.split())


def _close(text: str, answer: Message, marks: tuple[str, ...]) -> tuple[int, str]:
    """Where the last answer ends, and the token behind what it says; blanks after its last token are no part of it.

    Some templates (Phi's) end the text with one more token. Without a closing token all blanks belong to the answer,
    because nothing else marks its end.
    """
    stripped = text.rstrip()
    if not stripped.endswith(marks):
        return len(text), ""
    closing, rest = list[str](), stripped  # the tokens at the end, the last one first
    while (mark := max((mark for mark in marks if rest.endswith(mark)), key=len, default="")) != "":
        closing.append(mark)
        rest = rest.removesuffix(mark).rstrip()
        if rest.endswith(answer.content.strip()):
            return len(stripped), closing[-1]
    return len(stripped), closing[0]


def _earlier(text: str, start: int, message: Message, index: int, begin: str, closing: str) -> int:
    """Where an answer that is not the last ends; `begin` may stand before it."""
    content, begin = message.content.strip(), begin.strip()
    at = _skip_blanks(text, start)
    if not text.startswith(content, at) and text.startswith(begin, at):
        at = _skip_blanks(text, at + len(begin))
    if text.startswith(content, at):
        at = _skip_blanks(text, at + len(content))
        if text.startswith(closing, at):
            return at + len(closing)
    raise DataError(
        f"the base's chat template rewrites the answer in message {index + 1} once others follow (some templates strip "
        "thoughts), or closes it with another token than the last. End the conversation at its first answer, or "
        f"{OWN_TEMPLATE} that keeps turns unchanged."
    )


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
