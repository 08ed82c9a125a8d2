"""What `benchmarks/advisor.py` asks the advisor about: cases of different kinds of data, each with its splits.

Some are of public sets (see each function for the source and the licence), the others are made here. Those in `ASIDE`
are held aside: the advisor's thresholds were set without them. Ten more cases came later: advisor_later_cases.py.
"""

# ruff: noqa: SIM905

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from advisor_case import (
    MORE,
    TEST,
    TRAIN,
    VALIDATION,
    Case,
    case,
    example,
    lines,
    mixed,
    published,
    rows,
)
from advisor_later_cases import LATER, LATER_ASIDE

from halka.data import demo_task
from halka.data.examples import Example

# ── form ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def lamps() -> Case:
    """A shop's answers, in its form and by its policy; made for Halka."""
    task = demo_task.task()
    return case("lamps", "form", mixed((*task.validation, *task.train)), mixed(task.test), "line_accuracy", 64)


def snips() -> Case:
    """Spoken commands to JSON (SNIPS, Coucke et al. 2018; CC0)."""
    task = published("snips_nlu")
    pool = [*task.validation[:VALIDATION], *task.train]
    return case("snips", "form", pool, task.test, "json_field_f1:slots", 64)


def e2e() -> Case:
    """A restaurant's attributes to a sentence (E2E, Novikova et al. 2017; CC BY-SA 4.0)."""
    task = published("e2e_nlg")
    return case("e2e", "form", [*task.validation[:VALIDATION], *task.train], task.test, "rouge_l", 64)


MONTHS = "January February March April May June July August September October November December".split()
ERRANDS = "dentist,rehearsal,inspection,lecture,delivery,interview,picnic,exam,auction,hearing,concert,meeting".split(
    ","
)
PEOPLE = "Amina Tom Priya Lucas Rahim Sofia Kenji Fatima Oliver Nadia Mateo Grace Farid Hannah Diego Mina".split()


def diary() -> Case:
    """Notes to a diary's lines: what is to be found stands in the note, its form does not."""
    draw, made = random.Random(1), {}
    forms = (
        "{who} has the {what} on {month} {day}, {year}, at {hour}.",
        "On the {day} of {month} {year} at {hour}, {what} with {who}.",
        "Please remind {who}: {what}, {hour}, {day} {month} {year}.",
        "The {what} of {who} was moved to {day} {month} {year}, {hour}.",
    )
    while len(made) < VALIDATION + MORE + TEST:
        who, what, month = draw.choice(PEOPLE), draw.choice(ERRANDS), draw.randrange(12)
        day, year, hour = draw.randint(1, 28), draw.randint(2019, 2031), draw.randint(7, 11)
        note = draw.choice(forms).format(who=who, what=what, month=MONTHS[month], day=day, year=year, hour=f"{hour}:30")
        made[note] = f"{year}-{month + 1:02}-{day:02} {hour:02}:30 / {what} / {who.upper()}"
    every = [example(note, line) for note, line in made.items()]
    return case("diary", "form", every[TEST:], every[:TEST], "exact_match", 40)


# ── what it does already ────────────────────────────────────────────────────────────────────────────────────────────

CITIES = (
    "Oslo Lima Cairo Dhaka Madrid Nairobi Lisbon Hanoi Quito Vienna Dublin Athens Warsaw Seoul Havana Tunis Prague "
    "Ankara Bogota Manila Accra Zagreb Riga Tbilisi Amman Doha Kigali Sofia Berlin Rome Paris London"
).split()


def places() -> Case:
    """Which city a sentence names: to be copied."""
    draw, made = random.Random(2), {}
    forms = (
        "{who} flew from {city} {when}.",
        "The {what} in {city} starts {when}.",
        "{when}, {who} will drive to {city}.",
        "It rained in {city} {when}, so the {what} was called off.",
        "{who} wrote a letter from {city} about the {what}.",
    )
    whens = ("yesterday", "last week", "this morning", "on Monday", "in May", "tomorrow night", "two days ago")
    while len(made) < VALIDATION + MORE + TEST:
        city = draw.choice(CITIES)
        text = draw.choice(forms).format(
            who=draw.choice(PEOPLE), city=city, when=draw.choice(whens), what=draw.choice(ERRANDS)
        )
        made[f"Sentence: {text}\nWhich city is named?"] = city
    every = [example(text, city) for text, city in made.items()]
    return case("places", "what it does already", every[TEST:], every[:TEST], "accuracy", 12)


def records() -> Case:
    """A field of a record: to be found and copied."""
    draw, made = random.Random(7), {}
    jobs = ("nurse", "baker", "pilot", "judge", "tailor", "farmer", "singer", "plumber")
    while len(made) < VALIDATION + MORE + TEST:
        record = {"name": draw.choice(PEOPLE), "city": draw.choice(CITIES), "job": draw.choice(jobs)}
        told = ", ".join(f"{key}: {value}" for key, value in record.items())
        wanted = draw.choice([*record])
        made[f"{told}. What is the {wanted}?"] = record[wanted]
    every = [example(text, value) for text, value in made.items()]
    return case("records", "what it does already", every[TEST:], every[:TEST], "accuracy", 8)


def facts() -> Case:
    """Short questions on what the world knows (the probes of TOFU, Maini et al. 2024; MIT)."""
    found = [
        example(each["question"], each["answer"])
        for name in ("world_facts_perturbed.json", "real_authors_perturbed.json")
        for each in rows(f"tofu/{name}")
    ]
    every = mixed(found)
    return case("facts", "what it does already", every[TEST:], every[:TEST], "token_f1", 16)


# ── knowledge ───────────────────────────────────────────────────────────────────────────────────────────────────────


def tofu() -> Case:
    """Whole sentences on invented authors (TOFU, Maini et al. 2024; MIT), whose documents are the other answers too."""
    by_author: dict[int, list[dict[str, Any]]] = {}
    for each in rows("tofu/qa.jsonl"):
        by_author.setdefault(each["author_id"], []).append(each)
    authors = mixed(by_author)
    test, rest = authors[:8], authors[8:]
    documents = {
        f"author {author} part {start // 4}": " ".join(each["answer"] for each in asked[start : start + 4])
        for author, asked in by_author.items()
        for start in range(0, len(asked), 4)
    }

    def asked_of(chosen: Iterable[int]) -> list[Example]:
        return mixed(example(each["question"], each["answer"]) for author in chosen for each in by_author[author])

    return case("tofu", "knowledge", asked_of(rest), asked_of(test), "token_f1", 48, documents=documents)


LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
GOODS = (
    "kettle lamp drill tent printer saddle radio blender scarf helmet clock stapler ladder torch bench mirror".split()
)
MAKERS = "Norvik Halden Quill Brasco Tamarin Ostrea Velmo Kestrel Pindar Lumo Garnet Fennel Orbis Sable Wicker".split()


def catalogue() -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """(maker, thing, code) of every article, and the documents, an article each."""
    draw = random.Random(3)
    articles = [
        (maker, thing, f"{draw.choice(LETTERS)}{draw.choice(LETTERS)}-{draw.randint(100, 999)}")
        for maker, thing in mixed(((maker, thing) for maker in MAKERS for thing in GOODS), 3)
    ]
    colours = ("red", "green", "grey", "white", "black", "blue")
    documents = {
        f"{maker} {thing}": f"The {maker} {thing} comes in {draw.choice(colours)} and weighs {draw.randint(2, 90)}00 "
        f"grams. Its order code is {code}. It is sent within {draw.randint(2, 9)} days."
        for maker, thing, code in articles
    }
    return articles, documents


def codes() -> Case:
    """Order codes that stand in a catalogue and nowhere else."""
    articles, documents = catalogue()
    every = [example(f"What is the order code of the {maker} {thing}?", code) for maker, thing, code in articles]
    return case("codes", "knowledge", every[TEST:], every[:TEST], "exact_match", 16, documents=documents)


# ── both ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def orders() -> Case:
    """The same codes, asked for in other words and told in a shop's own form."""
    articles, documents = catalogue()
    draw = random.Random(4)
    ways = ("I'd like a {0} {1}, please.", "{0} {1}: how do I order it?", "Do you have the {1} by {0}?")
    every = [
        example(
            draw.choice(ways).format(maker, thing), f"<order item='{thing}' maker='{maker[:3].upper()}' code='{code}'/>"
        )
        for maker, thing, code in articles
    ]
    return case("orders", "form and knowledge", every[TEST:], every[:TEST], "exact_match", 48, documents=documents)


# ── too little, too noisy ───────────────────────────────────────────────────────────────────────────────────────────


def banking() -> Case:
    """77 intents, of which most have one example (BANKING77, Casanueva et al. 2020; CC BY 4.0)."""

    def read(name: str) -> list[Example]:
        found = mixed(csv.DictReader(lines(f"banking77/{name}.csv")))
        return [example(each["text"], each["category"].replace("_", " "), "Name the intent.") for each in found]

    return case("banking", "too little data", read("train"), read("test"), "accuracy", 16, train=64)


def few_lamps() -> Case:
    """The shop's answers, of which there are six."""
    whole = lamps()
    train = whole.train[:6]
    return Case(
        "few_lamps",
        "too little data",
        train,
        whole.train,
        *(whole.validation[:6], whole.test),
        *(whole.metric, whole.max_new_tokens),
    )


def noisy_intents() -> Case:
    """Intents of spoken commands (SNIPS; CC0), of which six in ten have any other's label."""
    task = published("snips_nlu")

    def labelled(examples: Sequence[Example]) -> list[Example]:
        return [
            example(each.prompt[-1].content, json.loads(each.answers[0])["intent"], "Name the intent.")
            for each in examples
        ]

    clean, held_out = labelled(task.train[:TRAIN]), labelled(task.validation[:VALIDATION])
    draw, intents = random.Random(5), sorted({each.answers[0] for each in clean})

    def spoilt(each: Example) -> Example:
        if draw.random() >= 0.6:
            return each
        others = [intent for intent in intents if intent != each.answers[0]]
        return example(each.prompt[-1].content, draw.choice(others), "Name the intent.")

    return Case(
        *("noisy_intents", "noisy labels", tuple(map(spoilt, clean)), tuple(clean), tuple(map(spoilt, held_out))),
        *(tuple(labelled(task.test[:TEST])), "accuracy", 12),
    )


def emotions() -> Case:
    """Emotions in comments (GoEmotions, Demszky et al. 2020, Ekman's seven; Apache-2.0): people disagree on them."""
    names = [line.strip() for line in lines("goemotions_ekman/labels.txt") if line.strip()]

    def read(name: str) -> list[Example]:
        split = (line.split("\t") for line in lines(f"goemotions_ekman/{name}") if line.strip())
        one = [(text, label) for text, label, _ in split if "," not in label]
        return [example(text, names[int(label)], "Name the emotion.") for text, label in mixed(one)]

    return case("emotions", "noisy labels", read("train.tsv.gz"), read("test.tsv"), "accuracy", 8)


# ── what it lacks ───────────────────────────────────────────────────────────────────────────────────────────────────


def sums() -> Case:
    """Arithmetic in words (GSM8K, Cobbe et al. 2021; MIT), the result alone."""

    def read(name: str) -> list[Example]:
        return [
            example(each["question"], each["answer"].rpartition("####")[2].strip())
            for each in mixed(rows(f"gsm8k/{name}"))
        ]

    return case("sums", "a skill it lacks", read("train.jsonl.gz"), read("test.jsonl"), "exact_match", 8)


def products() -> Case:
    """Products of three digits by three."""
    draw, made = random.Random(6), {}
    while len(made) < VALIDATION + MORE + TEST:
        a, b = draw.randint(100, 999), draw.randint(100, 999)
        made[f"{a} × {b} ="] = str(a * b)
    every = [example(text, result) for text, result in made.items()]
    return case("products", "a skill it lacks", every[TEST:], every[:TEST], "exact_match", 10)


def bengali() -> Case:
    """News sentences from Bengali to English (NTREX-128, Federmann et al. 2022; CC BY-SA 4.0), the shorter ones."""
    pairs = zip(lines("bn_ntrex/newstest2019-ref.ben.txt"), lines("bn_ntrex/newstest2019-src.eng.txt"), strict=True)
    short = [(bn.strip(), en.strip()) for bn, en in pairs if 10 < len(bn.strip()) < 90]
    every = [example(bn, en, "Translate into English.") for bn, en in mixed(short)]
    return case("bengali", "a language it hardly knows", every[TEST:], every[:TEST], "chrf", 40)


CASES: tuple[Callable[[], Case], ...] = (
    *(lamps, diary, e2e, snips),
    *(places, records, facts),
    *(tofu, codes, orders),
    *(banking, few_lamps),
    *(noisy_intents, emotions),
    *(sums, products),
    bengali,
    *LATER,
)
ASIDE = LATER_ASIDE | {each.__name__ for each in (diary, e2e, snips, codes, orders, few_lamps, sums, bengali)}
"""Of the kinds about half; of these nothing was looked at before the rules and thresholds stood."""
