"""What one GPU measures in forty minutes, in pieces of under ten, each a process and a result file of its own.

    python benchmarks/gpu.py                                  # all pieces, on the first GPU
    python benchmarks/gpu.py training-8b decoding             # some
    python benchmarks/gpu.py --dry                            # all pieces with tiny shapes on a CPU: do they run?

It runs offline with what is on the machine. Bases of the shapes of Llama 1B and 8B have random weights and are made
there; `losses` takes SmolLM2's, from the cache or from `--base FOLDER`.

    losses           five steps of LoRA on SmolLM2: losses on the CPU beside those on the GPU, fp32 and bf16
    training-1b      LoRA of rank 16 in bf16, 8 × 1024 tokens, beside peft with transformers' Trainer, and beside both
                     with Liger's kernels where liger-kernel is installed: full rows, ragged rows, a shared instruction
    training-8b      the same on the 8B shape, and 2 × 4096
    training-8b-nf4, training-8b-int8   Halka alone, on a quantised base
    decoding         1, 8 and 32 rows of the 1B shape by the engine: the base, one adapter, an adapter a row, families
    estimator        peaks of training beside what `halka estimate` says before

Speeds are useful tokens a second (padding is none, shared tokens count in every row) without the first two steps; the
GPU's work is waited for before a clock is read. The result goes to benchmarks/results/gpu_PIECE.json.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from side_by_side import in_a_process, setup
from transformers.initialization import no_init_weights

import halka
from halka.data.batches import IGNORE_INDEX, collate
from halka.data.tokens import Tokens
from halka.models.quantised import quantise
from halka.training.loop import Observer, loop
from halka.training.ranks import Ranks
from halka.util import machine

RESULTS = Path(__file__).parent / "results"
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
    """How much a piece computes; `dry` on a CPU, with the tiny shape for every other."""

    dry: bool
    steps: int = 12
    rows: int = 8
    length: int = 1024
    new_tokens: int = 64
    decoded: tuple[int, ...] = (1, 8, 32)
    adapters: int = 32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")


SIZES = {False: Sizes(False), True: Sizes(True, steps=3, rows=2, length=16, new_tokens=2, decoded=(1, 3), adapters=3)}


class Tokenizer:
    """As much of one as the engine needs."""

    eos_token_id, pad_token_id, chat_template, added_tokens_decoder = 2, 0, None, {}

    def convert_ids_to_tokens(self, number: int) -> str:
        return str(number)

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


# ── what is measured ────────────────────────────────────────────────────────────────────────────────────────────────


def losses(sizes: Sizes, base: str) -> dict[str, Any]:
    """Of five steps, on the CPU and on the device."""
    result = {}
    for dtype in ("float32", "bfloat16"):
        of_device = {}
        for device in ("cpu", str(sizes.device)):
            if sizes.dry:
                loaded = random_base("tiny", sizes, torch.device(device)).to(getattr(torch, dtype))
            else:
                loaded, _ = halka.load_base(base, dtype=dtype, device=device)
            model = halka.adapt(loaded)
            model.add("a", halka.LoRA(rank=16))
            items = rows_of("ragged", 20, sizes, vocabulary=90)
            config = halka.TrainConfig(lr=1e-3, steps=5, batch_size=4)
            of_device[device] = [step.loss for step in halka.train(model, "a", items, config)]
        pairs = zip(of_device["cpu"], of_device[str(sizes.device)], strict=True)
        result[dtype] = {**of_device, "difference": max(abs(one / other - 1) for one, other in pairs)}
    return result


def training(sizes: Sizes, shape: str, quantize: str | None = None) -> dict[str, Any]:
    """Useful tokens a second and the peak of each side on each workload."""
    base = random_base(shape, sizes)
    if quantize is not None:
        quantise(base, quantize)
    loads = dict.fromkeys(("full", "ragged", "shared"), (sizes.rows, sizes.length))
    if shape == "8b":
        loads["full 2 × 4096"] = (2, 4 * sizes.length)
    sides = {"halka": run_halka}
    if quantize is None:
        sides["peft with Trainer"] = run_trainer
        if find_spec("liger_kernel") and not sizes.dry:
            sides["peft with Trainer and Liger"] = run_liger
    result: dict[str, Any] = {name: {} for name in loads}
    for side, run in sides.items():
        for name, (rows, length) in loads.items():
            size = Sizes(sizes.dry, sizes.steps, rows, length)
            items = rows_of(name.split()[0], rows * sizes.steps, size)
            batches = [items[start : start + rows] for start in range(0, len(items), rows)]
            machine.reset_peak(sizes.device)
            times = run(base, batches, sizes)
            tokens = sum(len(item) for batch in batches[2:] for item in batch)
            result[name][side] = {
                "tokens_per_second": tokens / (times[-1] - times[1]),
                "peak": machine.peak(sizes.device),
            }
    for of_side in result.values():
        speeds = {side: of_side[side]["tokens_per_second"] for side in of_side}
        of_side["halka_to"] = {side: speeds["halka"] / speed for side, speed in speeds.items() if side != "halka"}
    return result


def decoding(sizes: Sizes) -> dict[str, Any]:
    """Tokens a second of the engine by rows and adapters, and the share of the base's."""
    model = halka.adapt(random_base("1b", sizes), Tokenizer())
    methods = {"lora": halka.LoRA(rank=16), "bottleneck": halka.Bottleneck(), "prefix": halka.Prefix(length=8)}
    for number in range(sizes.adapters):
        filled(model, f"lora {number}", methods["lora"], number)
    for name, method in methods.items():
        filled(model, name, method, 0)
    result = {}
    for rows in sizes.decoded:
        ways = {
            "base": [None] * rows,
            "one adapter": ["lora 0"] * rows,
            "an adapter a row": [f"lora {row % sizes.adapters}" for row in range(rows)],
            "families": [[*methods, None][row % 4] for row in range(rows)],
        }
        speeds = {way: decoded(model, names, sizes) for way, names in ways.items()}
        result[str(rows)] = {
            way: {"tokens_per_second": speed, "of_base": speed / speeds["base"]} for way, speed in speeds.items()
        }
    return result


def decoded(model: Any, names: list[str | None], sizes: Sizes) -> float:
    """Tokens a second of these rows, after a first round for what is compiled and packed."""
    prompt = [5 + place % 80 for place in range(sizes.length // 16)]
    speed = 0.0
    with halka.Engine(model, rows=len(names), ends=frozenset()) as engine:
        for _ in range(2):
            for name in names:
                engine.submit(halka.Request(prompt, name, stopping=halka.Stopping(sizes.new_tokens)))
            engine.step()  # reads the prompts
            started = clock(sizes.device)
            while engine.step():
                pass
            speed = len(names) * (sizes.new_tokens - 1) / (clock(sizes.device) - started)
    return speed


def estimator(sizes: Sizes) -> list[dict[str, Any]]:
    """Peaks of two steps, of tensors and of what the allocator holds, beside the dry run's."""
    from halka.estimating.dry_runs import Setup, dry_run, training_items

    cases = []
    for method in (halka.LoRA(rank=16), halka.Bottleneck(), halka.Prefix(), halka.Prompt()):
        for checkpointing in (False, True)[: 1 if sizes.dry else 2]:
            for rows in (1, sizes.rows)[: 1 if sizes.dry else 2]:
                how = Setup(rows=rows, length=sizes.length, checkpointing=checkpointing)
                base = random_base("1b", sizes)
                expected = dry_run(base.config, method, how, gpu=True).memory
                model = halka.adapt(base)
                model.add("a", method)
                machine.reset_peak(sizes.device)
                config = halka.TrainConfig(
                    batch_size=rows, steps=2, checkpointing=checkpointing, batches="padded", save_every=None
                )
                for _ in halka.train(model, "a", training_items(model, how), config):
                    pass
                held = None if sizes.dry else torch.cuda.max_memory_reserved()
                cases.append(
                    {
                        **{"method": method.name, "rows": rows, "length": sizes.length, "checkpointing": checkpointing},
                        "estimated": {"tensors": expected.total - expected.allocator, "held": expected.total},
                        "measured": {"tensors": machine.peak(sizes.device), "held": held},
                    }
                )
                del model, base
                if not sizes.dry:
                    torch.cuda.empty_cache()
    return cases


PIECES: dict[str, Any] = {
    "losses": losses,
    "training-1b": lambda sizes, base: training(sizes, "1b"),
    "training-8b": lambda sizes, base: training(sizes, "8b"),
    "training-8b-nf4": lambda sizes, base: training(sizes, "8b", "nf4"),
    "training-8b-int8": lambda sizes, base: training(sizes, "8b", "int8"),
    "decoding": lambda sizes, base: decoding(sizes),
    "estimator": lambda sizes, base: estimator(sizes),
}


# ── bases, rows, clocks ─────────────────────────────────────────────────────────────────────────────────────────────


def random_base(shape: str, sizes: Sizes, device: torch.device | None = None) -> Any:
    """A Llama of that shape in bf16 with random weights, made on the device."""
    fields = {**FEW, **SHAPES["tiny"]} if sizes.dry else {**HEADS, **SHAPES[shape]}
    config = transformers.LlamaConfig(**fields, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with no_init_weights(), torch.device(device or sizes.device):
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


def filled(model: Any, name: str, method: Any, seed: int) -> None:
    """Add an adapter whose every value counts."""
    adapter = model.add(name, method, seed=seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if not parameter.any():
                parameter.normal_(std=0.01)


def clock(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ── sides: each returns the time at the end of every step ───────────────────────────────────────────────────────────


def run_halka(base: Any, batches: list[list[Tokens]], sizes: Sizes) -> list[float]:
    from fixed_batches import FixedRun

    items = [item for batch in batches for item in batch]
    numbers = iter(range(len(items)))
    model = halka.adapt(base)
    model.add("a", halka.LoRA(rank=16))
    run = FixedRun(model, "a", items, [], halka.TrainConfig(steps=len(batches), batch_size=len(batches[0])), None)
    run.batches = [[next(numbers) for _ in batch] for batch in batches]
    times = [clock(sizes.device) for _ in loop(model, [run], Observer(), Ranks())]
    model.remove("a")
    return times


def run_trainer(base: Any, batches: list[list[Tokens]], sizes: Sizes, *, liger: bool = False) -> list[float]:
    """transformers' Trainer with peft; the base is given back without peft's layers."""
    import peft

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

    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(batches[0]),
            max_steps=len(batches),
            learning_rate=1e-3,
            bf16=True,
            use_cpu=sizes.dry,
            use_liger_kernel=liger,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=not sizes.dry,
        )
        FixedTrainer(model=model, args=arguments, train_dataset=[{}], callbacks=[Clock()]).train()
    model.unload()
    base.requires_grad_(False).eval()
    return times


def run_liger(base: Any, batches: list[list[Tokens]], sizes: Sizes) -> list[float]:
    return run_trainer(base, batches, sizes, liger=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", choices=[[], *PIECES], metavar="piece")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU, in this process; nothing is written")
    parser.add_argument("--base", default="smollm2-135m", help="SmolLM2's name or folder")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the result files")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        given = json.loads(arguments.worker)
        print(json.dumps(PIECES[given["piece"]](SIZES[False], given["base"])))
        return
    for piece in arguments.pieces or PIECES:
        if arguments.dry:
            print(piece, json.dumps(PIECES[piece](SIZES[True], arguments.base)), flush=True)
            continue
        started = time.perf_counter()
        measured = in_a_process(__file__, {"piece": piece, "base": arguments.base})
        about = {**setup("halka", "torch", "transformers", "peft"), "device": machine.describe(torch.device("cuda"))}
        result = {"piece": piece, "seconds": time.perf_counter() - started, "measured": measured, "setup": about}
        (arguments.out / f"gpu_{piece.replace('-', '_')}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(piece, json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
