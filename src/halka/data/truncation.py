"""Examples that are longer than `max_length`: cut them, drop them, or raise an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from halka.data.examples import Example, Item
from halka.data.readers import Problem
from halka.util.errors import DataError

LengthPolicy = Literal["cut", "drop", "error"]
LENGTH_POLICIES: tuple[LengthPolicy, ...] = get_args(LengthPolicy)


ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class EncodedExamples(Generic[ItemT]):
    """Tokenized examples: `items[i]` comes from `examples[kept[i]]`; every dropped example has a problem.

    `cut` and `dropped` count examples.
    """

    items: list[ItemT]
    kept: list[int]
    problems: list[Problem]
    cut: int
    dropped: int


class TooLongError(DataError):
    """An example has more tokens than `max_length`."""

    def __init__(self, where: str, length: int, max_length: int):
        super().__init__(
            f"{where or 'the example'}: {length} tokens, more than max_length {max_length}. "
            "Raise max_length, if the base has more positions, shorten the example, or set too_long to cut or drop."
        )


_on_encoded = ContextVar[Callable[[int, int], None]]("on_encoded", default=lambda done, total: None)


@contextmanager
def watched(on_encoded: Callable[[int, int], None]) -> Iterator[None]:
    """Within this, `on_encoded` is called with how many of how many examples are tokenized, for each of them."""
    token = _on_encoded.set(on_encoded)
    try:
        yield
    finally:
        _on_encoded.reset(token)


def lowest_limit(*limits: int | None) -> int | None:
    """The lowest of these limits of tokens; None where there is none."""
    return min((limit for limit in limits if limit is not None), default=None)


def check_max_length(max_length: int | None) -> None:
    """Raises DataError for a limit of tokens that leaves no room for a prompt and an answer."""
    if max_length is not None and max_length < 2:
        raise DataError(f"max_length is {max_length}; it must be at least 2: one token of prompt and one of answer")


def truncate(
    examples: Sequence[Example],
    items: Iterable[ItemT | DataError],
    shorten: Callable[[int, ItemT, int], ItemT | list[ItemT] | DataError],
    max_length: int | None,
    too_long: LengthPolicy,
) -> EncodedExamples[ItemT]:
    """Limit every item to `max_length` tokens by the policy `too_long`; an error among `items` becomes a problem.

    `shorten(index, item, length)` returns the item cut to `length` tokens, or in pieces of so many, or the error that
    says why it cannot be.

    Raises:
        TooLongError: with the policy "error", for the first item over `max_length`.
        DataError: no item is left, or `too_long` or `max_length` is invalid.
    """
    if too_long not in LENGTH_POLICIES:
        raise DataError(f"too_long is {too_long!r}; choose one of {', '.join(LENGTH_POLICIES)}")
    check_max_length(max_length)
    kept: list[tuple[int, ItemT]] = []
    problems: list[Problem] = []
    cut, on_encoded = 0, _on_encoded.get()
    for index, item in enumerate(items):
        on_encoded(index + 1, len(examples))
        where = examples[index].place(index)
        length = 0 if isinstance(item, DataError) else len(item)
        if max_length is not None and not isinstance(item, DataError) and length > max_length:
            if too_long == "error":
                raise TooLongError(where, length, max_length)
            if too_long == "drop":
                item = DataError(f"{length} tokens, more than max_length {max_length}")
            else:
                item = shorten(index, item, max_length)
                if isinstance(item, Item) and len(item) > max_length:  # special tokens alone take more
                    item = DataError(f"it cannot be cut to max_length {max_length}: {len(item)} tokens are left")
        if isinstance(item, DataError):
            problems.append(Problem(where, str(item)))
        elif isinstance(item, list):
            kept += [(index, piece) for piece in item]
        else:
            kept.append((index, item))
            cut += len(item) < length
    if not kept:
        reasons = "; ".join(str(problem) for problem in problems[:3])
        raise DataError(f"none of {len(examples)} examples can be used. {reasons or 'There are none.'}")
    return EncodedExamples([item for _, item in kept], [index for index, _ in kept], problems, cut, len(problems))
