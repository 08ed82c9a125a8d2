"""Duplicate examples: within a list, and between two, such as a training and a test split."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from unicodedata import normalize

from halka.data.examples import Example, Message

Key = tuple[tuple[str, str], ...]  # the role and the plain text of each message


@dataclass(frozen=True)
class Duplicate:
    """The places of two examples with the same prompt, and whether they also share an answer."""

    first: str
    second: str
    same_answer: bool


def within(examples: Sequence[Example]) -> list[Duplicate]:
    """Examples whose whole conversation occurs earlier; another answer to the same prompt is no duplicate."""
    seen: dict[object, str] = {}
    duplicates: list[Duplicate] = []
    for index, example in enumerate(examples):
        key, place = _key(example.messages), example.place(index)
        if key in seen:
            duplicates.append(Duplicate(seen[key], place, same_answer=True))
        else:
            seen[key] = place
    return duplicates


def between(first: Sequence[Example], second: Sequence[Example]) -> list[Duplicate]:
    """Examples of `second` whose prompt occurs in `first`, also before an earlier turn of a conversation."""
    lengths = {len(prompt_key(example)) for example in second}
    places: dict[object, str] = {}
    answers: dict[object, set[str]] = {}
    for index, example in enumerate(first if lengths else ()):
        for key, answered in answers_by_prompt(example, lengths):
            places.setdefault(key, example.place(index))
            answers.setdefault(key, set()).update(answered)
    return [
        Duplicate(places[key], example.place(index), not answers[key].isdisjoint(answer_keys(example)))
        for index, example in enumerate(second)
        if (key := prompt_key(example)) in places
    ]


def prompt_key(example: Example) -> Key:
    """Equal for two examples with the same prompt, ignoring whitespace, case, and how accented letters are composed."""
    return _key(example.prompt)


def dialogue_key(examples: Sequence[Example]) -> Callable[[Example], object]:
    """A key of each of these examples, equal for those that a split keeps together: of one prompt, or of one dialogue.

    A dialogue may have a row for each of its turns, which begins with the whole of the row before: their key is the
    prompt of the first.
    """
    conversations = {_key(example.messages) for example in examples}

    def key(example: Example) -> object:
        prompt = _key(example.prompt)
        return next((prompt[:end] for end in range(1, len(prompt) - 1) if prompt[: end + 1] in conversations), prompt)

    return key


def answers_by_prompt(example: Example, lengths: Collection[int]) -> Iterator[tuple[Key, frozenset[str]]]:
    """The `prompt_key` and `answer_keys` of each turn of a conversation that its assistant answers, in their order.

    lengths   messages that a prompt has which is asked for: a long conversation has many others
    An example of several turns shows the answers of all to whoever is trained on it.
    """
    messages = _key(example.messages)
    for end, (role, text) in enumerate(messages[:-1]):
        if role == "assistant" and end in lengths:
            yield messages[:end], frozenset({text})
    if len(prompt := prompt_key(example)) in lengths:
        yield prompt, answer_keys(example)


def answer_keys(example: Example) -> frozenset[str]:
    """All accepted answers, ignoring whitespace and case."""
    return frozenset(map(_plain, example.answers))


def _key(messages: Sequence[Message]) -> Key:
    return tuple((message.role, _plain(message.written)) for message in messages)


def _plain(text: str) -> str:
    return " ".join(normalize("NFC", text).split()).casefold()
