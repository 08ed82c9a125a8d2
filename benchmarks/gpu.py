"""What one GPU measures in fifty minutes, in pieces of under ten, each a process and a result file of its own.

    python benchmarks/gpu.py                                  # all pieces, on the first GPU
    python benchmarks/gpu.py training-8b decoding             # some
    python benchmarks/gpu.py --dry                            # all pieces with tiny shapes on a CPU: do they run?
    python benchmarks/gpu.py --split PARTS                    # SmolLM2 in parts, for a machine that is offline
    python benchmarks/gpu.py losses --weights PARTS           # there, with the parts beside it

It runs offline with what is on the machine. Bases of the shapes of Llama 1B and 8B have random weights and are made
there; `losses` takes SmolLM2's, from the cache, from `--base FOLDER`, or joined from `--weights PARTS`.

    losses           five steps of LoRA on SmolLM2: losses on the CPU beside those on the GPU, fp32 and bf16
    training-1b      LoRA of rank 16 in bf16, 8 × 1024 tokens, beside peft with transformers' Trainer, and beside both
                     with Liger's kernels where liger-kernel is installed: full rows, ragged rows, a shared instruction
    training-8b      the same on the 8B shape, and 2 × 4096; every side recomputes activations
    training-8b-nf4, training-8b-int8   Halka alone, on a quantised base
    decoding         1, 8 and 32 rows of the 1B shape by the engine: the base, one adapter, an adapter a row, families
    decoding-nf4, decoding-int8   the same on a quantised base, beside the base in bf16
    estimator        peaks of training beside what `halka estimate` says before

Speeds are useful tokens a second (padding is none, shared tokens count in every row) of all batches together and of the
median step. The same batches were trained before, untimed: every kernel that they need is compiled by then. The GPU's
work is waited for before a clock is read. The result goes to benchmarks/results/gpu_PIECE.json, after each side
and workload: what a piece had measured before it ended is kept, and "out of memory" is a result. A piece that fails
has its error there, and the next one begins.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_sides import SIZES, Sizes, Tokenizer, clock, random_base, rows_of, run_halka, run_liger, run_trainer
from side_by_side import filled, setup

import halka
from halka.models.loading import resolve
from halka.models.quantised import quantise
from halka.util import machine
from halka.util.files import write_text

RESULTS = Path(__file__).parent / "results"
SECONDS = 600  # that a piece has
PART = 60 * 10**6  # bytes of a part of a base's files, at most


# ── what is measured: each yields what it has so far ────────────────────────────────────────────────────────────────


def losses(sizes: Sizes, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Of five steps, on the CPU and on the device."""
    result = {}
    with joined(options.weights) if options.weights else nullcontext(options.base) as base:
        for dtype in ("float32", "bfloat16"):
            by_side = {}
            for side, device in {"cpu": "cpu", "gpu": str(sizes.device)}.items():
                if sizes.dry and not options.weights:
                    loaded = random_base("tiny", sizes).to(getattr(torch, dtype))
                else:
                    loaded, _ = halka.load_base(base, dtype=dtype, device=device)
                model = halka.adapt(loaded)
                model.add("a", halka.LoRA(rank=16))
                items = rows_of("ragged", 20, sizes, vocabulary=90)
                config = halka.TrainConfig(lr=1e-3, steps=5, batch_size=4)
                by_side[side] = [step.loss for step in halka.train(model, "a", items, config)]
            pairs = zip(by_side["cpu"], by_side["gpu"], strict=True)
            result[dtype] = {**by_side, "difference": max(abs(one / other - 1) for one, other in pairs)}
            yield result


def training(
    sizes: Sizes, shape: str, quantize: str | None = None, sides: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Useful tokens a second and the peak of each side on each workload."""
    base = random_base(shape, sizes)
    if quantize is not None:
        quantise(base, quantize)
    loads: dict[str, tuple[int, int]] = dict.fromkeys(("full", "ragged", "shared"), (sizes.rows, sizes.length))
    if shape == "8b":
        loads["full 2 × 4096"] = (2, 4 * sizes.length)
    result: dict[str, Any] = {name: {} for name in loads}
    for side, run in (sides_for(sizes, quantize) if sides is None else sides).items():
        for name, (rows, length) in loads.items():
            items = rows_of(name.split()[0], rows * sizes.steps, replace(sizes, length=length))
            batches = [items[start : start + rows] for start in range(0, len(items), rows)]
            result[name][side] = unless_full(partial(speed_of, run, base, batches, sizes, shape))
            speeds = {side: it.get("tokens_per_second") for side, it in result[name].items() if side != "halka_to"}
            own = speeds.pop("halka", None)
            result[name]["halka_to"] = {side: own / speed for side, speed in speeds.items() if own and speed}
            yield result


def sides_for(sizes: Sizes, quantize: str | None) -> dict[str, Any]:
    sides = {"halka": run_halka}
    if quantize is None:
        sides["peft with Trainer"] = run_trainer
        if find_spec("liger_kernel") and not sizes.dry:
            sides["peft with Trainer and Liger"] = run_liger  # the last: its kernels stay in the base
    return sides


def speed_of(run: Any, base: Any, batches: list[list[Any]], sizes: Sizes, shape: str) -> dict[str, Any]:
    """Of the second of two rounds of the batches: in the first whatever they need is compiled."""
    machine.reset_peak(sizes.device)
    times = run(base, [*batches, *batches], sizes, checkpointing=shape == "8b")[len(batches) - 1 :]
    tokens = [sum(len(item) for item in batch) for batch in batches]
    speeds = [count / (end - start) for count, (start, end) in zip(tokens, pairwise(times), strict=True)]
    return {
        "tokens_per_second": sum(tokens) / (times[-1] - times[0]),
        "tokens_per_second_of_the_median_step": median(speeds),
        "peak": machine.peak(sizes.device),
    }


def decoding(sizes: Sizes, quantize: str | None = None) -> Iterator[dict[str, Any]]:
    """Tokens a second of the engine by rows and adapters, as shares of the base's; of a quantised one, of bf16's."""
    base, methods = random_base("1b", sizes), {"lora": halka.LoRA(rank=16), "bottleneck": halka.Bottleneck()}
    methods["prefix"] = halka.Prefix(length=8)
    in_bf16: dict[int, float] = {}
    if quantize is not None:
        bare = halka.adapt(base, Tokenizer())
        in_bf16 = {rows: decoded(bare, [None] * rows, sizes) for rows in sizes.decoded}
        quantise(base, quantize)
    model = halka.adapt(base, Tokenizer())
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
        if in_bf16:
            result[str(rows)]["base"]["of_bf16"] = speeds["base"] / in_bf16[rows]
        yield result


def decoded(model: Any, names: Sequence[str | None], sizes: Sizes) -> float:
    """Tokens a second of these rows once their prompts are read, after a round for what is compiled and packed."""
    prompt = [5 + place % 80 for place in range(sizes.length // 16)]
    requests = [halka.Request(prompt, name, stopping=halka.Stopping(sizes.new_tokens)) for name in names]
    speed = 0.0
    with halka.Engine(model, rows=len(names), ends=frozenset()) as engine:
        for _ in range(2):
            answers = [answer for request in requests for answer in engine.submit(request)]
            while not all(answer.tokens for answer in answers):
                engine.step()
            before, started = sum(len(answer.tokens) for answer in answers), clock(sizes.device)
            while engine.step():
                pass
            speed = (sum(len(answer.tokens) for answer in answers) - before) / (clock(sizes.device) - started)
    return speed


def estimator(sizes: Sizes) -> Iterator[list[dict[str, Any]]]:
    """Peaks of two steps, of tensors and of what the allocator holds, beside the dry run's."""
    cases = []
    for method in (halka.LoRA(rank=16), halka.Bottleneck(), halka.Prefix(), halka.Prompt()):
        for checkpointing in (False, True)[: 1 if sizes.dry else 2]:
            for rows in (1, sizes.rows)[: 1 if sizes.dry else 2]:
                case = {"method": method.name, "rows": rows, "length": sizes.length, "checkpointing": checkpointing}
                cases.append({**case, **unless_full(partial(peaks, method, rows, checkpointing, sizes))})
                yield cases


def peaks(method: Any, rows: int, checkpointing: bool, sizes: Sizes) -> dict[str, Any]:
    from halka.estimating.dry_runs import Setup, dry_run, training_items

    how = Setup(rows=rows, length=sizes.length, checkpointing=checkpointing)
    before, reserved = held_before(sizes.device)
    base = random_base("1b", sizes)
    expected = dry_run(base.config, method, how, gpu=True).memory
    model = halka.adapt(base)
    model.add("a", method)
    config = halka.TrainConfig(batch_size=rows, steps=2, checkpointing=checkpointing, batches="padded", save_every=None)
    for _ in halka.train(model, "a", training_items(model, how), config):
        pass
    held = None if sizes.dry else torch.cuda.max_memory_reserved() - reserved
    return {
        "estimated": {"tensors": expected.total - expected.allocator, "held": expected.total},
        "measured": {"tensors": machine.peak(sizes.device) - before, "held": held},
    }


def held_before(device: torch.device) -> tuple[int, int]:
    """Count peaks from now on, when there are cuBLAS' workspaces; returns bytes of tensors, and of the allocator."""
    x = torch.ones(64, 64, device=device, requires_grad=True)
    (x @ x).sum().backward()
    del x
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    machine.reset_peak(device)
    return machine.held(device), torch.cuda.memory_reserved() if device.type == "cuda" else 0


def unless_full(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured, or that memory ran out, whose contents are let go of."""
    try:
        return measure()
    except (RuntimeError, halka.OutOfMemoryError) as error:
        if not isinstance(error, halka.OutOfMemoryError) and not machine.ran_out(error):
            raise
        result = {"out of memory": str(error).partition("\n")[0]}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


PIECES: dict[str, Callable[[Sizes, argparse.Namespace], Iterator[Any]]] = {
    "losses": losses,
    "training-1b": lambda sizes, _: training(sizes, "1b"),
    "training-8b": lambda sizes, _: training(sizes, "8b"),
    "training-8b-nf4": lambda sizes, _: training(sizes, "8b", "nf4"),
    "training-8b-int8": lambda sizes, _: training(sizes, "8b", "int8"),
    "decoding": lambda sizes, _: decoding(sizes),
    "decoding-nf4": lambda sizes, _: decoding(sizes, "nf4"),
    "decoding-int8": lambda sizes, _: decoding(sizes, "int8"),
    "estimator": lambda sizes, _: estimator(sizes),
}


# ── a base's files in parts ─────────────────────────────────────────────────────────────────────────────────────────


def split(folder: Path, to: Path, size: int = PART) -> None:
    """Write a base's folder into another as `base.tar.000`, `base.tar.001` … of at most `size` bytes, and a hash."""
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for file in sorted(file for file in folder.iterdir() if file.is_file()):
                tar.add(file, file.name)
        whole.seek(0)
        digest = hashlib.sha256()
        for number, part in enumerate(iter(lambda: whole.read(size), b"")):
            (to / f"base.tar.{number:03}").write_bytes(part)
            digest.update(part)
    (to / "base.tar.sha256").write_text(digest.hexdigest() + "\n")


@contextmanager
def joined(parts: Path) -> Iterator[Path]:
    """A folder, for as long as the block, with the files that `split` wrote. Raises HalkaError where a part lacks."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as whole:
        for part in sorted(parts.glob("base.tar.[0-9]*")):
            data = part.read_bytes()
            digest.update(data)
            whole.write(data)
        hashed = parts / "base.tar.sha256"
        if not hashed.exists() or hashed.read_text().strip() != digest.hexdigest():
            raise halka.HalkaError(
                f"{parts} has not all parts of a base as `gpu.py --split` wrote them: copy them anew"
            )
        whole.seek(0)
        with tarfile.open(fileobj=whole) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder)


# ── pieces, a process each ──────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: Sequence[str] | None = None, start: Callable[[list[str]], str] | None = None) -> int:
    """Measure the pieces, each in a process that `start` starts; returns how many of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", choices=[[], *PIECES], metavar="piece")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU; without --out nothing is kept")
    parser.add_argument("--gpu", help="the GPU's number, if not the first")
    parser.add_argument("--base", default="smollm2-135m", help="SmolLM2's name or folder")
    parser.add_argument("--weights", type=Path, help="the folder of SmolLM2's parts")
    parser.add_argument("--split", type=Path, help="write the base's parts into this folder, and measure nothing")
    parser.add_argument("--out", type=Path, help="the folder of the result files; by default benchmarks/results")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.split is not None:
        split(resolve(options.base, None, fetch=True), options.split)
        return 0
    if options.worker:
        [piece] = options.pieces
        work(piece, options)
        return 0
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = options.gpu or first  # of more than one, transformers' Trainer takes all
    failed = 0
    with tempfile.TemporaryDirectory() as unkept:
        out = options.out or (Path(unkept) if options.dry else RESULTS)
        for piece in options.pieces or PIECES:
            file = file_of(piece, out)
            file.unlink(missing_ok=True)
            own = ["--weights", str(options.weights)] if options.weights else ["--base", options.base]
            dry = ["--dry"] if options.dry else []
            error = (start or in_a_process)([piece, "--worker", "--out", str(out), *own, *dry])
            result = json.loads(file.read_text()) if file.exists() else {"piece": piece, "measured": None}
            if error:
                failed += 1
                result = {**result, "whole": False, "error": error}
                write_text(file, json.dumps(result, indent=1) + "\n")
            print(piece, error or json.dumps(result["measured"]), flush=True)
    return failed


def in_a_process(arguments: list[str]) -> str:
    """Run this script with these arguments; returns the end of what it says is wrong, "" if nothing is."""
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"it took more than {SECONDS} seconds"
    return "" if done.returncode == 0 else done.stderr[-2000:] or f"it ended with {done.returncode}"


def work(piece: str, options: argparse.Namespace) -> None:
    """Measure one piece in this process. Its file is written whenever there is more in it."""
    sizes, started = SIZES[options.dry], time.perf_counter()
    about = {**setup("torch", "transformers", "peft"), "device": machine.describe(sizes.device)}

    def write(measured: Any, *, whole: bool) -> None:
        seconds = time.perf_counter() - started
        result = {"piece": piece, "whole": whole, "seconds": seconds, "measured": measured, "setup": about}
        write_text(file_of(piece, options.out), json.dumps(result, indent=1) + "\n")

    measured = None
    for measured in PIECES[piece](sizes, options):
        write(measured, whole=False)
    write(measured, whole=True)


def file_of(piece: str, folder: Path) -> Path:
    return folder / f"gpu_{piece.replace('-', '_')}.json"


if __name__ == "__main__":
    sys.exit(min(1, main()))
