"""The task that Halka ships: Jonaki Lamps, an invented maker of lamps, answers its customers' messages.

A message names a product, mostly a customer and an order number, and one of eight issues; the answer is five lines:

    Dear Priya,                                  the name, or "customer" where none is given
    Order: JL-48213                              copied, or "not given"
    Issue: flicker, Tern floor lamp              one of eight words, and the product
    Tighten the bulb and try another socket.     what the policy says for that issue and kind of lamp
    Jonaki Lamps, priority normal                "urgent" for overheating, "high" for who wrote before

Nothing can be answered from memory: the test's names, order numbers, models, sentences and pairs of issue and kind of
lamp never occur in the training or validation examples. All of it was made up for Halka.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import yaml

from halka.data.examples import Example, Message
from halka.data.task import Task

T = TypeVar("T")

SYSTEM = "You answer customers of Jonaki Lamps."

MAINS = ("desk lamp", "floor lamp", "wall lamp")
BATTERY = ("lantern", "torch", "reading light")

# issue: what to do (with a lamp on the mains, with one on a battery)
POLICY = {
    "flicker": ("Tighten the bulb and try another socket.", "Charge it for two hours, then try again."),
    "no light": ("Change the fuse in the plug.", "Hold the button for ten seconds."),
    "overheating": ("Unplug it and let it cool.", "Switch it off and keep it outdoors."),
    "damage": ("Send us a photo of the lamp and the plug.", "Send us a photo and do not charge it."),
    "late": ("The courier will call you within two days.",) * 2,
    "wrong item": ("Keep the box, we collect it on Monday.",) * 2,
    "refund": ("Post it back within 30 days for a full refund.",) * 2,
    "invoice": ("The invoice will be in your inbox today.",) * 2,
}


@dataclass(frozen=True)
class Words:
    """The vocabulary of a split's messages; `unseen`: they use the pairs of issue and lamp held out from training."""

    unseen: bool
    names: list[str]
    models: list[str]
    greetings: list[str]
    greetings_with_name: list[str]
    closings: list[str]
    closings_with_name: list[str]
    orders: list[str]
    again: list[str]
    asides: list[str]
    problems: dict[str, list[str]]


@functools.cache
def vocabulary(split: Literal["train", "test"]) -> Words:
    """The vocabulary of a split, from demo_task.yaml; validation examples are made of the training split's."""
    by_split = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return Words(unseen=split == "test", **by_split[split])


def task(seed: int = 0, tests: int = 100) -> Task:
    """500 training, 60 validation and `tests` test examples; the same for the same seed in every version of Python."""
    rng = random.Random(seed)
    used: set[str] = set()
    return Task(
        name="support",
        train=_examples(rng, 500, vocabulary("train"), used),
        validation=_examples(rng, 60, vocabulary("train"), used),
        test=_examples(rng, tests, vocabulary("test"), used),
        metrics=("exact_match", "line_accuracy"),
        primary="exact_match",
        max_new_tokens=64,
        licence="Apache-2.0",
        source="made up for Halka (halka/data/demo_task.py)",
    )


def answer(name: str, order: str, issue: str, product: str, wrote_before: bool) -> str:
    """The expected answer; an empty name or order means that the customer did not mention it."""
    step = POLICY[issue][product.endswith(BATTERY)]
    priority = "urgent" if issue == "overheating" else "high" if wrote_before else "normal"
    return (
        f"Dear {name or 'customer'},\n"
        f"Order: {order or 'not given'}\n"
        f"Issue: {issue}, {product}\n"
        f"{step}\n"
        f"Jonaki Lamps, priority {priority}"
    )


def pairs(unseen: bool) -> dict[str, tuple[str, ...]]:
    """The kinds of lamp for each issue; of each family, one kind for each issue is held out for the test."""
    return {
        issue: tuple(kind for family in (MAINS, BATTERY) for k, kind in enumerate(family) if (k == i % 3) == unseen)
        for i, issue in enumerate(POLICY)
    }


def _examples(rng: random.Random, count: int, words: Words, used: set[str]) -> tuple[Example, ...]:
    """Examples with issues in turn; adds their messages and order numbers to `used` and repeats none of those."""
    kinds = pairs(words.unseen)
    issues = list(POLICY)
    examples: list[Example] = []
    while len(examples) < count:
        issue = issues[len(examples) % len(issues)]
        product = f"{_pick(rng, words.models)} {_pick(rng, kinds[issue])}"
        name = _pick(rng, words.names) if rng.random() < 0.8 else ""
        order = f"JL-{10_000 + int(rng.random() * 90_000)}" if rng.random() < 0.8 else ""
        wrote_before = rng.random() < 0.25
        message = _message(rng, words, name, order, issue, product, wrote_before)
        if used & {message, order}:
            continue
        used |= {message, order} - {""}
        reply = answer(name, order, issue, product, wrote_before)
        examples.append(Example((Message("system", SYSTEM), Message("user", message), Message("assistant", reply))))
    return tuple(examples)


def _message(
    rng: random.Random, words: Words, name: str, order: str, issue: str, product: str, wrote_before: bool
) -> str:
    """One message: a greeting, the problem and optional details in any order, a closing."""
    middle = [_pick(rng, words.problems[issue]).format(product=product)]
    details = [_pick(rng, words.orders).format(order=order)] if order else []
    details += [_pick(rng, words.again)] if wrote_before else []
    details += [_pick(rng, words.asides).format(number=1000 + int(rng.random() * 9000))] if rng.random() < 0.3 else []
    for sentence in details:
        middle.insert(int(rng.random() * (len(middle) + 1)), sentence)
    name_first = rng.random() < 0.5
    greeting = _pick(rng, words.greetings_with_name if name and name_first else words.greetings)
    closing = _pick(rng, words.closings_with_name if name and not name_first else words.closings)
    parts = [greeting.format(name=name), *middle, closing.format(name=name)]
    return " ".join(part for part in parts if part)


def _pick(rng: random.Random, choices: Sequence[T]) -> T:
    # random() alone is promised to repeat across versions of Python
    return choices[int(rng.random() * len(choices))]
