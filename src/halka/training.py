"""train(): the only loop. A generator of steps, the same for every method: print it, stream it, stop it, resume it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halka.checkpoint import Progress, load_checkpoint, save_checkpoint
from halka.core import AdaptedModel
from halka.data.batches import NO_LOSS, Batch, batches, collate, plan
from halka.data.examples import Example
from halka.data.tokens import TOO_LONG, Tokens, encode_all
from halka.files import write_file, write_text
from halka.loss import label_loss
from halka.machine import held
from halka.models import context, hidden_states, logits
from halka.models.attention import use_attention
from halka.models.fingerprint import own_fingerprint

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"
DEFAULT_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class TrainConfig:
    """How to train, whatever the method."""

    lr: float | None = field(default=None, metadata={"help": "peak learning rate; the method's own if not given"})
    epochs: float = field(default=3.0, metadata={"help": "passes over the training examples, unless steps is given"})
    steps: int | None = field(default=None, metadata={"help": "optimiser steps"})
    batch_size: int | None = field(default=None, metadata={"help": "examples a batch; no limit if not given"})
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": f"tokens a batch, padding included; {DEFAULT_BATCH_TOKENS} if there is no batch_size either"},
    )
    accumulate: int = field(default=1, metadata={"help": "batches whose gradients make one step"})
    max_length: int | None = field(
        default=None, metadata={"help": "tokens an example; the base's context if not given"}
    )
    too_long: str = field(default="cut", metadata={"help": "an example over max_length: cut, drop or error"})
    schedule: str = field(default="cosine", metadata={"help": "after warm-up: cosine (to a tenth) or constant"})
    warmup: float = field(default=0.06, metadata={"help": "share of the steps with a rising learning rate"})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's"})
    clip: float = field(default=1.0, metadata={"help": "largest gradient norm; 0 for none"})
    checkpointing: bool = field(
        default=False, metadata={"help": "recompute activations in backward: less memory, a third more time"}
    )
    evaluate_every: int | None = field(
        default=None, metadata={"help": "steps between evaluations; 10 in all if not given"}
    )
    patience: int | None = field(default=None, metadata={"help": "stop after so many evaluations without improvement"})
    save_every: int | None = field(
        default=100, metadata={"help": "steps between checkpoints, if there is a folder; none writes none"}
    )
    seed: int = field(default=0, metadata={"help": "order of the examples and dropout"})

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "steps", "batch_size", "batch_tokens", "accumulate", "max_length", "save_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        for name in ("evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps, at least 0 and below 1, not {self.warmup}")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule is 'cosine' or 'constant', not {self.schedule!r}")
        if self.too_long not in TOO_LONG:
            raise ValueError(f"too_long is one of {', '.join(TOO_LONG)}, not {self.too_long!r}")
        for name in ("clip", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    def limits(self) -> dict[str, Any]:
        """What bounds a batch, for `batches` and `plan`."""
        tokens = DEFAULT_BATCH_TOKENS if self.batch_tokens is self.batch_size is None else self.batch_tokens
        return {"batch_tokens": tokens, "batch_size": self.batch_size}


@dataclass(frozen=True)
class Step:
    """What one optimiser step did."""

    step: int
    steps: int  # of the whole run
    loss: float  # mean over the step's label tokens
    lr: float
    gradient_norm: float
    tokens: int  # useful tokens (no padding) so far
    seconds: float  # training time so far
    tokens_per_second: float  # of this step
    memory: int  # bytes that the process holds: in memory, or on the GPU
    validation: float | None = None  # mean loss over the validation labels, where evaluated
    best: bool = False  # the best validation so far


def train(
    model: AdaptedModel,
    name: str,
    examples: Sequence[Example | Tokens],
    config: TrainConfig | None = None,
    *,
    validation: Sequence[Example | Tokens] = (),
    folder: str | Path | None = None,
) -> Generator[Step, None, None]:
    """Train adapter `name` of `model`; yields a `Step` after each optimiser step.

    With validation examples, the weights of the best evaluation are in place at the end. With a folder, each step is a
    line of `metrics.jsonl`, and a run that was killed goes on exactly where its last checkpoint was.

    Raises ValueError for data without labels, and `TrainingError` where training itself fails.
    """
    config = config or TrainConfig()
    items = as_tokens(model, examples, config, name)
    held_out = as_tokens(model, validation, config, name) if validation else []
    return _Run(model, name, items, held_out, config, folder).go()


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


def as_tokens(
    model: AdaptedModel, examples: Sequence[Example | Tokens], config: TrainConfig, name: str | None = None
) -> list[Tokens]:
    """Examples as the base reads them, with room for adapter `name`'s virtual tokens.

    None is longer than the base's context, whatever `max_length` allows. Raises ValueError where none is left, for
    `Tokens` over the context, and for a model that came without a tokenizer.
    """
    tokens = [each for each in examples if isinstance(each, Tokens)]
    raw = [each for each in examples if isinstance(each, Example)]
    room = context(model, name)
    if long := [str(i) for i, each in enumerate(tokens) if room is not None and len(each.ids) > room]:
        raise ValueError(
            f"{len(long)} of {len(tokens)} encoded examples, the first at {long[0]}, are longer than the {room} "
            "positions that the base has for text: cut them"
        )
    if raw:
        if model.tokenizer is None:
            raise ValueError("to train on examples the model needs its tokenizer: `halka.adapt(base, tokenizer)`")
        length = min((each for each in (config.max_length, room) if each is not None), default=None)
        encoded = encode_all(raw, model.tokenizer, length, config.too_long)
        tokens += encoded.tokens
        if encoded.dropped or encoded.cut:
            first = f", first {encoded.problems[0]}" if encoded.problems else ""
            warnings.warn(
                f"of {len(raw)} examples {encoded.cut} are cut to {length} tokens and "
                f"{encoded.dropped} left out{first}; `halka data preview` shows them all",
                stacklevel=2,
            )
    if not any(any(each.loss[1:]) for each in tokens):
        raise ValueError(f"no token to learn from in {len(examples)} examples: each needs an answer by the assistant")
    return tokens


def mean_loss(model: AdaptedModel, name: str | None, items: Sequence[Tokens], batch_tokens: int = 4096) -> float:
    """The mean loss per label token of `items` with adapter `name` (None: the bare base), without dropout."""
    total, count = 0.0, 0
    device = next(model.base.parameters()).device
    with torch.no_grad(), model.use(name), use_attention(model.base), _mode(model.base, training=False):
        for batch in batches(items, pad_id=pad_id(model), seed=0, epoch=0, batch_tokens=batch_tokens):
            loss, labels = _batch_loss(model, batch.to(device), head_trains=False)
            total, count = total + float(loss), count + labels
    return total / count


def pad_id(model: AdaptedModel) -> int:
    """The token that fills up rows: the tokenizer's, else its end of sequence, which no answer's text shows."""
    known = (getattr(model.tokenizer, key, None) for key in ("pad_token_id", "eos_token_id"))
    return next((token for token in known if token is not None), 0)


def _batch_loss(model: AdaptedModel, batch: Batch, head_trains: bool) -> tuple[Tensor, int]:
    hidden = hidden_states(model, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return label_loss(hidden, batch.labels, lambda h: logits(model, h), head_trains=head_trains)


class _Run:
    """One adapter's training: its data order, its optimiser, its place on the disk."""

    def __init__(
        self,
        model: AdaptedModel,
        name: str,
        items: list[Tokens],
        held_out: list[Tokens],
        config: TrainConfig,
        folder: str | Path | None,
    ):
        self.model, self.name, self.items, self.held_out, self.config = model, name, items, held_out, config
        self.adapter = model.adapter(name)
        self.head_trains = any(target.role in ("head", "base") for target in self.adapter.targets.values())
        self.lengths = [len(item.ids) for item in items]
        self.steps = config.steps or max(1, math.ceil(round(len(self._plan(0)) / config.accumulate * config.epochs, 6)))
        self.evaluate_every = config.evaluate_every or max(1, self.steps // 10)
        self.peak_lr = config.lr or type(self.adapter.method).lr
        self.optimizer = torch.optim.AdamW(
            self.adapter.parameters(), lr=self.peak_lr, weight_decay=config.weight_decay, fused=True
        )
        self.folder = None if folder is None else Path(folder)
        self.best: dict[str, Tensor] | None = None

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────

    def go(self) -> Generator[Step, None, None]:
        progress = self._resume()
        stream = self._batches(progress.step * self.config.accumulate)
        if self._over(progress):
            self._restore_best(progress)
        while not self._over(progress):
            step = self._step(progress, [next(stream) for _ in range(self.config.accumulate)])
            progress = replace(progress, step=step.step, tokens=step.tokens, seconds=step.seconds)
            if self.held_out and (step.step % self.evaluate_every == 0 or step.step == self.steps):
                with _watched(f"in the evaluation after step {step.step}"):
                    loss = mean_loss(self.model, self.name, self.held_out)
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"the validation loss became {loss} at step {step.step}: try a lower learning rate, a longer "
                        "warm-up, or fp32"
                    )
                step = replace(step, validation=loss, best=loss < progress.best_loss)
                progress = self._judged(progress, step, loss)
            self._record(step)
            over = self._over(progress)
            if over or (self.config.save_every and step.step % self.config.save_every == 0):
                self._save(progress)
            if over:  # before the last step is told, so that nobody has to ask for one more
                self._restore_best(progress)
            try:
                yield step
            except GeneratorExit:
                if not over:
                    self._save(progress)
                raise

    def _over(self, progress: Progress) -> bool:
        return progress.step >= self.steps or progress.stopped

    def _step(self, progress: Progress, micro_batches: list[Batch]) -> Step:
        started = time.perf_counter()
        number, config = progress.step + 1, self.config
        lr = self._lr(number)
        labels = max(1, sum(int((batch.labels[:, 1:] != NO_LOSS).sum()) for batch in micro_batches))
        loss = 0.0
        rows, longest = micro_batches[0].input_ids.shape
        try:
            with _watched(f"at step {number}, with a batch of {rows} rows of {longest} tokens"), self._training(number):
                for batch in micro_batches:
                    summed, _ = _batch_loss(self.model, batch, self.head_trains)
                    (summed / labels).backward()
                    loss += float(summed.detach()) / labels
            parameters = self.adapter.parameters()
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf))
            if not math.isfinite(loss + norm):
                raise TrainingError(
                    f"the loss became {loss} (gradient norm {norm}) at step {number} with learning rate {lr:.3g}: "
                    "try a lower learning rate, a longer warm-up, or fp32; the weights are those before this step"
                )
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            with _watched(f"at step {number}, in the optimiser"):
                self.optimizer.step()
        finally:
            self.optimizer.zero_grad()
        tokens = sum(batch.tokens for batch in micro_batches)
        seconds = time.perf_counter() - started
        return Step(
            step=number,
            steps=self.steps,
            loss=loss,
            lr=lr,
            gradient_norm=norm,
            tokens=progress.tokens + tokens,
            seconds=progress.seconds + seconds,
            tokens_per_second=tokens / seconds,
            memory=held(self.optimizer.param_groups[0]["params"][0].device),
        )

    @contextmanager
    def _training(self, number: int) -> Iterator[None]:
        """The base with this adapter, ready for step `number`; dropout follows from the seed and the step."""
        base: Any = self.model.base
        with self.model.use(self.name), use_attention(base), torch.random.fork_rng(), _mode(base, training=True):
            recompute = self.config.checkpointing and not base.is_activation_checkpointing
            self.adapter.train()
            try:
                torch.manual_seed(self.config.seed * 1_000_003 + number)
                if recompute:
                    base.activation_checkpointing_enable({"use_reentrant": False})
                yield
            finally:
                if recompute:
                    base.activation_checkpointing_disable()
                self.adapter.train(False)

    def _lr(self, number: int) -> float:
        """The learning rate of step `number`: rising over the warm-up, then constant or a cosine to a tenth."""
        warmup = math.ceil(self.config.warmup * self.steps)
        if number <= warmup:
            return self.peak_lr * number / warmup
        if self.config.schedule == "constant":
            return self.peak_lr
        done = (number - warmup) / max(1, self.steps - warmup)
        return self.peak_lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    # ── data ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, epoch: int) -> list[list[int]]:
        return plan(self.lengths, seed=self.config.seed, epoch=epoch, **self.config.limits())

    def _batches(self, skip: int) -> Iterator[Batch]:
        """Batches without end, epoch after epoch; the first `skip` are passed over."""
        device = next(self.model.base.parameters()).device
        indices = (each for epoch in itertools.count() for each in self._plan(epoch))
        for chosen in itertools.islice(indices, skip, None):
            yield collate([self.items[i] for i in chosen], pad_id(self.model)).to(device)

    # ── the disk ────────────────────────────────────────────────────────────────────────────────────────────────

    def _judged(self, progress: Progress, step: Step, loss: float) -> Progress:
        """Keep the weights if they are the best so far; stop when patience is at its end."""
        if step.best:
            state = {key: tensor.detach().clone() for key, tensor in self.adapter.state_dict().items()}
            if self.folder is None:
                self.best = state
            else:
                write_file(self.folder / "best.safetensors", lambda beside: save_file(state, beside))
            return replace(progress, best_step=step.step, best_loss=loss, waited=0)
        waited = progress.waited + 1
        return replace(
            progress, waited=waited, stopped=self.config.patience is not None and waited >= self.config.patience
        )

    def _restore_best(self, progress: Progress) -> None:
        """Let the weights of the best evaluation be the adapter's, if there was one."""
        if progress.best_step:
            state = self.best if self.folder is None else load_file(self.folder / "best.safetensors")
            assert state is not None
            self.adapter.load_state_dict(state)

    def _save(self, progress: Progress) -> None:
        if self.folder is not None and self.config.save_every:
            save_checkpoint(self.folder / CHECKPOINT, self._identity, progress, self.adapter, self.optimizer)

    def _resume(self) -> Progress:
        if self.folder is None:
            return Progress()
        self.folder.mkdir(parents=True, exist_ok=True)
        progress = load_checkpoint(self.folder / CHECKPOINT, self._identity, self.adapter, self.optimizer)
        progress = progress or Progress()
        metrics = self.folder / METRICS
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines()
            write_text(metrics, "".join(f"{line}\n" for line in lines if _step_of(line) <= progress.step))
        return progress

    def _record(self, step: Step) -> None:
        if self.folder is not None:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(step)) + "\n")

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        method = self.adapter.method
        return {
            "method": method.name,
            **{f"{method.name}'s {key}": value for key, value in asdict(method).items()},
            **asdict(replace(self.config, save_every=None, steps=self.steps, lr=self.peak_lr)),
            "dtype": str(self.model.base.dtype),
            "data": _digest(self.items),
            "validation": _digest(self.held_out),
            "base": own_fingerprint(self.model)["weights"],
        }


def _step_of(line: str) -> float:
    """The step that a line of `metrics.jsonl` tells of; beyond all steps where the line was cut off."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def _digest(items: Sequence[Tokens]) -> str:
    return hashlib.sha256(repr([(item.ids, item.loss) for item in items]).encode()).hexdigest()[:16]


@contextmanager
def _mode(base: nn.Module, *, training: bool) -> Iterator[None]:
    """The base in train or eval mode, which decide over dropout; afterwards in the mode it was in."""
    was = base.training
    base.train(training)
    try:
        yield
    finally:
        base.train(was)


@contextmanager
def _watched(when: str) -> Iterator[None]:
    """Let memory that ran out be said with the way out."""
    try:
        yield
    except RuntimeError as error:
        told = ("not enough memory", "can't allocate memory")
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in told):
            raise
        raise TrainingError(
            f"out of memory {when}: lower batch_tokens (and raise accumulate to keep the step's size), "
            "or turn checkpointing on"
        ) from error
