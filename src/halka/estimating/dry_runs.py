"""A dry run: two training steps on fake tensors, with the real code of base, adapter, loss, backward and optimiser.

Nothing is modelled twice: what a method or an architecture saves for its backward pass is what its own code saves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from halka.core import AdaptedModel, Method, parameter_count
from halka.core.adapter import Adapter
from halka.core.parts import Part, VirtualPart
from halka.data.examples import Item
from halka.data.tokens import Tokens
from halka.estimating.allocator import AllocatorModel
from halka.estimating.costs import Work
from halka.estimating.cuda_allocator import CUDAAllocatorModel
from halka.estimating.fake_tensors import DryRunMode
from halka.models import adapt, context, stack_of
from halka.models.heads import usable_pad_id
from halka.models.kinds import KINDS
from halka.models.quantised import bytes_of, quantise
from halka.objectives import packs
from halka.objectives.classification import Labelled
from halka.objectives.sequence_to_sequence import Pair
from halka.objectives.tagging import Tagged
from halka.training import Observer, TrainConfig, train
from halka.util.errors import HalkaError

FP32 = 4
NAME = "dry_run"
LEAST = 3  # tokens of an example's own, of which something can be learned
STEPS = 2  # the second has the optimiser's states from its beginning


@dataclass(frozen=True)
class Setup:
    """How a base is trained.

    rows, length   of each batch; the last row is shorter by one token, so that there is padding
    shared         tokens with which all rows begin, which a packed batch computes once; 0: a padded batch
    answers        tokens of each row with loss; None: all but the first, and but the shared ones
    labels         of a classifier or a tagger
    flash          whether the GPU, if it is one, has flash attention (`devices.Device.flash`)
    """

    rows: int = 4
    length: int = 256
    shared: int = 0
    answers: int | None = None
    accumulate: int = 1
    checkpointing: bool = False
    dtype: str = "bfloat16"
    quantize: str | None = None
    kind: str = "causal-lm"
    labels: int = 2
    flash: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a run, by what they are for.

    weights        the base's, and the adapter's fp32 masters; with full fine-tuning also their cast copy
    gradients, optimizer   fp32: one gradient and two moments for each trained number
    activations    all else at the peak: what the backward pass needs, and temporary results. Where the peak comes
                   before there are gradients, bytes up to their size are not counted again here
    allocator      what the system's allocator, or torch's on a GPU, holds beyond that, in holes that it cannot return
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
class DryRun:
    """The result of a dry run.

    stored     bytes of the adapter on the disk, as Halka writes it: fp32, and full fine-tuning the base's precision
    served     bytes of the adapter in memory: in fp32, and of a prompt also the keys and values that follow from it
    cached     bytes of a token in the key/value cache of one row
    work       a step's operations, the optimiser's among them, and how often each runs
    """

    parameters: int
    base_bytes: int
    trained: int
    stored: int
    served: int
    cached: int
    memory: Memory
    work: Mapping[Work, int]

    @property
    def flops(self) -> int:
        """FLOPs of a step's matrix products."""
        return sum(operation.flops * times for operation, times in self.work.items())


def dry_run(config: Any, method: Method, setup: Setup, *, gpu: bool = False) -> DryRun:
    """Run two steps of training `method` on fake tensors, on a base of that transformers configuration.

    Examples that are longer than what the base has room for beside the method's own tokens are cut, as in training.
    Raises HalkaError as `adapt`, `AdaptedModel.add` and `train` do.
    """
    from transformers.initialization import no_init_weights

    allocator = CUDAAllocatorModel() if gpu else AllocatorModel()
    with DryRunMode(allocator, gpu=gpu, flash=setup.flash) as mode:
        with no_init_weights():
            model = model_of(config, setup)
        if setup.shared and not packs(model):
            raise HalkaError(
                f"batches of {type(model.base).__name__} are padded, and compute what examples share for each: leave "
                "shared (--shared) out"
            )
        adapter = model.add(NAME, method)
        room = context(model, NAME)
        if room is not None and setup.length > room:
            if room - setup.shared < LEAST:
                raise HalkaError(
                    f"beside {method.name}'s own tokens the base has {room:,} positions for text, which is too few: "
                    "choose fewer of its own, or share fewer"
                )
            setup = replace(setup, length=room)
        passes = min(setup.accumulate, 2)  # further ones do what the second does
        config_of_run = TrainConfig(
            batch_size=setup.rows,
            batches="packed" if setup.shared or _packs_smaller(model) else "padded",
            accumulate=passes,
            steps=STEPS,
            checkpointing=setup.checkpointing,
            save_every=None,
        )
        mode.reset()
        first = Counter[Work]()  # of the first step, in which the optimiser's states begin

        observer = _Observer(mode, allocator)
        for step in train(model, NAME, [*training_items(model, setup)] * passes, config_of_run, observe=observer):
            first = mode.work.copy() if step.step < STEPS else first
        work = mode.work - first
        trained = adapter.count()
        weights = weights_of(model, NAME)
        gradients, moments = trained * FP32, trained * 2 * FP32
        held = max(mode.held, mode.peak)
        full, cached = "base" in adapter.parts, _cached(model)
        kept = sum(_kept(part, adapter.targets[path].role) for path, part in adapter.parts.items())
        stored = kept * (getattr(torch, setup.dtype).itemsize if full else FP32)
        return DryRun(
            parameters=parameter_count(model.base),
            base_bytes=bytes_of(model.base),
            trained=trained,
            stored=stored,
            served=stored + _computed(adapter) * cached,
            cached=cached,
            memory=Memory(
                weights=weights,
                gradients=gradients,
                optimizer=moments,
                activations=max(0, mode.peak - weights - gradients - moments),
                allocator=held - mode.peak,
            ),
            work=work + Counter({it: times * (setup.accumulate - passes) for it, times in observer.last_pass.items()}),
        )


class _Observer(Observer):
    """Counts the work of the last pass, and lets the model of the allocator return memory in place of the real one."""

    def __init__(self, mode: DryRunMode, allocator: AllocatorModel | CUDAAllocatorModel):
        self._mode, self._allocator = mode, allocator
        self.last_pass = Counter[Work]()

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        before = self._mode.work.copy()
        yield
        self.last_pass = self._mode.work - before

    def returning_memory(self) -> AbstractContextManager[None]:
        return self._allocator.returning() if isinstance(self._allocator, AllocatorModel) else nullcontext()


def weights_of(model: AdaptedModel, name: str) -> int:
    """Bytes of all weights while adapter `name` is trained: the base's, the adapter's masters, cast copies."""
    adapter, frozen = model.adapter(name), bytes_of(model.base)
    cast = frozen if "base" in adapter.parts and model.base.dtype != torch.float32 else 0
    return frozen + adapter.count() * FP32 + cast


def model_of(config: Any, setup: Setup) -> AdaptedModel:
    """A base of that configuration with new weights, which are fake within `DryRunMode`."""
    import transformers

    config = type(config).from_dict({**config.to_dict(), **_heads(setup)})
    base = getattr(transformers, KINDS[setup.kind]).from_config(config, dtype=getattr(torch, setup.dtype))
    base.tie_weights()
    if usable_pad_id(base.config) is None:
        base.config.get_text_config().pad_token_id = 0
    if setup.quantize is not None:
        quantise(base, setup.quantize)
    return adapt(base)


def _heads(setup: Setup) -> dict[str, Any]:
    names = {number: str(number) for number in range(setup.labels)}
    fields = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    return fields if setup.kind.endswith("classification") else {}


def training_items(model: AdaptedModel, setup: Setup) -> list[Item]:
    """The examples of one batch."""
    lengths = [setup.length] * setup.rows
    if setup.rows > 1 and setup.length > 2:
        lengths[-1] -= 1
    return [_item(model, setup, length, row) for row, length in enumerate(lengths)]


def _item(model: AdaptedModel, setup: Setup, length: int, row: int) -> Item:
    """An example of `length` tokens, none of them the pad token; what rows share is followed by another in each."""
    base: Any = model.base
    text = base.config.get_text_config()
    word = next(token for token in range(3) if token not in (text.pad_token_id, 0))
    ids = [word] * length
    if setup.shared:
        ids[setup.shared] = 3 + row % (text.vocab_size - 3)
    if setup.kind == "sequence-classification":
        return Labelled(ids, 0, [])
    if setup.kind == "token-classification":
        return Tagged(ids, [*range(length)], [0] * length)
    most = length - max(1, setup.shared)
    answers = most if setup.answers is None else min(setup.answers, most)
    if setup.kind == "seq2seq-lm":
        answers = length // 2 if setup.answers is None else answers
        return Pair(ids[answers:], ids[:answers])
    return Tokens(ids, [False] * (length - answers) + [True] * answers)


def _packs_smaller(model: AdaptedModel) -> bool:
    """Whether a packed batch that shares nothing keeps much less than a padded one, and not about as much.

    Attention with a softcap keeps the scores of all pairs of tokens of padded rows.
    """
    base: Any = model.base
    return getattr(base.config.get_text_config(), "attn_logit_softcapping", None) is not None and packs(model)


def _kept(part: Part, role: str) -> int:
    """The numbers of a part that are saved: virtual tokens, not the larger network that computes them."""
    own = sum(parameter.numel() for parameter in part.parameters())
    if not isinstance(part, VirtualPart):
        return own
    return min(own, part.virtual().numel() + (part.gates().numel() if role == "memory.gated" else 0))


def _computed(adapter: Adapter) -> int:
    """The virtual tokens whose keys and values the base computes, which an engine keeps."""
    at_embed = [part for path, part in adapter.parts.items() if adapter.targets[path].role == "embed"]
    return sum(len(part.virtual()) for part in at_embed if isinstance(part, VirtualPart))


def _cached(model: AdaptedModel) -> int:
    """Bytes of a token's keys and values in the base's precision; 0 for a base that generates no text."""
    base: Any = model.base
    if not base.can_generate():
        return 0
    stack = stack_of(model)
    keys = sum(target.d_out for target in model.targets if target.role == "attn.k")  # some layers have none
    return (math.prod(stack.shape) if stack.layout.alike else 2 * keys) * base.dtype.itemsize
