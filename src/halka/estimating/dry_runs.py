"""A training step rehearsed: base, adapter, loss, backward pass and optimiser as they are, on tensors without content.

Nothing is modelled twice: what a method or an architecture keeps for its backward pass is what its own code keeps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from halka.core import AdaptedModel, Method, bytes_of, count_of
from halka.data.examples import Item
from halka.data.tokens import Tokens
from halka.estimating.allocator import Heap
from halka.estimating.costs import Work
from halka.estimating.fake_tensors import Rehearsal
from halka.models import adapt, context
from halka.models.kinds import KINDS
from halka.models.layouts import layout_of
from halka.models.quantised import quantise
from halka.objectives.classification import Labelled
from halka.objectives.sequence_to_sequence import Pair
from halka.objectives.tagging import Tagged
from halka.training import Observer, TrainConfig, train
from halka.util.errors import HalkaError

FP32 = 4
NAME = "rehearsed"
STEPS = 2  # in the second, the optimiser's states are there from the beginning


@dataclass(frozen=True)
class Setup:
    """How a base is trained.

    rows, length   of each batch; the last row is shorter by one, so that there is padding
    answers        tokens of each row whose prediction is learned; all but the first if None
    labels         that a classifier or a tagger tells apart
    """

    rows: int = 4
    length: int = 256
    answers: int | None = None
    accumulate: int = 1
    checkpointing: bool = False
    dtype: str = "bfloat16"
    quantize: str | None = None
    kind: str = "causal-lm"
    labels: int = 2


@dataclass(frozen=True)
class Memory:
    """Bytes, at the fullest moment of a run, by what they are for.

    weights        the base's, and the adapter's fp32 masters; of full fine-tuning, their cast copy too
    gradients, optimizer   fp32, the optimizer's two moments for each trained value
    activations    all else that is there then: what the backward pass needs, and what is computed in passing. Where the
                   fullest moment is before the gradients are there, what takes their room until then is not told again
    allocator      what the system's allocator holds beyond that, in holes that it cannot give back (on a CPU)
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    allocator: int = 0
    total: int = field(init=False)

    def __post_init__(self) -> None:
        parts = self.weights, self.gradients, self.optimizer, self.activations, self.allocator
        object.__setattr__(self, "total", sum(parts))


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal brought to light.

    stored     bytes of the adapter on the disk, as Halka writes it (fp32)
    cached     bytes that a token of text takes in the key/value cache of one row
    work       how often operations of the same cost are done in a step, its optimiser's among them
    """

    parameters: int
    base_bytes: int
    trained: int
    stored: int
    cached: int
    memory: Memory
    work: Mapping[Work, int]

    @property
    def flops(self) -> int:
        """Of a step's products."""
        return sum(each.flops * times for each, times in self.work.items())


def rehearse(config: Any, method: Method, setup: Setup, *, gpu: bool = False) -> Rehearsed:
    """Two steps of training `method` on a base of that transformers configuration.

    Raises ValueError as `adapt`, `AdaptedModel.add` and `train` do.
    """
    from transformers.initialization import no_init_weights

    heap = None if gpu else Heap()
    with Rehearsal(heap, gpu=gpu) as rehearsal:
        with no_init_weights():
            model = model_of(config, setup)
        adapter = model.add(NAME, method)
        room = context(model, NAME)
        if room is not None and setup.length > room:
            raise HalkaError(
                f"{setup.length:,} tokens are more than the {room:,} positions that the base has for text beside "
                f"{method.name}'s own tokens: choose a length of at most {room:,}"
            )
        passes = min(setup.accumulate, 2)  # further ones are as the second
        how = TrainConfig(
            batch_size=setup.rows, accumulate=passes, steps=STEPS, checkpointing=setup.checkpointing, save_every=None
        )
        rehearsal.reset()
        first = Counter[Work]()  # of the first step, in which the optimiser's states begin

        observer = _Observer(rehearsal, heap)
        for step in train(model, NAME, [*training_items(model, setup)] * passes, how, observe=observer):
            first = rehearsal.work.copy() if step.step < STEPS else first
        work = rehearsal.work - first
        trained = adapter.count()
        weights = weights_of(model, NAME)
        gradients, moments = trained * FP32, trained * 2 * FP32
        held = rehearsal.peak if gpu else max(rehearsal.held, rehearsal.peak)
        return Rehearsed(
            parameters=count_of(model.base),
            base_bytes=bytes_of(model.base),
            trained=trained,
            stored=sum(each.numel() * each.element_size() for each in adapter.state_dict().values()),
            cached=_cached(model),
            memory=Memory(
                weights=weights,
                gradients=gradients,
                optimizer=moments,
                activations=max(0, rehearsal.peak - weights - gradients - moments),
                allocator=held - rehearsal.peak,
            ),
            work=work
            + Counter({each: times * (setup.accumulate - passes) for each, times in observer.last_pass.items()}),
        )


class _Observer(Observer):
    """Counts the work of the last pass, and lets the model of the allocator return memory in place of the real one."""

    def __init__(self, rehearsal: Rehearsal, heap: Heap | None):
        self._rehearsal, self._heap = rehearsal, heap
        self.last_pass = Counter[Work]()

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        before = self._rehearsal.work.copy()
        yield
        self.last_pass = self._rehearsal.work - before

    def returning_memory(self) -> AbstractContextManager[None]:
        return nullcontext() if self._heap is None else self._heap.returning()


def weights_of(model: AdaptedModel, name: str) -> int:
    """Bytes of the base's weights while that adapter is trained: with its masters, and what is cast of them all."""
    adapter, frozen = model.adapter(name), bytes_of(model.base)
    cast = frozen if "base" in adapter.parts and model.base.dtype != torch.float32 else 0
    return frozen + adapter.count() * FP32 + cast


def model_of(config: Any, setup: Setup) -> AdaptedModel:
    """A base of that configuration, whose weights nobody has learnt; within a rehearsal they are ghosts."""
    import transformers

    config = type(config).from_dict({**config.to_dict(), **_heads(setup)})
    base = getattr(transformers, KINDS[setup.kind]).from_config(config, dtype=getattr(torch, setup.dtype))
    base.tie_weights()
    if base.config.pad_token_id is None:
        base.config.pad_token_id = 0
    if setup.quantize is not None:
        quantise(base, setup.quantize)
    return adapt(base)


def _heads(setup: Setup) -> dict[str, Any]:
    names = {number: str(number) for number in range(setup.labels)}
    told = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    return told if setup.kind.endswith("classification") else {}


def training_items(model: AdaptedModel, setup: Setup) -> list[Item]:
    """The examples of one batch."""
    lengths = [setup.length] * setup.rows
    if setup.rows > 1 and setup.length > 2:
        lengths[-1] -= 1
    return [_item(model, setup, length) for length in lengths]


def _item(model: AdaptedModel, setup: Setup, length: int) -> Item:
    """An example of so many tokens, none of which is the one that fills up."""
    base: Any = model.base
    word = next(each for each in range(3) if each not in (base.config.pad_token_id, 0))
    ids = [word] * length
    if setup.kind == "sequence-classification":
        return Labelled(ids, 0, [])
    if setup.kind == "token-classification":
        return Tagged(ids, [*range(length)], [0] * length)
    answers = length - 1 if setup.answers is None else min(setup.answers, length - 1)
    if setup.kind == "seq2seq-lm":
        answers = length // 2 if setup.answers is None else answers
        return Pair(ids[answers:], ids[:answers])
    return Tokens(ids, [False] * (length - answers) + [True] * answers)


def _cached(model: AdaptedModel) -> int:
    """Bytes of the keys and values of a token, as the base computes them; none of a base that makes no text."""
    base: Any = model.base
    if not layout_of(base).causal and not base.config.is_encoder_decoder:
        return 0
    shape = next(target.shape for target in model.targets if target.role == "memory")
    return math.prod(shape) * base.dtype.itemsize
