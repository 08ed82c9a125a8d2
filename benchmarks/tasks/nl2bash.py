"""NL2Bash: what is wanted, in English, becomes one line of bash.

Lin et al., 2018, "NL2Bash: A Corpus and Semantic Parser for Natural Language Interface to the Linux Operating System"
(arXiv:1802.08979); MIT; github.com/TellinaTool/nl2bash, the folder data/bash. Its files all.nl and all.cm, compressed
to all.nl.gz and all.cm.gz, are looked for in $HALKA_DATA/nl2bash, or in ../shared/data/nl2bash beside the project.

The set has no fixed splits; these are drawn once. Test: 700 wishes. Validation: 210. Train: what remains. Wishes of
more than 160 and commands of more than 80 characters are left out. A wish has as references all commands that people
wrote for it. No wish and no command stands twice, whatever its case and spaces: of wishes that share a command the
first is kept. All are mixed, so that the first examples of a split stand for the whole.

An answer counts by chrF, since another command than people's may do the same: exact match errs on the low side.
"""

import gzip
import os
import random
from pathlib import Path

from halka.data.examples import Example, Message
from halka.data.task import Task

SYSTEM = "Give the bash command."
VALIDATION, TEST = 210, 700
LONGEST_WISH, LONGEST_COMMAND = 160, 80


def task() -> Task:
    """The task; raises FileNotFoundError, naming the source, where the data is absent."""
    whole = distinct(list(zip(read("all.nl.gz"), read("all.cm.gz"), strict=True)))
    held_out = TEST + VALIDATION
    return Task(
        name="nl2bash",
        train=examples(whole[held_out:]),
        validation=examples(whole[TEST:held_out]),
        test=examples(whole[:TEST]),
        metrics=("chrf", "exact_match"),
        primary="chrf",
        max_new_tokens=64,
        licence="MIT",
        source="github.com/TellinaTool/nl2bash",
    )


def read(file: str) -> list[str]:
    root = Path(os.environ.get("HALKA_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    path = root / "nl2bash" / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: take {path.stem} from github.com/TellinaTool/nl2bash (MIT), compress it with gzip, "
            "put it into a folder nl2bash and set HALKA_DATA to the folder that holds it"
        )
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        return [line.strip() for line in lines.read().removesuffix("\n").split("\n")]


def distinct(pairs: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Wishes in a mixed order, each with its commands; none shares a command with another."""
    order = random.Random(0)
    by_wish: dict[str, list[tuple[str, str]]] = {}
    for wish, command in sorted(pairs, key=lambda _: order.random()):
        if 0 < len(wish) <= LONGEST_WISH and 0 < len(command) <= LONGEST_COMMAND:
            by_wish.setdefault(plain(wish), []).append((wish, command))
    seen, kept = set[str](), list[tuple[str, list[str]]]()
    for same in by_wish.values():
        commands = {plain(command): command for _, command in same}
        if not seen & commands.keys():
            seen |= commands.keys()
            kept.append((same[0][0], list(commands.values())))
    return kept


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def examples(rows: list[tuple[str, list[str]]]) -> tuple[Example, ...]:
    return tuple(
        Example(
            (Message("system", SYSTEM), Message("user", wish), Message("assistant", commands[0])),
            references=tuple(commands),
        )
        for wish, commands in rows
    )
