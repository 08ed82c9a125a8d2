"""`Need`: what is asked about, and for whom; its examples, mixed and split."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from halka.advisor.worth import usual_metric
from halka.data.duplicates import prompt_key
from halka.data.examples import Example
from halka.data.task import split_off
from halka.evaluation.metrics import score
from halka.rag.sources import digest_of
from halka.util.errors import HalkaError

MOST_HELD_OUT, MOST_TRAIN = 48, 512
HELD_OUT = 0.25  # share of the examples that is held out where none are given for it
SCHEMA = 4  # of what a probe's result is and means: raised with every change, so that none of before is taken for it


@dataclass(frozen=True)
class Need:
    """What is asked about, and for whom.

    train, held_out     examples that end with their answer; without held-out ones some of the others are held out
    metric              what answers are worth; without one it follows from how they look
    documents           files, folders, and .jsonl files of rows with "name" and "text"
    target              the score that is needed, as a share of the metric's range
    tasks               how many such tasks there are, for storage and serving
    memory, device      bytes of the GPU, or a named device, that is to train it; else this machine
    full                whether full fine-tuning is tried, too: it needs memory for all of its gradients and moments
    passages            how many a prompt holds
    data                what the data are called
    flags, again        how `halka train` names the data, and what `halka advise` is given to ask again
    """

    base: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...] = ()
    metric: str | None = None
    max_new_tokens: int = 64
    documents: tuple[str, ...] = ()
    target: float | None = None
    tasks: int = 1
    memory: int | None = None
    device: str | None = None
    dtype: str = "bfloat16"
    quantize: str | None = None
    full: bool = False
    passages: int = 3
    batch_size: int = 8
    data: str = "data"
    flags: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """The examples that are looked at, in an order that does not follow the files', and the metric.

    given       all examples to train on, those that ask what is held out among them
    train       those that do not, at most `MOST_TRAIN`
    held_out    at most `MOST_HELD_OUT`
    split_off   whether these were taken from the examples to train on
    """

    given: tuple[Example, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    metric: str
    split_off: bool


def sample(need: Need) -> Sample:
    """The need's examples as the probes see them; the same for the same need.

    Raises ValueError for fewer than two examples, one without an answer, an unknown metric, one that the given answers
    themselves do not satisfy, and for examples of which nothing is left beside what is held out.
    """
    if wrong := next((each for each in (*need.train, *need.held_out) if not each.answers), None):
        raise HalkaError(f"{wrong.where or 'an example'} has no answer to learn or to compare with: give it one")
    if len(need.train) < 2:
        raise HalkaError(f"{len(need.train)} examples tell nothing: give at least two")
    given, held_out = need.train, _mixed(need.held_out)[:MOST_HELD_OUT]
    if not held_out:
        count = min(MOST_HELD_OUT, max(1, round(HELD_OUT * len(given))))
        given, held_out = map(tuple, split_off(given, count, "0/validation"))
        held_out = _mixed(held_out)[:MOST_HELD_OUT]
    asked = {prompt_key(each) for each in held_out}
    train = _mixed([each for each in given if prompt_key(each) not in asked])[:MOST_TRAIN]
    if not train:
        raise HalkaError("all examples ask what is held out: give some that differ, or others with --validation")
    metric = need.metric or usual_metric([each.answers[0] for each in (*train, *held_out)])
    given_answers = [each.answers for each in held_out]
    score([each[0] for each in given_answers], given_answers, [metric], resamples=1)
    return Sample(given, train, held_out, metric, not need.held_out)


def keys(need: Need, found: Sample, seconds: float, base: object, machine: object, out: Path) -> dict[str, str]:
    """For each probe what its result is of, and for "question" what all but the hardware's are of.

    They are the same for the same question, however the data are called. `base` tells one base from another of that
    name, `machine` what the hardware at hand has now; what is in the folder `out` is none of the documents.
    """
    asked = {
        "base": (need.base, base, need.dtype, need.quantize),
        "examples": [[asdict(each) for each in some] for some in (found.train, found.held_out)],
        "how": (found.metric, need.max_new_tokens, seconds),
    }
    documents = (digest_of(need.documents, out), need.passages) if need.documents else None
    here = need.device == "here" or need.memory is need.device is None
    hardware = (need.memory, need.device, machine if here else None)
    told: dict[str, Any] = {
        "cleanliness": [[asdict(each) for each in some] for some in (found.given, found.held_out)],
        "strength": (asked, documents),  # as many questions as with documents: the time is for all conditions
        "knowledge": (asked, documents),
        "learnability": (asked, documents, need.full, need.batch_size, len(found.given)),
        "fit": (asked["base"], need.batch_size, need.tasks, hardware),  # and of the examples' lengths
    }
    told["question"] = (told["cleanliness"], told["learnability"])
    return {
        name: hashlib.sha256(json.dumps((SCHEMA, each), sort_keys=True, default=str).encode()).hexdigest()[:16]
        for name, each in told.items()
    }


def base_state(base: str) -> list[tuple[str, int, int]] | None:
    """What tells a base in a folder from another that is put there: its files' names, sizes and times."""
    folder = Path(base).expanduser()
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _mixed(examples: Sequence[Example]) -> tuple[Example, ...]:
    """In an order of no meaning: files are often sorted."""
    found = [*examples]
    random.Random(0).shuffle(found)
    return tuple(found)
