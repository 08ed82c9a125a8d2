"""From an `Example` to token ids and a loss mask, through the base's own chat template.

The ids are exactly those of `tokenizer.apply_chat_template(messages)`, and they begin with the prompt's ids as
inference sees them (`encode_prompt`); where both cannot hold, the example is refused. Loss is on what the assistant
writes: every answer with the token that ends it, without the role header before and the line break after.

Without a chat template, the prompt's text is followed by the answer's and the end-of-sequence token.

A raw text is its tokens and the end-of-sequence token, with loss on all of them and no chat template.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from halka.data import chat, locating
from halka.data.examples import Example, Item
from halka.data.truncation import EncodedExamples, LengthPolicy, TooLongError, truncate
from halka.util.errors import DataError

CHUNK = 1000  # examples tokenized at once, of few messages
WRITTEN = 20_000  # messages written at once: a dialogue is written anew up to each of its answers
UNCLOSED = "end without a token that closes them: the model will not learn to stop"
NOT_PLAIN = (
    "the base's tokenizer has no chat template, so an example can only be one user message and one answer: "
    f"write it so, or {chat.OWN_TEMPLATE}"
)


@dataclass(frozen=True)
class Tokens(Item):
    """Token ids and, for each of them, whether predicting it carries loss."""

    ids: list[int]
    loss: list[bool]

    @property
    def labels(self) -> int:
        return sum(self.loss[1:])

    def __len__(self) -> int:
        return len(self.ids)


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> Tokens:
    """Tokenize the whole conversation, with loss on the assistant's tokens.

    Raises:
        TooLongError: it has more than `max_length` tokens.
        DataError: it does not end with an answer, or the chat template refuses or rewrites it.
    """
    tokens = _encode([example], tokenizer)[0]
    if isinstance(tokens, DataError):
        raise example.error(tokens)
    if max_length is not None and len(tokens.ids) > max_length:
        raise TooLongError(example.where, len(tokens.ids), max_length)
    return tokens


def encode_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    too_long: LengthPolicy = "cut",
) -> EncodedExamples[Tokens]:
    """Tokenize many examples; one that cannot be used becomes a problem.

    `too_long` decides on an example over `max_length`: "cut" keeps its beginning (and drops it where that carries no
    loss), and all of a raw text, in chunks; "drop" makes it a problem, "error" raises.

    Raises:
        TooLongError: with "error", for the first over `max_length`.
        DataError: no example is left, or `too_long` or `max_length` is invalid.
    """

    def shortened(index: int, tokens: Tokens, length: int) -> Tokens | list[Tokens] | DataError:
        return chunks(tokens, length, tokenizer) if examples[index].is_text else shorten(tokens, length)

    return truncate(examples, _encode_in_chunks(examples, tokenizer), shortened, max_length, too_long)


def unclosed(items: Iterable[Tokens], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many items' last answers end without a token of the tokenizer's own, as what closes an answer is one.

    Raw texts, which have loss from the first token on, are no answers.
    """
    closing = chat.added_tokens(tokenizer)
    backwards = (zip(reversed(item.ids), reversed(item.loss), strict=True) for item in items if not item.loss[0])
    last = (next((token for token, loss in pairs if loss), None) for pairs in backwards)
    return sum(token is not None and token not in closing for token in last)


def shorten(tokens: Tokens, max_length: int) -> Tokens | DataError:
    """The first `max_length` tokens, or the error that says why the example is dropped."""
    if not any(tokens.loss[:max_length]):
        return DataError(f"the answer begins after max_length {max_length} (the example has {len(tokens)} tokens)")
    return Tokens(tokens.ids[:max_length], tokens.loss[:max_length])


def chunks(tokens: Tokens, max_length: int, tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """A raw text in pieces of at most `max_length` tokens, of which every token after the first is predicted once.

    All begin with the beginning-of-sequence token if the text does, else a piece begins with the last token before it.
    """
    ids, marked = tokens.ids, tokens.ids[:1] == start_ids(tokenizer)
    pieces = [
        [ids[0] if marked else ids[at - 1], *ids[at : at + max_length - 1]] for at in range(1, len(ids), max_length - 1)
    ]
    return [Tokens(piece, [True] * len(piece)) for piece in pieces]


def encode_prompt(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt's ids for inference: all messages before the final answer, with the generation prompt.

    Raises DataError if the chat template refuses the prompt, or there is none and the prompt is not one user message.
    """
    if example.is_text:
        raise example.error("it is raw text to train on, and no prompt: give it as a user's message")
    if tokenizer.chat_template is None:
        if [message.role for message in example.prompt] != ["user"]:
            raise example.error(NOT_PLAIN)
        return start_ids(tokenizer) + _ids([example.prompt[0].content], tokenizer)[0]
    text = chat.write([example.prompt], tokenizer, generation_prompt=True)[0]
    if isinstance(text, DataError):
        raise example.error(text)
    return _ids([text], tokenizer)[0]


def _encode_in_chunks(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tokens | DataError]:
    """Equal tokens of all examples are one object: an integer of its own takes twice the memory of all else."""
    one: dict[int, int] = {}
    for chunk in _in_chunks(examples):
        for item in _encode(chunk, tokenizer):
            tokens = isinstance(item, Tokens)
            yield Tokens([one.setdefault(token, token) for token in item.ids], item.loss) if tokens else item


def _in_chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """So many that their texts, of which a dialogue has as many as answers, take little memory at once."""
    chunk, written = list[Example](), 0
    for example in examples:
        own = len(example.messages) ** 2
        if chunk and (len(chunk) == CHUNK or written + own > WRITTEN):
            yield chunk
            chunk, written = [], 0
        chunk.append(example)
        written += own
    if chunk:
        yield chunk


def _encode(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Tokens | DataError]:
    """Each example's tokens, or what is wrong with it (without its place)."""
    encode_many = _encode_plain if tokenizer.chat_template is None else _encode_chats
    texts = [example.messages[0].content for example in examples if example.is_text]
    chats = [example for example in examples if not example.is_text]
    of_texts = iter(_encode_texts(texts, tokenizer))
    of_chats = iter(encode_many(chats, tokenizer) if chats else [])
    return [next(of_texts if example.is_text else of_chats) for example in examples]


def _encode_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    start, end = start_ids(tokenizer), _end(tokenizer)
    encoded = [[*start, *ids, end] for ids in _ids(texts, tokenizer)]
    return [Tokens(ids, [True] * len(ids)) for ids in encoded]


def _encode_chats(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Tokens | DataError]:
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__} gives no character offsets: load the fast tokenizer")
    chats = locating.write_answers(examples, tokenizer)
    written = [item for item in chats if isinstance(item, locating.Chat)]
    if not written:
        return [item for item in chats if isinstance(item, DataError)]
    texts = [item.text for item in written]
    whole = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    prompts = _ids([item.prompt for item in written], tokenizer)
    encoded = map(_mark, written, whole["input_ids"], whole["offset_mapping"], prompts)
    return [next(encoded) if isinstance(item, locating.Chat) else item for item in chats]


def _mark(item: locating.Chat, ids: list[int], offsets: list[tuple[int, int]], prompt: list[int]) -> Tokens | DataError:
    """A token belongs to an answer if it begins within it."""
    if ids[: len(prompt)] != prompt:
        return DataError(
            "the answer's first characters merge into the prompt's last token, so inference would see another prompt "
            "than training: begin the answer with a visible character, and with its thought (<think>…</think>) where "
            "the chat template's prompt begins one"
        )
    starts = [start for start, _ in offsets]
    loss = [False] * len(ids)
    for number, (start, end) in enumerate(item.answers, start=1):
        last = number == len(item.answers)
        if not last and (
            _behind(start, item.text, starts, offsets) or _behind(end, item.text, starts, offsets).strip()
        ):
            return DataError(
                f"the first characters of answer {number} merge into the token before them, or its last into the token "
                f"behind: begin it with a visible character, set its weight to 0, or {chat.OWN_TEMPLATE} that closes "
                "answers with a token"
            )
        first, stop = len(prompt) if last else bisect_left(starts, start), bisect_left(starts, end)
        loss[first:stop] = [True] * (stop - first)
    return Tokens(ids, loss) if any(loss) else DataError("no token carries loss")


def _behind(place: int, text: str, starts: list[int], offsets: list[tuple[int, int]]) -> str:
    """What a token that begins before the place has behind it; of a token that closes an answer maybe blanks."""
    before = bisect_left(starts, place) - 1
    return text[place : offsets[before][1]] if before >= 0 else ""


def _encode_plain(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Tokens | DataError]:
    """Prompt and answer tokenized as one text if that keeps the prompt's tokens, else apart."""
    end = _end(tokenizer)
    plain = [[m.role for m in e.messages] == ["user", "assistant"] and not e.messages[-1].calls for e in examples]
    pairs = [[m.content for m in example.messages] for example, fits in zip(examples, plain, strict=True) if fits]
    start = start_ids(tokenizer)
    prompts = _ids([prompt for prompt, _ in pairs], tokenizer)
    answers = _ids([answer for _, answer in pairs], tokenizer)
    joined = _ids([prompt + answer for prompt, answer in pairs], tokenizer)
    encoded: list[Tokens] = []
    for prompt, answer, one in zip(prompts, answers, joined, strict=True):
        body = one if one[: len(prompt)] == prompt else prompt + answer
        ids = [*start, *body, end]
        before = len(start) + len(prompt)
        encoded.append(Tokens(ids, [False] * before + [True] * (len(ids) - before)))
    rest = iter(encoded)
    return [next(rest) if fits else DataError(NOT_PLAIN) for fits in plain]


def _end(tokenizer: PreTrainedTokenizerBase) -> Any:
    if tokenizer.eos_token_id is None:
        raise DataError("the base's tokenizer has no end-of-sequence token; set its eos_token")
    return tokenizer.eos_token_id


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token, if the tokenizer puts one in front."""
    return [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id][:1]


def windows(ids: list[int], tokenizer: PreTrainedTokenizerBase, size: int) -> list[list[int]]:
    """A text's tokens in pieces of at most `size`, each begun as the tokenizer begins texts, by a token or none."""
    begin = start_ids(tokenizer)
    step = size - len(begin)
    return [[*begin, *ids[start : start + step]] for start in range(0, len(ids), step)]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
