"""What is estimated of a run's memory and time, beside what is measured.

    nice python benchmarks/estimator.py                 # memory, a quarter of an hour on one core
    nice python benchmarks/estimator.py --predict       # the same measurements, estimated anew
    python benchmarks/estimator.py --time               # a step's time too: on a machine that does nothing else
    python benchmarks/estimator.py --predict --time     # the peaks that are known, and times

Each case is a process of its own: it imports everything, trains a model of two layers for two steps, so that what
kernels and libraries need once is there, and notes what it holds; then it loads a base with random weights (SmolLM2:
its own) from a file, reads them all, and trains it for two steps. Their peak beyond that is compared with the estimate,
to which two numbers are fitted, on these cases: how long small objects live on the heap (`allocator.LIFE`), and what a
step holds beside its tensors (`hardware.KERNELS`). For its time it trains for five steps in one more process, where the
machine is measured right before and after; the median of all steps but the first is compared with the mean of both
estimates.
The published figures are of other software on a GPU, with the settings that it names; they stand beside estimates for
ours.

The result goes to benchmarks/results/estimator.json, its plot beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from side_by_side import in_a_process, setup
from transformers import AutoConfig, LlamaConfig

import halka
from halka.estimating.dry_runs import Setup, dry_run, model_of, training_items
from halka.estimating.hardware import KERNELS
from halka.estimating.measured_device import measure_device
from halka.methods import build_method
from halka.models.kinds import KINDS as KIND_CLASSES
from halka.models.loading import base_config, release_file_pages
from halka.models.quantised import quantise
from halka.training import TrainConfig, train
from halka.util import machine

RESULT = Path(__file__).parent / "results" / "estimator.json"
STEPS, TIMED = 2, 5
WITHIN = 0.25  # of a step's measured time
MEASURED = (
    "before",
    "beyond",
    "how",
    "seconds",
    "estimated_seconds",
    "estimated",
    "off",
)  # what of a case is no setting
SMALL = {"vocab_size": 16384, "hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6}
SMALL |= {"intermediate_size": 1024, "max_position_embeddings": 1024, "pad_token_id": 0}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 64}
BASES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> transformers' name of the architecture, its sizes
    "llama": ("llama", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "hidden_size": 512, "num_hidden_layers": 6}),
    "gemma2": ("gemma2", {**GROUPED, "query_pre_attn_scalar": 64, "sliding_window": 256}),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": 16384,
            "n_embd": 384,
            "n_layer": 8,
            "n_head": 6,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 4}),
    "bert": ("bert", {**SMALL, "intermediate_size": 1536}),
    "t5": (
        "t5",
        {
            "vocab_size": 16384,
            "d_model": 384,
            "d_kv": 64,
            "d_ff": 1024,
            "num_layers": 4,
            "num_heads": 6,
            "decoder_start_token_id": 0,
        },
    ),
}
KINDS = {"bert": "sequence-classification", "t5": "seq2seq-lm"}
METHODS = ("lora", "dora", "ia3", "bitfit", "bottleneck", "prefix", "prompt", "llama_adapter", "full")
SIZES = ((4, 64), (1, 256), (4, 256), (16, 64), (1, 512), (16, 128), (4, 512))
UNLIKE = {("mixtral", "ia3")}  # its default targets are not there


def cases() -> list[dict[str, Any]]:
    """Every method on every base, sizes, precision and checkpointing in turn; SmolLM2 with the smaller sizes."""
    found = []
    turns = itertools.cycle(itertools.product(("bfloat16", "float32"), (False, True)))
    for number, (base, method) in enumerate(itertools.product((*BASES, "smollm2-135m"), METHODS)):
        if (base, method) in UNLIKE:
            continue
        rows, length = SIZES[number % (3 if base == "smollm2-135m" else len(SIZES))]
        dtype, checkpointing = next(turns)
        found.append(case(base, method, rows, length, dtype, checkpointing))
    found.append(case("llama", "lora", 16, 512, "bfloat16", False))
    found.append(case("llama", "full", 16, 512, "bfloat16", True))
    found.append(case("llama", "lora", 4, 256, "bfloat16", False) | {"quantize": "int8"})
    found.append(case("llama", "lora", 4, 256, "bfloat16", False) | {"quantize": "nf4"})
    found.append(case("llama", "lora", 4, 256, "bfloat16", False) | {"accumulate": 2})
    return found


def case(base: str, method: str, rows: int, length: int, dtype: str, checkpointing: bool) -> dict[str, Any]:
    kind = KINDS.get(base, "causal-lm")
    how = Setup(rows, length, dtype=dtype, checkpointing=checkpointing, kind=kind)
    return {"base": base, "method": method, **asdict(how)}


def config_of(base: str) -> Any:
    if base in BASES:
        architecture, sizes = BASES[base]
        return AutoConfig.for_model(architecture, **sizes)
    return base_config(base)


def setup_of(given: dict[str, Any]) -> Setup:
    return Setup(**{key: value for key, value in given.items() if key not in ("base", "method", "folder")})


# ── a process of its own ────────────────────────────────────────────────────────────────────────────────────────────


def measured(given: dict[str, Any]) -> dict[str, Any]:
    """The peak of a run, beyond what the process held before there was a base."""
    torch.set_num_threads(1)
    cpu, how = torch.device("cpu"), setup_of(given)
    folder = Path(given["folder"])
    run(str(folder / f"{given['base']}-tiny-{how.dtype}"), given["method"], replace(how, rows=2, length=16))
    before = machine.resident(cpu)
    run(_source(given, folder), given["method"], how)
    return {"before": before, "beyond": machine.peak(cpu) - before}


def timed(given: dict[str, Any]) -> dict[str, Any]:
    """The time of a step after the first, and the estimates of it by what the machine does before and after."""
    torch.set_num_threads(1)
    how, config = setup_of(given), config_of(given["base"])
    work = dry_run(config, build_method(given["method"], {}), how).work

    def estimate() -> float:
        return measure_device(how.dtype).seconds(work, how.dtype)

    before = estimate()
    seconds = run(_source(given, Path(given["folder"])), given["method"], how, TIMED)[1:]
    return {"seconds": statistics.median(seconds), "estimated_seconds": (before + estimate()) / 2}


def _source(given: dict[str, Any], folder: Path) -> str:
    return str(folder / f"{given['base']}-{given['dtype']}") if given["base"] in BASES else given["base"]


def run(base: str, method: str, how: Setup, steps: int = STEPS) -> list[float]:
    """Seconds of each step on the base of that name or folder."""
    if Path(base).is_dir():
        loaded: Any = getattr(transformers, KIND_CLASSES[how.kind]).from_pretrained(
            base, dtype=getattr(torch, how.dtype), use_kernels=False
        )
        release_file_pages(loaded, Path(base))
        if how.quantize is not None:
            quantise(loaded, how.quantize)
    else:
        loaded, _ = halka.load_base(base, dtype=how.dtype, quantize=how.quantize, device="cpu")
    model = halka.adapt(loaded)
    with torch.no_grad():
        for each in (*model.base.parameters(), *model.base.buffers()):
            each.flatten()[::512].clone()  # read, page by page, from the file into memory
    model.add("a", build_method(method, {}))
    limits = TrainConfig(
        batch_size=how.rows,
        batches="padded",  # as the estimate's: these items share all that they have
        accumulate=how.accumulate,
        steps=steps,
        checkpointing=how.checkpointing,
        save_every=None,
    )
    seconds, done = [], 0.0
    machine.reset_peak(torch.device("cpu"))  # loading is over
    for step in train(model, "a", training_items(model, how) * how.accumulate, limits):
        seconds.append(step.seconds - done)
        done = step.seconds
    return seconds


def save(folder: Path) -> None:
    """All bases with random weights, and tiny ones of their kinds: in a process that no run is in."""
    for base in (*BASES, "smollm2-135m"):
        config, kind = config_of(base), KINDS.get(base, "causal-lm")
        changes = {"num_hidden_layers": 2, "vocab_size": 128, "layer_types": None, "bos_token_id": 1, "eos_token_id": 2}
        tiny = type(config).from_dict({**config.to_dict(), **changes})
        for dtype in ("bfloat16", "float32"):
            for name, each in ((f"{base}-tiny", tiny), *(((base, config),) if base in BASES else ())):
                made_of: Any = model_of(each, Setup(kind=kind, dtype=dtype)).base
                made_of.save_pretrained(folder / f"{name}-{dtype}")


# ── beside the estimate ─────────────────────────────────────────────────────────────────────────────────────────────


def estimated(given: dict[str, Any]) -> dict[str, Any]:
    config, method = config_of(given["base"]), build_method(given["method"], {})
    found = dry_run(config, method, setup_of(given))
    return {**asdict(found.memory), "total": found.memory.total}


def compared(each: dict[str, Any]) -> float:
    """What was estimated, with what a step holds beside its tensors, of what was measured, beyond 1."""
    return (each["estimated"]["total"] + KERNELS) / each["beyond"] - 1


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    def off(values: list[float]) -> dict[str, Any]:
        return {
            "cases": len(values),
            "median": statistics.median(map(abs, values)),
            "worst": max(values, key=abs),
            "mean": statistics.mean(values),
        }

    def of(some: list[dict[str, Any]]) -> dict[str, Any]:
        times = [each["estimated_seconds"] / each["seconds"] - 1 for each in some if "seconds" in each]
        within = {"within": sum(abs(each) <= WITHIN for each in times)}
        return off([compared(each) for each in some]) | ({"time": off(times) | within} if times else {})

    by = {}
    for key in ("method", "base", "dtype", "checkpointing"):
        values = dict.fromkeys(str(each[key]) for each in found)
        by[key] = {value: of([each for each in found if str(each[key]) == value]) for value in values}
    before = [each["before"] for each in found if "before" in each]
    return {
        "all": of(found),
        "by": by,
        "before": {"median": statistics.median(before), "least": min(before), "most": max(before)},
    }


# ── published figures ───────────────────────────────────────────────────────────────────────────────────────────────

QWEN = {  # Qwen-7B: 32 layers, an embedding and a head of 151,936 tokens, 7.72 B parameters
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
LLAMA_7B = {**QWEN, "vocab_size": 32000}
LLAMA_65B = {
    **{**LLAMA_7B, "hidden_size": 8192, "intermediate_size": 22016},
    **{"num_hidden_layers": 80, "num_attention_heads": 64},
}
QWEN_README = "Qwen's README, one A100, one row, gradient checkpointing, LoRA of rank 64 (int4: GPTQ)"
FACTORY = "LLaMA-Factory's README, itself an estimate"
QLORA = "QLoRA, arXiv:2305.14314"
R64 = ("lora", {"rank": 64})


def published() -> list[dict[str, Any]]:
    """Name, base, method, quantisation, rows and length; what was published, in GB, and by whom."""
    rows: list[tuple[Any, ...]] = [
        ("7B LoRA, 1 × 256", QWEN, R64, None, 256, "20.1 G", QWEN_README),
        ("7B LoRA, 1 × 1024", QWEN, R64, None, 1024, "21.5 G", QWEN_README),
        ("7B LoRA, 1 × 4096", QWEN, R64, None, 4096, "29.7 G", QWEN_README),
        ("7B QLoRA, 1 × 256", QWEN, R64, "nf4", 256, "11.5 G", QWEN_README),
        ("7B QLoRA, 1 × 4096", QWEN, R64, "nf4", 4096, "16.9 G", QWEN_README),
        ("7B LoRA", LLAMA_7B, ("lora", {}), None, 512, "16 GB", FACTORY),
        ("7B QLoRA, 4 bits", LLAMA_7B, ("lora", {}), "nf4", 512, "6 GB", FACTORY),
        ("7B full, mixed precision", LLAMA_7B, ("full", {}), None, 512, "120 GB", FACTORY),
        ("65B QLoRA, 4 bits", LLAMA_65B, R64, "nf4", 512, "< 48 GB", QLORA),
        ("65B full", LLAMA_65B, ("full", {}), None, 512, "> 780 GB", QLORA),
    ]
    found = []
    for name, sizes, (method, fields), quantize, length, said, source in rows:
        how = Setup(1, length, checkpointing=True, quantize=quantize)
        here = dry_run(LlamaConfig(**sizes), build_method(method, fields), how, gpu=True)
        found.append({"case": name, "published": said, "source": source, "estimated": here.memory.total})
        print(found[-1], flush=True)
    return found


# ── the whole ───────────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker")
    parser.add_argument("--save")
    parser.add_argument("--predict", action="store_true", help="keep the measurements, estimate anew")
    parser.add_argument("--only", help="cases whose base or method this is; nothing is written")
    parser.add_argument("--time", action="store_true", help="compare a step's time too")
    parser.add_argument("--published", action="store_true", help="the published figures alone")
    arguments = parser.parse_args()
    if arguments.save:
        return save(Path(arguments.save))
    if arguments.worker:
        given = json.loads(arguments.worker)
        print(json.dumps(timed(given) if given.pop("timed") else measured(given)))
        return
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if arguments.published:
        RESULT.write_text(json.dumps({**known, "published": published()}, indent=1) + "\n")
        return
    found, folder = [], tempfile.TemporaryDirectory()
    if arguments.time or not arguments.predict:
        subprocess.run([sys.executable, __file__, "--save", folder.name], check=True)
    for given in known["cases"] if arguments.predict else cases():
        if arguments.only and arguments.only not in (given["base"], given["method"]):
            continue
        started = time.perf_counter()
        own = {key: given[key] for key in given if key not in MEASURED}
        real = (
            {key: given[key] for key in MEASURED[:5] if key in given}
            if arguments.predict
            else in_a_process(__file__, {**own, "folder": folder.name, "timed": False})
        )
        if arguments.time:
            real |= in_a_process(__file__, {**own, "folder": folder.name, "timed": True})
        each = {**own, "estimated": estimated(own), **real}
        found.append({**each, "off": compared(each)})
        print(f"{own['base']:13} {own['method']:13} {own['rows']:2} x {own['length']:3} {own['dtype']:8} ", end="")
        print(f"{'ck' if own['checkpointing'] else '  '} {each['beyond'] / 1e6:7.0f} MB", end=" ")
        if "seconds" in each:
            print(f"{each['seconds']:.3f} s, estimated {each['estimated_seconds']:.3f} s", end=" ")
        print(f"{100 * found[-1]['off']:+5.1f} %  {time.perf_counter() - started:.0f} s", flush=True)
    told = summary(found)
    print(json.dumps(told, indent=1))
    if arguments.only:
        return
    now = setup("halka", "torch", "transformers")
    about = {**(known["setup"] if arguments.predict else now), "estimated_at": now["commit"]}
    result = {"setup": about, "summary": told, "published": known.get("published", []), "cases": found}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    plot(result, RESULT.with_suffix(".svg"))


def plot(result: dict[str, Any], target: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4.4), layout="constrained")
    for method in METHODS:
        own = [each for each in result["cases"] if each["method"] == method]
        real = [each["beyond"] / 1e6 for each in own]
        axes.plot(real, [(each["estimated"]["total"] + KERNELS) / 1e6 for each in own], "o", markersize=4, label=method)
    ends = [20, 6000]
    axes.plot(ends, ends, color="grey", linewidth=1)
    axes.fill_between(ends, [0.9 * x for x in ends], [1.1 * x for x in ends], color="grey", alpha=0.2, label="± 10 %")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set(xlabel="measured peak, beyond the process (MB)", ylabel="estimated (MB)")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
