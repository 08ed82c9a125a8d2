"""Find the assistant's answers in a conversation's text, as the base's chat template renders it.

A template can only render, so answers are located by rendering: the messages before an answer, rendered with the
generation prompt, must be a prefix of the whole text. The last answer reaches to the end; an earlier one must appear
there verbatim, behind what the template writes before the last or nothing, closed by the same token as the last. How a
call of a tool reads is the template's alone: an earlier answer that calls must appear as it does where it is the last.
A template that drops or rewrites messages, tools or calls breaks one of these conditions and is refused, because the
model would learn something else than the data.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from halka.data.chat import OWN_TEMPLATE, added_tokens, write
from halka.data.examples import Example, Message
from halka.data.tools import texts_in
from halka.util.errors import DataError

PROBE = (Message("user", "Who?"), Message("assistant", "Ada."))
PYTHONS = {"true": "True", "false": "False", "null": "None"}  # JSON's words as templates may write them


@dataclass(frozen=True)
class Chat:
    """A conversation's text, and the start and end character of each answer, its closing token included."""

    text: str
    answers: list[tuple[int, int]]

    @property
    def prompt(self) -> str:
        """The text before the last answer, as inference sees it."""
        return self.text[: self.answers[-1][0]]


def write_answers(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Chat | DataError]:
    """Each example's text with its answers to learn, or the error that says why they cannot be located."""
    answers = [[i for i, m in enumerate(e.messages) if m.role == "assistant" and m.learned] for e in examples]
    texts = write([example.messages for example in examples], tokenizer, generation_prompt=False)
    places = [(example.messages, i) for example, indices in zip(examples, answers, strict=True) for i in indices]
    prompts = iter(write([messages[:i] for messages, i in places], tokenizer, generation_prompt=True))
    calling = [messages[: i + 1] for messages, i in places if messages[i].calls and i + 1 < len(messages)]
    as_last = iter(write(calling, tokenizer, generation_prompt=False))
    marks, around = _marks(tokenizer), (opening(tokenizer), closing(tokenizer))
    chats: list[Chat | DataError] = []
    for example, indices, text in zip(examples, answers, texts, strict=True):
        messages, openings, calls = example.messages, {i: next(prompts) for i in indices}, dict[int, tuple[str, str]]()
        for i in indices:
            if messages[i].calls and i + 1 < len(messages):
                calls[i] = _calling(next(as_last), openings[i], messages[i], around, marks)
        try:
            chats.append(_locate(messages, text, openings, calls, around[0], marks))
        except DataError as error:
            chats.append(error)
    return chats


def closing(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that the chat template closes an answer with; empty if there is none."""
    (text,) = write([PROBE], tokenizer, generation_prompt=False)
    return "" if isinstance(text, DataError) else _close(text, PROBE[-1], _marks(tokenizer))[1]


def opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes between its prompt for an answer and that."""
    (text,) = write([PROBE], tokenizer, generation_prompt=False)
    (prompt,) = write([PROBE[:-1]], tokenizer, generation_prompt=True)
    return _between(prompt, text, PROBE[-1])


def _marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    return tuple(token.content for token in added_tokens(tokenizer).values())


def _locate(
    messages: Sequence[Message],
    text: str | DataError,
    openings: dict[int, str | DataError],
    calls: dict[int, tuple[str, str]],
    begin: str,
    marks: tuple[str, ...],
) -> Chat:
    """The answers in a text; `openings` are the prompts for those to learn, by their indices.

    calls   what earlier ones say that call, and what closes them
    begin   what the template writes before an answer
    """
    last = len(messages) - 1
    if last not in openings:
        more = " that is to be learned" if messages and messages[-1].role == "assistant" else ""
        raise DataError(f"the conversation does not end with the assistant's answer{more}")
    if isinstance(text, DataError):
        raise text
    _check_kept(messages, text)
    end, closing = _close(text, messages[last], marks)
    begin = _between(openings[last], text, messages[last]) or begin
    spans: list[tuple[int, int]] = []
    for index, prompt in openings.items():
        message, number = messages[index], _number(messages, index)
        if isinstance(prompt, DataError):
            raise prompt
        if not text.startswith(prompt):
            raise DataError(
                f"the base's chat template renders the messages before the answer in message {number} differently when "
                "it prompts for that answer: the model would train on a prompt that it never sees later. End the "
                f"conversation at its first answer, or {OWN_TEMPLATE} that keeps turns unchanged."
            )
        stop: int | None = end
        if index in calls:
            _check_calls(message, calls[index][0], number)
            stop = _earlier(text, len(prompt), *calls[index], begin)
        elif index < last:
            stop = _earlier(text, len(prompt), message.content.strip(), closing, begin)
        if stop is None:
            raise DataError(
                f"the base's chat template rewrites the answer in message {number} once others follow (some templates "
                "strip thoughts), or closes it with another token than the last. End the conversation at its first "
                f"answer, or {OWN_TEMPLATE} that keeps turns unchanged."
            )
        if index == last:
            _check_calls(message, text[len(prompt) : stop], number)
        spans.append((len(prompt), stop))
    return Chat(text, spans)


def _check_kept(messages: Sequence[Message], text: str) -> None:
    """Raises DataError where something of a message, or of the last answer, does not stand in the text."""
    for index, message in enumerate(messages):
        number, content = _number(messages, index), message.content.strip()
        if message.role == "tools":
            continue
        if message.role == "assistant":
            _check_calls(message, text, number)
        elif content not in text and not (message.role == "tool" and _spelled(content, text)):
            raise DataError(f"the base's chat template drops or rewrites message {number} (by the {message.role})")
    answer = messages[-1].content.strip()
    if answer not in text and _squeezed(answer) not in _squeezed(text):  # Qwen3's sets thoughts' line breaks anew
        raise DataError(
            f"the base's chat template drops or rewrites a part of the answer in message {number}, as some do with "
            f"thoughts: {OWN_TEMPLATE} that keeps it"
        )


def _check_calls(message: Message, text: str, number: int) -> None:
    """Raises DataError for a call whose name or arguments do not stand in the text."""
    for call in message.calls:
        if not all(_spelled(part, text) for part in (call.name, *texts_in(json.loads(call.arguments)))):
            raise DataError(
                f"the base's chat template drops or rewrites the call of {call.name!r} in message {number}: take a "
                f"base that calls tools, or {OWN_TEMPLATE} that writes calls"
            )


def _spelled(part: str, text: str) -> bool:
    """Whether it stands in the text as it is, or as JSON or Python would write it there."""
    spellings = (part, *(json.dumps(part, ensure_ascii=ascii)[1:-1] for ascii in (False, True)))
    return any(own in text for own in spellings) or (part in PYTHONS and PYTHONS[part] in text)


def _number(messages: Sequence[Message], index: int) -> int:
    """The message's number in its conversation, from 1, where tools are no message."""
    return sum(message.role != "tools" for message in messages[: index + 1])


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


def _calling(
    text: str | DataError, prompt: str | DataError, answer: Message, around: tuple[str, str], marks: tuple[str, ...]
) -> tuple[str, str]:
    """What an answer that calls says where it is the last, empty where that cannot be known, and what closes it.

    `around` is what the template writes before the last answer and what it closes a text with.
    """
    if isinstance(text, DataError) or isinstance(prompt, DataError) or not text.startswith(prompt):
        return "", ""
    end, last = _close(text, answer, marks)
    begin, usual = around
    says = text[len(prompt) : end].strip().removeprefix(begin.strip()).strip()
    closing = usual if usual in says else last
    return (says.rpartition(closing)[0].rstrip() if closing else says), closing


def _earlier(text: str, start: int, says: str, closing: str, begin: str) -> int | None:
    """Where an answer that is not the last ends, or None; `begin` may stand before what it says."""
    begin = begin.strip()
    at = _skip_blanks(text, start)
    if not text.startswith(says, at) and text.startswith(begin, at):
        at = _skip_blanks(text, at + len(begin))
    if says and text.startswith(says, at):
        at = _skip_blanks(text, at + len(says))
        if text.startswith(closing, at):
            return at + len(closing)
    return None


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
