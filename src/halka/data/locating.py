"""Find the assistant's answers in a conversation's text, as the base's chat template renders it.

A template can only render, so answers are located by rendering: the messages before an answer, rendered with the
generation prompt, must be a prefix of the whole text. The last answer reaches to the end; an earlier one must appear
there verbatim, behind what the template writes before the last or nothing, closed by the same token as the last. How a
call of a tool reads is the template's alone: an earlier answer that calls must appear as it does where it is the last.
A template that drops or rewrites messages, tools or calls breaks one of these conditions and is refused, because the
model would learn something else than the data.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class _Answer:
    """What stands in the text for an answer: what it says, `begin` that may stand before that, and what closes it."""

    says: str
    begin: str
    closing: str


def write_answers(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Chat | DataError]:
    """Each example's text with its answers to learn, or the error that says why they cannot be located."""
    answers = [[i for i, m in enumerate(e.messages) if m.role == "assistant" and m.learned] for e in examples]
    texts = write([example.messages for example in examples], tokenizer, generation_prompt=False)
    places = [(example.messages, i) for example, indices in zip(examples, answers, strict=True) for i in indices]
    prompts = iter(write([messages[:i] for messages, i in places], tokenizer, generation_prompt=True))
    calling = [messages[: i + 1] for messages, i in places if messages[i].calls and i + 1 < len(messages)]
    as_last = iter(write(calling, tokenizer, generation_prompt=False))
    marks, usual = _marks(tokenizer), _Answer("", opening(tokenizer), closing(tokenizer))
    chats: list[Chat | DataError] = []
    for example, indices, text in zip(examples, answers, texts, strict=True):
        messages, openings = example.messages, {i: next(prompts) for i in indices}
        calls = {i: next(as_last) for i in indices if messages[i].calls and i + 1 < len(messages)}
        try:
            chats.append(_locate(messages, text, openings, calls, usual, marks))
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
    openings: Mapping[int, str | DataError],
    as_last: Mapping[int, str | DataError],
    usual: _Answer,
    marks: tuple[str, ...],
) -> Chat:
    """The answers in a text.

    openings   the prompts for the answers to learn, by their indices
    as_last    texts that end with an earlier answer that calls
    usual      what an answer begins with and is closed by
    """
    last = len(messages) - 1
    if last not in openings:
        more = " that is to be learned" if messages and messages[-1].role == "assistant" else ""
        raise DataError(f"the conversation does not end with the assistant's answer{more}")
    if isinstance(text, DataError):
        raise text
    _check_kept(messages, text)
    end, closing = _close(text, messages[last], marks)
    if not messages[last].calls:
        usual = _Answer("", _between(openings[last], text, messages[last]) or usual.begin, closing)
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
        if index < last:
            says = message.content.strip()
            answer = _calling(as_last[index], prompt, message, usual, marks) if index in as_last else None
            stop = _earlier(text, len(prompt), answer or replace(usual, says=says))
        if stop is None:
            raise DataError(
                f"the base's chat template rewrites the answer in message {number} once others follow (some templates "
                "strip thoughts), or closes it with another token than the last. End the conversation at its first "
                f"answer, or {OWN_TEMPLATE} that keeps turns unchanged."
            )
        if message.calls:
            _check_calling(message, text[len(prompt) : stop], number)
        spans.append((len(prompt), stop))
    return Chat(text, spans)


def _check_kept(messages: Sequence[Message], text: str) -> None:
    """Raises DataError where something of a message, or of the last answer, does not stand in the text."""
    for index, message in enumerate(messages):
        content = message.content.strip()
        kept = content in text or (message.role == "tool" and _spelled(content, text))
        if message.role not in ("assistant", "tools") and not kept:
            raise DataError(
                f"the base's chat template drops or rewrites message {_number(messages, index)} (by the {message.role})"
            )
    answer = messages[-1].content.strip()
    if answer not in text and _squeezed(answer) not in _squeezed(text):  # Qwen3's sets thoughts' line breaks anew
        raise DataError(
            "the base's chat template drops or rewrites a part of the answer in message "
            f"{_number(messages, len(messages) - 1)}, as some do with thoughts: {OWN_TEMPLATE} that keeps it"
        )


def _check_calling(message: Message, text: str, number: int) -> None:
    """Raises DataError where something of an answer that calls does not stand in its text, as often as it says it."""
    if _squeezed(message.content) not in _squeezed(text):
        raise DataError(
            f"the base's chat template drops the text before a call in message {number}: leave it out, or "
            f"{OWN_TEMPLATE} that keeps it"
        )
    parts = Counter(part for call in message.calls for part in (call.name, *texts_in(json.loads(call.arguments))))
    if any(_spelled(part, text) < count for part, count in parts.items()):
        names = " and ".join(dict.fromkeys(repr(call.name) for call in message.calls))
        raise DataError(
            f"the base's chat template drops or rewrites a call of {names} in message {number}: take a base that calls "
            f"tools, or {OWN_TEMPLATE} that writes all calls"
        )


def _spelled(part: str, text: str) -> int:
    """How often it stands in the text, as it is or as JSON or Python would write it there."""
    spellings = (part, *(json.dumps(part, ensure_ascii=ascii)[1:-1] for ascii in (False, True)))
    return max(map(text.count, (*spellings, *([PYTHONS[part]] if part in PYTHONS else []))))


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


def _calling(text: str | DataError, prompt: str, message: Message, usual: _Answer, marks: tuple[str, ...]) -> _Answer:
    """An answer that calls, as it is in a text that ends with it; it says nothing where that cannot be known."""
    if isinstance(text, DataError) or not text.startswith(prompt):
        return replace(usual, says="")
    end, last = _close(text, message, marks)
    says = text[len(prompt) : end].strip().removeprefix(usual.begin.strip()).strip()
    closing = usual.closing if usual.closing in says else last
    return _Answer(says.rpartition(closing)[0].rstrip() if closing else says, usual.begin, closing)


def _earlier(text: str, start: int, answer: _Answer) -> int | None:
    """Where an answer that is not the last ends, or None where it does not stand there."""
    begin, at = answer.begin.strip(), _skip_blanks(text, start)
    if not text.startswith(answer.says, at) and text.startswith(begin, at):
        at = _skip_blanks(text, at + len(begin))
    if answer.says and text.startswith(answer.says, at):
        at = _skip_blanks(text, at + len(answer.says))
        if text.startswith(answer.closing, at):
            return at + len(answer.closing)
    return None


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
