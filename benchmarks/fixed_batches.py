"""What the benchmarks of training share: SNIPS as items, fixed lists of batches, and a run that follows one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler

from halka.data.batches import IGNORE_INDEX, collate
from halka.data.examples import Example, Item, Message
from halka.data.task import Task, limit, load_task
from halka.data.tokens import Tokens, encode_all
from halka.training.run import Run

HERE = Path(__file__).parent
BASE = "smollm2-135m"
TASKS = ("snips", "snips-180")
TRAIN, HELD_OUT = 1000, 60
SKIPPED = 2
"""Steps at the beginning that speed is measured without."""


def items_of(task_name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Tokens], list[Tokens]]:
    """The training and held-out items. `snips-180` are the same commands behind an instruction of some 180 tokens."""
    task = limit(load_task(HERE / "tasks" / "snips_nlu.py"), train=TRAIN, validation=HELD_OUT)
    if task_name == "snips-180":
        task = instructed(task)
    return encode_all(task.train, tokenizer).items, encode_all(task.validation, tokenizer).items


def instructed(task: Task) -> Task:
    """SNIPS with all intents and slots of its training answers written out in the system message."""
    answers = [json.loads(example.messages[-1].content) for example in task.train]
    intents = sorted({answer["intent"] for answer in answers})
    slots = sorted({slot for answer in answers for slot in answer["slots"]})
    text = f"Command to JSON: intent and slots. Intents: {', '.join(intents)}. Slots: {', '.join(slots)}."
    system = Message("system", text)

    def behind(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(replace(example, messages=(system, *example.messages[1:])) for example in examples)

    return replace(task, train=behind(task.train), validation=behind(task.validation), test=behind(task.test))


def batches_of(items: Sequence[Item], order: str, size: int, steps: int, seed: int) -> list[list[int]]:
    """The items of each step's batch, by their indices, as transformers' Trainer orders them.

    order   "random": its default; "grouped": with `train_sampling_strategy="group_by_length"`, by its own sampler
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [len(item) for item in items]
    batches: list[list[int]] = []
    while len(batches) < steps:
        if order == "random":
            epoch = torch.randperm(len(items), generator=generator).tolist()
        else:
            epoch = list(LengthGroupedSampler(size, lengths=lengths, generator=generator))
        batches += [epoch[start : start + size] for start in range(0, len(epoch) - size + 1, size)]
    return batches[:steps]


def useful_tokens(items: Sequence[Item], batches: Sequence[Sequence[int]]) -> int:
    """The tokens of all rows, those in common with other rows included, padding not."""
    return sum(len(items[index]) for batch in batches for index in batch)


def tokens_per_second(items: Sequence[Item], batches: Sequence[Sequence[int]], times: Sequence[float]) -> float:
    """Useful tokens a second, without the first steps; `times` are those at which each step ended."""
    return useful_tokens(items, batches[SKIPPED:]) / (times[-1] - times[SKIPPED - 1])


class FixedRun(Run):
    """A training run that takes its batches, one a step, from a list instead of planning them."""

    batches: Sequence[Sequence[int]]
    taken = 0

    def next_batches(self) -> list[list[Item]]:
        self.taken += 1
        return [[self.items[index] for index in self.batches[self.taken - 1]]]


def held_out_loss(
    logits_of: Callable[[dict[str, torch.Tensor]], torch.Tensor], items: Sequence[Tokens], pad_id: int, size: int = 8
) -> float:
    """The mean loss per label. `logits_of` gives a batch's logits, which may stand behind those of virtual tokens."""
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(items), size):
            batch = collate(items[start : start + size], pad_id)
            logits = logits_of(batch.inputs)[:, -batch.labels.shape[1] :][:, :-1].float()
            targets = batch.labels[:, 1:]
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
            count += int((targets != IGNORE_INDEX).sum())
    return total / count


def warmed(base: PreTrainedModel) -> None:
    """Bring the base's weights into memory."""
    with torch.no_grad():
        base(torch.tensor([[0, 1, 2, 3]]))


def interleaved(sides: Sequence[str], runs: int) -> Iterator[tuple[int, str]]:
    """Every side once in each run, in an order that turns round from run to run."""
    for run in range(runs):
        for side in sides if run % 2 else reversed(sides):
            yield run, side


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def median_ratio(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], key: str) -> float:
    """The median over runs of ours divided by theirs in the same run."""
    return statistics.median(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))
