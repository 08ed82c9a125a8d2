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

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

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

TRAIN_NAMES = (
    "Priya Tom Amina Lucas Rahim Sofia Kenji Fatima Oliver Nadia Mateo Grace Farid Hannah Diego Mina "
    "Peter Salma Ivan Clara Yusuf Emma Rafi Julia Omar Nora Pablo Ruth Karim Alice Hugo Leila Sam Anika "
    "Victor Maya Jamal Eva Noor Simon Tania Marco Lucy Arif Helen Bilal Rosa Daniel Shirin Paul"
)

TEST_NAMES = (
    "Ingrid Tariq Beatriz Wei Duncan Parveen Louise Akira Miriam Sanjay Greta Kofi Rubina Felix Zara "
    "Nikhil Agnes Hasan Petra Leo Dalia Marcus Sultana Bruno Irene Rashid Chloe Edgar Moushumi Anton"
)


@dataclass(frozen=True)
class Words:
    """The vocabulary of a split's messages; `unseen`: they use the pairs of issue and lamp held out from training."""

    unseen: bool
    names: tuple[str, ...]
    models: tuple[str, ...]
    greetings: tuple[str, ...]
    greetings_with_name: tuple[str, ...]
    closings: tuple[str, ...]
    closings_with_name: tuple[str, ...]
    orders: tuple[str, ...]
    again: tuple[str, ...]
    asides: tuple[str, ...]
    problems: dict[str, tuple[str, ...]]


TRAIN = Words(
    unseen=False,
    names=tuple(TRAIN_NAMES.split()),
    models=(
        "Tern",
        "Wren",
        "Kite",
        "Plover",
        "Stork",
        "Swift",
        "Heron",
        "Linnet",
        "Finch",
        "Curlew",
        "Dunlin",
        "Gull",
    ),
    greetings=("", "Hi!", "Hello.", "Good morning."),
    greetings_with_name=(
        "Hi, {name} here.",
        "Hello, this is {name}.",
        "My name is {name}.",
        "Good morning, I'm {name}.",
    ),
    closings=("", "Thanks.", "Please help.", "What now?"),
    closings_with_name=("Thanks, {name}", "Regards, {name}", "Best, {name}", "- {name}"),
    orders=(
        "Order {order}.",
        "My order is {order}.",
        "Order number {order}.",
        "The box says {order}.",
        "Bought as {order}.",
    ),
    again=(
        "I wrote last week and heard nothing.",
        "This is my second message.",
        "I already emailed you twice.",
        "Still no answer from you.",
    ),
    asides=("I paid {number} taka.", "My phone is 555-{number}.", "I have had lamps from you since 2019."),
    problems={
        "flicker": (
            "My {product} keeps flickering.",
            "The light of my {product} flickers all evening.",
            "The {product} blinks on and off by itself.",
            "My {product} flickers whenever I turn it on.",
            "The {product} won't stop blinking.",
            "The light from the {product} is unsteady, it comes and goes.",
        ),
        "no light": (
            "My {product} does not turn on any more.",
            "The {product} is dead, no light at all.",
            "I press the switch and the {product} stays dark.",
            "The {product} won't light up.",
            "My {product} stopped working last night.",
            "Nothing happens when I switch on the {product}.",
        ),
        "overheating": (
            "My {product} gets far too hot to touch.",
            "The {product} smells of burning.",
            "There is smoke coming from my {product}.",
            "The {product} became so hot that it marked the table.",
            "My {product} heats up and smells odd.",
            "I burnt my finger on the {product}.",
        ),
        "damage": (
            "My {product} arrived broken.",
            "The {product} came with a crack in it.",
            "The glass of the {product} was smashed in the box.",
            "I opened the parcel and the {product} was in pieces.",
            "The {product} was bent, straight from the box.",
            "The {product} was dented when it got here.",
        ),
        "late": (
            "My {product} has not arrived yet.",
            "Where is my {product}?",
            "I have waited ten days for my {product}.",
            "The {product} was due on Friday and is not here.",
            "When will the {product} be delivered?",
            "Tracking for my {product} has not moved in a week.",
        ),
        "wrong item": (
            "I ordered something else but got a {product}.",
            "The {product} you sent is the wrong colour.",
            "I did not order a {product}, yet one came.",
            "You sent a {product} instead of what I asked for.",
            "This {product} is not the one I chose.",
            "A {product} was in the box, not the lamp I bought.",
        ),
        "refund": (
            "I want to return my {product}.",
            "Please refund me for the {product}.",
            "I changed my mind about the {product}, can I send it back?",
            "How do I give back the {product}?",
            "I'd like my money back for the {product}.",
            "The {product} does not suit us, we wish to return it.",
        ),
        "invoice": (
            "I need an invoice for the {product}.",
            "Could you send the bill for my {product}?",
            "My accountant wants a receipt for the {product}.",
            "Please send me a tax invoice for the {product}.",
            "I lost the receipt of my {product}.",
            "There was no invoice with the {product}.",
        ),
    },
)

TEST = Words(
    unseen=True,
    names=tuple(TEST_NAMES.split()),
    models=("Lapwing", "Magpie", "Siskin", "Puffin", "Merlin", "Bunting"),
    greetings=("Hey there.", "Good evening.", "Dear team."),
    greetings_with_name=("Hey, it's {name}.", "Good evening, {name} speaking.", "Dear team, I am {name}."),
    closings=("Many thanks.", "Can you help?", "Any ideas?"),
    closings_with_name=("Many thanks, {name}", "Cheers, {name}", "Yours, {name}"),
    orders=(
        "Reference {order}.",
        "The order was {order}.",
        "It is under {order}.",
        "You have it as {order}.",
    ),
    again=(
        "You never replied to my first mail.",
        "I asked about this before.",
        "This is the third time I write.",
    ),
    asides=("It cost me {number} taka.", "Call me on 555-{number}.", "It was a present for my mother."),
    problems={
        "flicker": (
            "The {product} flickers like a candle.",
            "There is constant blinking from my {product}.",
            "My {product} goes bright, then dim, then bright again.",
        ),
        "no light": (
            "I can't get my {product} to turn on.",
            "My {product} has gone completely dark.",
            "The {product} gives no light whatever I do.",
        ),
        "overheating": (
            "Something smells burnt when the {product} is on.",
            "My {product} runs dangerously hot.",
            "The {product} started to smoke.",
        ),
        "damage": (
            "I unpacked the {product} and it was cracked.",
            "The post has broken my {product}.",
            "My {product} reached me with a big dent.",
        ),
        "late": (
            "I am still waiting for the {product} to come.",
            "The {product} should have been delivered by now.",
            "No sign yet of the {product} I ordered.",
        ),
        "wrong item": (
            "I got a {product} that I never ordered.",
            "You mixed things up and sent me a {product}.",
            "The {product} in the parcel is the wrong model.",
        ),
        "refund": (
            "Can I get a refund for the {product}?",
            "I would like to send the {product} back.",
            "The {product} isn't for me, I want my money back.",
        ),
        "invoice": (
            "Where can I get the bill for my {product}?",
            "Please email the invoice of my {product}.",
            "My office needs the receipt for the {product}.",
        ),
    },
)


def task(seed: int = 0, tests: int = 100) -> Task:
    """500 training, 60 validation and `tests` test examples; the same for the same seed in every version of Python."""
    rng = random.Random(seed)
    used: set[str] = set()
    return Task(
        name="support",
        train=_examples(rng, 500, TRAIN, used),
        validation=_examples(rng, 60, TRAIN, used),
        test=_examples(rng, tests, TEST, used),
        metrics=("exact_match", "line_accuracy"),
        primary="exact_match",
        max_new_tokens=64,
        licence="Apache-2.0",
        source="made up for Halka (halka/data/support.py)",
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
