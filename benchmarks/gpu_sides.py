"""What the pieces of gpu.py train with: bases of random weights, rows, and the sides that are compared."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.initialization import no_init_weights

import halka
from halka.data.batches import IGNORE_INDEX, collate
from halka.data.tokens import Tokens
from halka.training.job import EncodedJob
from halka.training.loop import Observer, loop
from halka.training.ranks import Ranks

SHARED = 0.75  # of a row, in the workload of rows behind one instruction
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}
FEW = {"num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 128}


@dataclass(frozen=True)
class Sizes:
    """How much a piece computes; `dry` on a CPU, with the tiny shape for every other.

    steps   batches of a workload, trained twice
    """

    dry: bool
    steps: int = 8
    rows: int = 8
    length: int = 1024
    new_tokens: int = 64
    decoded: tuple[int, ...] = (1, 8, 32)
    adapters: int = 32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")


SIZES = {False: Sizes(False), True: Sizes(True, steps=3, rows=2, length=16, new_tokens=2, decoded=(1, 3), adapters=3)}


# ── bases, rows, adapters, clocks ───────────────────────────────────────────────────────────────────────────────────


def random_base(shape: str, sizes: Sizes) -> Any:
    """A Llama of that shape in bf16 with random weights, made on the device."""
    fields = {**FEW, **SHAPES["tiny"]} if sizes.dry else {**HEADS, **SHAPES[shape]}
    config = transformers.LlamaConfig(**fields, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with no_init_weights(), sizes.device:
        base = transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            parameter.fill_(1) if "norm" in name else parameter.normal_(std=0.02)
    base.tie_weights()
    return base.eval()


def rows_of(workload: str, count: int, sizes: Sizes, vocabulary: int | None = None) -> list[Tokens]:
    """full: rows of one length; ragged: of a sixteenth to all of it; shared: behind one instruction."""
    draw, length = random.Random(0), sizes.length
    limit = vocabulary or (FEW if sizes.dry else HEADS)["vocab_size"]

    def words(count: int) -> list[int]:
        return [draw.randrange(3, limit) for _ in range(count)]

    begin = words(int(SHARED * length)) if workload == "shared" else []
    items = []
    for _ in range(count):
        size = length if workload == "full" else draw.randint(max(4, length // 16), length)
        own = words(max(4, min(size, length - len(begin))))
        items.append(Tokens([*begin, *own], [False] * (len(begin) + 2) + [True] * (len(own) - 2)))
    return items


def clock(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Tokenizer:
    """As much of one as the engine needs."""

    eos_token_id, pad_token_id, chat_template, added_tokens_decoder = 2, 0, None, {}

    def __len__(self) -> int:
        return 100

    def convert_ids_to_tokens(self, number: int) -> str:
        return str(number)

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


# ── sides: each returns the time at the end of every step, and leaves the base as it was ────────────────────────────


def run_halka(base: Any, batches: list[list[Tokens]], sizes: Sizes, *, checkpointing: bool) -> list[float]:
    from fixed_batches import FixedRun

    items = [item for batch in batches for item in batch]
    numbers = iter(range(len(items)))
    config = halka.TrainConfig(steps=len(batches), batch_size=len(batches[0]), checkpointing=checkpointing)
    model = halka.adapt(base)
    model.add("a", halka.LoRA(rank=16))
    try:
        run = FixedRun(model, EncodedJob("a", items, config))
        run.batches = [[next(numbers) for _ in batch] for batch in batches]
        return [clock(sizes.device) for _ in loop(model, [run], Observer(), Ranks())]
    finally:
        model.remove("a")


def run_trainer(
    base: Any, batches: list[list[Tokens]], sizes: Sizes, *, checkpointing: bool, liger: bool = False
) -> list[float]:
    """transformers' Trainer with peft."""
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(clock(sizes.device))

    class FixedTrainer(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            rows = [self._collated(batch) for batch in batches]
            return self.accelerator.prepare(torch.utils.data.DataLoader(rows, batch_size=None))

        @staticmethod
        def _collated(batch: list[Tokens]) -> dict[str, torch.Tensor]:
            padded = collate(batch, pad_id=0)
            assert int((padded.labels != IGNORE_INDEX).sum()) > 0
            return {**padded.inputs, "labels": padded.labels}

    with _peft_model(base) as model, tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(batches[0]),
            max_steps=len(batches),
            learning_rate=1e-3,
            bf16=True,
            use_cpu=sizes.dry,
            use_liger_kernel=liger,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=not sizes.dry,
        )
        FixedTrainer(model=model, args=arguments, train_dataset=[{}], callbacks=[Clock()]).train()
    return times


@contextmanager
def _peft_model(base: Any) -> Iterator[Any]:
    """The base with peft's LoRA; afterwards it has none of peft's layers, and recomputes no activations."""
    import peft

    model = peft.get_peft_model(
        base, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    try:
        yield model
    finally:
        model.unload()
        base.gradient_checkpointing_disable()
        base.config.use_cache = True
        base.requires_grad_(False).eval()


def run_liger(base: Any, batches: list[list[Tokens]], sizes: Sizes, *, checkpointing: bool) -> list[float]:
    return run_trainer(base, batches, sizes, checkpointing=checkpointing, liger=True)
