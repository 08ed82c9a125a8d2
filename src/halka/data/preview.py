"""Preview a data file: what the model will see, and what is wrong with it, as plain data."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from transformers import AddedToken, PreTrainedTokenizerBase

from halka.data.batches import plan, plan_packed
from halka.data.chat import added_tokens
from halka.data.duplicates import Duplicate, between, within
from halka.data.examples import Example, read_examples
from halka.data.packing import computed_tokens, paths_of
from halka.data.readers import Problem
from halka.data.shapes import keys_read
from halka.data.task import KIND_OF_SHAPE
from halka.data.tokens import UNCLOSED, Tokens, chunks, encode_all, shorten, unclosed
from halka.data.truncation import LengthPolicy, check_max_length
from halka.util.errors import DataError
from halka.util.text import chat_template_fingerprint, plural

Batches = Literal["packed", "padded"]

BINS = 12
PERCENTS = (50, 90, 95, 99)


@dataclass(frozen=True)
class Span:
    """Adjacent tokens of one sort: ordinary or special, with loss or without."""

    text: str
    tokens: int
    loss: bool
    special: bool


@dataclass(frozen=True)
class Shown:
    """One example as the model sees it, before any cut."""

    where: str
    tokens: int
    spans: list[Span]


@dataclass(frozen=True)
class Bin:
    """The number of examples of `first` to `last` tokens."""

    first: int
    last: int
    examples: int


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens before any cut. `too_long` examples would be cut; `lost` of them would keep no answer token.

    quantiles   the lengths that so many per cent of the examples do not exceed
    longest_at  where the longest example was read from
    """

    total: int
    shortest: int
    median: float
    longest: int
    longest_at: str
    quantiles: dict[str, int]
    bins: list[Bin]
    max_length: int | None
    too_long: int
    lost: int


@dataclass(frozen=True)
class Packing:
    """Tokens of one epoch's batches: as rows padded to the longest, without padding, and those that are computed."""

    batches: int
    padded: int
    useful: int
    computed: int

    @property
    def saved(self) -> float:
        """The share of the tokens without padding that need not be computed, as of a training's `Step`."""
        return 1 - self.computed / self.useful


@dataclass(frozen=True)
class Preview:
    """One file or split, tokenized.

    fields       keys of its rows that are read; `unread`: the others
    loss_share   fraction of all tokens that carry loss
    packing      what packed batches save; None where no limit of a batch is set
    problems     rows and examples that cannot be used
    notes        what is doubtful about the others
    repeated     examples that occur twice
    shared       by other file, the examples whose prompt occurs there
    """

    name: str
    shape: str
    fields: list[str]
    unread: list[str]
    chat_template: str
    examples: int
    problems: list[Problem]
    notes: list[str]
    lengths: Lengths
    loss_share: float
    packing: Packing | None
    repeated: list[Duplicate]
    shared: dict[str, list[Duplicate]]
    shown: list[Shown]

    def to_json(self) -> dict:
        return asdict(self)


def preview(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    shape: str | None = None,
    show: int = 3,
    others: Sequence[str | Path] = (),
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    group_shared: bool = False,
    batches: Batches = "packed",
    too_long: LengthPolicy = "cut",
) -> Preview:
    """Preview a file; `others` are files, such as the test split, in which its prompts are looked up.

    `batch_tokens` and `batch_size` limit the batches of which `packing` counts the tokens, and `group_shared` has
    examples that begin alike in one. `batches` and `too_long` are as a training has them.

    Raises:
        DataError: `max_length` is below 2; a file has no usable row, or rows for a classifier, and the tokenizer is an
            encoder's.
        OSError: a file is missing or may not be opened.
    """
    check_max_length(max_length)
    other_examples = {str(other): read_examples(other, shape).examples for other in others}
    rows = read_examples(path, shape)
    if rows.shape in KIND_OF_SHAPE and not tokenizer.chat_template and tokenizer.mask_token is not None:
        raise DataError(
            f"{path}: the rows are read as {rows.shape!r}, for a classifier or a tagger, and this shows what a "
            "language model reads: name a base that is one, or train without a look"
        )
    encoded = encode_all(rows.examples, tokenizer)
    kept = [rows.examples[index] for index in encoded.kept]
    fields, unread = keys_read(rows.rows, rows.shape)
    added = added_tokens(tokenizer)
    notes, trained = _notes(rows.shape, kept, encoded.items, tokenizer, added), encoded.items
    most = max_length
    if rows.shape == "text":
        if max_length is not None and too_long == "cut":
            trained = [piece for tokens in trained for piece in chunks(tokens, max_length, tokenizer)]
            most = None  # nothing is lost
        read = [tokens for tokens in trained if max_length is None or len(tokens.ids) <= max_length]
        notes.insert(
            0,
            f"raw text, learned from its second token on, without the chat template: training reads it in "
            f"{plural(len(read), 'chunk')}",
        )
    lengths = _lengths(kept, encoded.items, most)
    return Preview(
        name=str(path),
        shape=rows.shape,
        fields=fields,
        unread=unread,
        chat_template=chat_template_fingerprint(tokenizer),
        examples=len(kept),
        problems=rows.problems + encoded.problems,
        notes=notes,
        lengths=lengths,
        loss_share=sum(sum(tokens.loss) for tokens in encoded.items) / lengths.total,
        packing=_packing(trained, max_length, batch_tokens, batch_size, group_shared, batches, too_long),
        repeated=within(kept),
        shared={other: between(examples, kept) for other, examples in other_examples.items()},
        shown=[
            Shown(example.where, len(tokens.ids), _spans(tokens, tokenizer, {*added}))
            for example, tokens in zip(kept[:show], encoded.items[:show], strict=True)
        ],
    )


def _lengths(examples: Sequence[Example], items: Sequence[Tokens], max_length: int | None) -> Lengths:
    lengths = [len(tokens.ids) for tokens in items]
    ordered = sorted(lengths)
    shortest, longest = ordered[0], ordered[-1]
    width = -(-(longest - shortest + 1) // BINS)
    counts = [0] * -(-(longest - shortest + 1) // width)
    for length in lengths:
        counts[(length - shortest) // width] += 1
    long = [] if max_length is None else [tokens for tokens in items if len(tokens.ids) > max_length]
    return Lengths(
        total=sum(lengths),
        shortest=shortest,
        median=statistics.median(lengths),
        longest=longest,
        longest_at=examples[index := lengths.index(longest)].place(index),
        quantiles={str(percent): ordered[math.ceil(len(ordered) * percent / 100) - 1] for percent in PERCENTS},
        bins=[
            Bin(first, min(first + width - 1, longest), count)
            for first, count in zip(range(shortest, longest + 1, width), counts, strict=True)
        ],
        max_length=max_length,
        too_long=len(long),
        lost=sum(not any(tokens.loss[:max_length]) for tokens in long),
    )


def _packing(
    items: Sequence[Tokens],
    max_length: int | None,
    batch_tokens: int | None,
    batch_size: int | None,
    group_shared: bool,
    batches: Batches,
    too_long: LengthPolicy,
) -> Packing | None:
    if batch_tokens is None and batch_size is None:
        return None
    if max_length is not None and too_long == "drop":
        items = [tokens for tokens in items if len(tokens) <= max_length]
    cut = [tokens if max_length is None else shorten(tokens, max_length) for tokens in items]
    kept = [tokens for tokens in cut if isinstance(tokens, Tokens)]
    limits = {"batch_tokens": batch_tokens, "batch_size": batch_size}
    if batches == "packed":
        planned = plan_packed(kept, seed=0, epoch=0, group_shared=group_shared, **limits)
    else:
        planned = plan([len(tokens) for tokens in kept], seed=0, epoch=0, **limits)
    whole = [[kept[index] for index in batch] for batch in planned]
    padded = sum(len(batch) * max(map(len, batch)) for batch in whole)
    packed = sum(computed_tokens(paths_of(batch)) for batch in whole)
    useful, computed = sum(map(len, kept)), packed if batches == "packed" else padded
    return Packing(batches=len(whole), padded=padded, useful=useful, computed=computed)


def _notes(
    shape: str,
    examples: Sequence[Example],
    items: Sequence[Tokens],
    tokenizer: PreTrainedTokenizerBase,
    added: Mapping[int, AddedToken],
) -> list[str]:
    notes: list[str] = []
    if (kind := KIND_OF_SHAPE.get(shape)) is not None:
        notes.append(f"a training makes a {kind} of such rows; this is what a language model reads (--kind causal-lm)")
    if count := unclosed(items, tokenizer):
        notes.append(f"{count} answers {UNCLOSED}")
    if special := [text.content for text in added.values() if text.special]:
        marks = re.compile("|".join(map(re.escape, special)))
        marked = [
            (example.where, match.group())
            for example in examples
            if (match := next(filter(None, (marks.search(message.written) for message in example.messages)), None))
        ]
        if marked:
            where, mark = marked[0]
            notes.append(
                f"{len(marked)} examples contain special tokens as text, which the model will read as real ones; "
                f"the first: {where} has {mark}"
            )
    return notes


def _spans(tokens: Tokens, tokenizer: PreTrainedTokenizerBase, special: set[int]) -> list[Span]:
    marked = [(token, loss, token in special) for token, loss in zip(tokens.ids, tokens.loss, strict=True)]
    spans: list[Span] = []
    for (loss, is_special), group in groupby(marked, key=lambda item: item[1:]):
        ids = [token for token, _, _ in group]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        spans.append(Span(str(text), len(ids), loss, is_special))
    return spans
