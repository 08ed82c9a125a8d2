"""What the advisor is asked, and the examples and the metric that its probes use."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from halka.advisor.statistics import are_labels, is_scored
from halka.data.duplicates import answers_by_prompt, dialogue_key, prompt_key
from halka.data.examples import Example
from halka.data.splits import split_off
from halka.data.tools import OPENING
from halka.evaluation.metrics import score
from halka.evaluation.text_metrics import as_label, without_spaces
from halka.util.dtypes import Dtype, Quantize
from halka.util.errors import DataError, HalkaError

MOST_HELD_OUT, MOST_TRAIN = 48, 512
HELD_OUT_SHARE = 0.25  # share of the training examples that is held out where there are no validation examples
SPLIT_SEED = "0/validation"
SHORT_ANSWER = 5  # words of an answer that is a name or a number rather than a text


@dataclass(frozen=True)
class Request:
    """A base, data and hardware, and how they are to be used.

    train, held_out     examples that end with their answer; without held-out ones, some of `train` are held out
    metric              scores the answers; chosen by how they look if not given
    max_new_tokens      of an answer; as many as the longest held-out one has if not given
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
    max_new_tokens: int | None = None
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
    unscored    held-out examples that are left out, since the metric is undefined for their accepted answers
    """

    all_train: tuple[Example, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    metric: str
    split_off: bool
    unscored: int = 0


def sample(request: Request) -> Sample:
    """The examples that probes use; the same request gives the same sample.

    Raises DataError for fewer than two examples, an example without an answer, and where no training example has a
    prompt that is not held out; HalkaError for an unknown metric and one that the answers themselves do not satisfy.
    """
    if wrong := next((example for example in (*request.train, *request.held_out) if not example.answers), None):
        way = "raw text is learned by halka train alone" if wrong.is_text else "add one"
        raise DataError(f"{wrong.where or 'an example'} has no answer to train on or compare with: {way}")
    if len(request.train) < 2:
        raise DataError(f"{len(request.train)} training examples are too few: give at least two")
    all_train, held_out = request.train, _shuffled(request.held_out)
    if not held_out:
        all_train, held_out = _hold_out(all_train)
    unscored = 0
    if (named := request.metric) == "macro_f1":
        raise HalkaError("macro_f1 is of all answers together, and the advisor compares single ones: name accuracy")
    if named is not None:
        answers = [example.answers for example in held_out]
        score([accepted[0] for accepted in answers], answers, [named], resamples=1)
        scored = tuple(example for example in held_out if is_scored(named, example.answers))
        unscored, held_out = len(held_out) - len(scored), scored
    held_out = held_out[:MOST_HELD_OUT]
    prompts = {prompt_key(example) for example in held_out}
    lengths = {*map(len, prompts)}
    unseen = [
        example
        for example in all_train
        if prompts.isdisjoint(prompt for prompt, _ in answers_by_prompt(example, lengths))
    ]
    train = _shuffled(unseen)[:MOST_TRAIN]
    if not train:
        raise DataError("every training example has a held-out prompt: add other examples, or other --validation ones")
    metric = named or usual_metric([example.answers[0] for example in (*train, *held_out)])
    return Sample(all_train, train, held_out, metric, not request.held_out, unscored)


def _hold_out(examples: Sequence[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """What is trained on, and a part that is held out: where answers are labels, of each that has enough prompts."""
    labels = are_labels([example.answers[0] for example in examples])
    count = min(MOST_HELD_OUT, round(HELD_OUT_SHARE * len(examples)))
    label_of, by_label = dict[object, str](), dict[str, list[Example]]()
    key = dialogue_key(examples)
    for example in examples:  # what a split keeps together has one label, also where it contradicts itself
        label = label_of.setdefault(key(example), as_label(example.answers[0]) if labels else "")
        by_label.setdefault(label, []).append(example)
    parts = [split_off(own, round(count * len(own) / len(examples)), SPLIT_SEED) for own in by_label.values()]
    held_out = [example for rest, part in parts if rest for example in part]
    held_out = _shuffled(held_out or split_off(examples, count, SPLIT_SEED)[1])[:MOST_HELD_OUT]
    gone = set(map(key, held_out))
    return tuple(example for example in examples if key(example) not in gone), held_out


def usual_metric(answers: Sequence[str]) -> str:
    """The metric for answers that look like these."""
    if all(map(_is_json, answers)) or any(OPENING in answer for answer in answers):
        return "exact_match"
    if are_labels(answers):
        return "accuracy"
    if without_spaces("".join(answers)):
        return "squad_exact" if statistics.median(map(len, answers)) <= 4 * SHORT_ANSWER else "chrf"
    return "squad_exact" if statistics.median(len(text.split()) for text in answers) <= SHORT_ANSWER else "token_f1"


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
