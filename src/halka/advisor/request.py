"""`Request`: what the advisor is asked about; the sample of it that probes use, and the keys of their results."""

from __future__ import annotations

import hashlib
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from halka.advisor.statistics import are_labels
from halka.data.duplicates import prompt_key
from halka.data.examples import Example
from halka.data.task import split_off
from halka.evaluation.metrics import score
from halka.models.quantised import Quantize
from halka.rag.sources import digest_of
from halka.util.dtypes import Dtype
from halka.util.errors import DataError

MOST_HELD_OUT, MOST_TRAIN = 48, 512
HELD_OUT = 0.25  # share of the training examples that is held out where there are no validation examples
SHORT_ANSWER = 5  # words of an answer that is a name or a number rather than a text
SCHEMA = 4  # version of the probes' results: raised with every change of what they are or mean, so that all run again


@dataclass(frozen=True)
class Request:
    """A base, data and hardware, and how they are to be used.

    train, held_out     examples that end with their answer; without held-out ones, some of `train` are held out
    metric              scores the answers; chosen by how they look if not given
    documents           files, folders, and .jsonl files of rows with "name" and "text", for retrieval
    target              the score that suffices, 0 to 1
    tasks               number of such tasks, for storage and serving
    memory, device      bytes of the GPU, or the name of a device, to train on; else this machine
    full                also try full fine-tuning, which needs memory for gradients and optimiser states of all weights
    passages            retrieved passages in a prompt
    data                what the data are called in reports
    flags, again        flags of `halka train` that name the data; flags of `halka advise` that ask the same again
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
    dtype: Dtype = "bfloat16"
    quantize: Quantize | None = None
    full: bool = False
    passages: int = 3
    batch_size: int = 8
    data: str = "data"
    flags: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """The examples that probes use, shuffled, and the metric.

    all_train   all training examples
    train       those whose prompt is not held out, at most `MOST_TRAIN`
    held_out    at most `MOST_HELD_OUT`
    split_off   whether they were taken from the training examples
    """

    all_train: tuple[Example, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    metric: str
    split_off: bool


def sample(request: Request) -> Sample:
    """The examples that probes use; the same request gives the same sample.

    Raises DataError for fewer than two examples, an example without an answer, and where no training example has a
    prompt that is not held out; HalkaError for an unknown metric and one that the answers themselves do not satisfy.
    """
    if wrong := next((example for example in (*request.train, *request.held_out) if not example.answers), None):
        raise DataError(f"{wrong.where or 'an example'} has no answer to train on or compare with: add one")
    if len(request.train) < 2:
        raise DataError(f"{len(request.train)} training examples are too few: give at least two")
    all_train, held_out = request.train, _shuffled(request.held_out)[:MOST_HELD_OUT]
    if not held_out:
        count = min(MOST_HELD_OUT, max(1, round(HELD_OUT * len(all_train))))
        all_train, held_out = map(tuple, split_off(all_train, count, "0/validation"))
        held_out = _shuffled(held_out)[:MOST_HELD_OUT]
    prompts = {prompt_key(example) for example in held_out}
    train = _shuffled([example for example in all_train if prompt_key(example) not in prompts])[:MOST_TRAIN]
    if not train:
        raise DataError("every training example has a held-out prompt: add other examples, or other --validation ones")
    metric = request.metric or usual_metric([example.answers[0] for example in (*train, *held_out)])
    answers = [example.answers for example in held_out]
    score([accepted[0] for accepted in answers], answers, [metric], resamples=1)
    return Sample(all_train, train, held_out, metric, not request.held_out)


def usual_metric(answers: Sequence[str]) -> str:
    """The metric for answers that look like these."""
    if all(map(_is_json, answers)):
        return "exact_match"
    if are_labels(answers):
        return "accuracy"
    return "squad_exact" if statistics.median(len(text.split()) for text in answers) <= SHORT_ANSWER else "token_f1"


def result_keys(
    request: Request, sample: Sample, seconds: float, base: object, machine: object, folder: Path
) -> dict[str, str]:
    """By probe a hash of all that its result depends on; under "question" one of all but the hardware.

    base      tells other weights in the same folder apart, `machine` other hardware
    folder    the advice folder: files in it are not part of the documents
    """
    model = (request.base, base, request.dtype, request.quantize)
    prompts = {
        "base": model,
        "examples": [[asdict(example) for example in some] for some in (sample.train, sample.held_out)],
        "how": (sample.metric, request.max_new_tokens, seconds),
    }
    documents = (digest_of(request.documents, folder), request.passages) if request.documents else None
    on_this_machine = request.device == "here" or request.memory is request.device is None
    hardware = (request.memory, request.device, machine if on_this_machine else None)
    inputs: dict[str, Any] = {
        "cleanliness": [[asdict(example) for example in some] for some in (sample.all_train, sample.held_out)],
        "strength": (prompts, documents),  # documents too: they take some of the time, which limits the examples
        "knowledge": (prompts, documents),
        "learnability": (prompts, documents, request.full, request.batch_size, len(sample.all_train)),
        "fit": (model, request.batch_size, request.tasks, hardware),  # and the examples' lengths, known later
    }
    inputs["question"] = (inputs["cleanliness"], inputs["learnability"])
    return {
        name: hashlib.sha256(json.dumps((SCHEMA, value), sort_keys=True, default=str).encode()).hexdigest()[:16]
        for name, value in inputs.items()
    }


def base_files(base: str) -> list[tuple[str, int, int]] | None:
    """Names, sizes and times of a base folder's files; None for a base that is not a folder."""
    folder = Path(base).expanduser()
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def _shuffled(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Shuffled with a fixed seed, because files are often sorted."""
    shuffled = [*examples]
    random.Random(0).shuffle(shuffled)
    return tuple(shuffled)
