"""Decoding 32 rows at once: what adapters cost a step, alone, mixed, and beside peft's mixed batches.

    python benchmarks/decoding.py                  # some ten minutes on two cores
    python benchmarks/decoding.py --rounds 3 --resident 1 32

SmolLM2-135M-Instruct in bf16 with a text of 32 tokens in its cache, 32 rows, LoRA of rank 16 at every linear layer with
random values. The ways are measured in turn, in random order, several rounds of 12 steps; a round's figure is its
median step, a ratio is the median over rounds of a way's tokens per second to the base's in the same round. There are
two bases: with transformers' own attention, which is what people decode with, and with Halka's, which is faster here on
a CPU and which all adapters run with: the second is the harder measure. peft mixes a batch by `adapter_names`.

Then the same batch with 1 to 256 adapters in the model, rows spread over up to 32 of them. The result goes to
benchmarks/results/decoding.json, its plot beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from side_by_side import filled, setup

import halka
from halka.models.attention.function import use_attention
from halka.models.loading import load_base

HERE = Path(__file__).parent
ROWS, TEXT, STEPS = 32, 32, 12
Way = Callable[[], Iterator[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--resident", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    text = torch.randint(100, 40000, (ROWS, TEXT), generator=torch.Generator().manual_seed(0))
    base, tokenizer = load_base("smollm2-135m", device="cpu")
    model = halka.adapt(base, tokenizer)
    for number in range(ROWS):
        filled(model, f"lora{number}", halka.LoRA(rank=16), number)
    for number in range(ROWS // 4):
        filled(model, f"bottleneck{number}", halka.Bottleneck(), number)
        filled(model, f"prefix{number}", halka.Prefix(), number)
        filled(model, f"prompt{number}", halka.Prompt(), number)
    families = ("lora", "bottleneck", "prefix", "prompt")
    ways = {
        "transformers": lambda: decode(base, text),
        "base": lambda: decode_with(model, None, text),
        "one adapter": lambda: decode_with(model, "lora0", text),
        "32 adapters": lambda: decode_with(model, [f"lora{i}" for i in range(ROWS)], text),
        "four families": lambda: decode_with(model, [f"{families[i % 4]}{i // 4}" for i in range(ROWS)], text),
        "peft": peft_ways(text),
    }
    seen = measured(ways, arguments.rounds)
    found = {
        way: {
            "ms_per_step": statistics.median(times),
            "of_base": ratio(seen["base"], times),
            "of_transformers": ratio(seen["transformers"], times),
            "of_peft": ratio(seen["peft"], times),
            "rounds_ms": times,
        }
        for way, times in seen.items()
    }
    for way, each in found.items():
        print(f"{way}: {each['ms_per_step']:.1f} ms a step, {each['of_base']:.2f} of the base's speed, ", end="")
        print(f"{each['of_transformers']:.2f} of transformers', {each['of_peft']:.2f} times peft's")
    del ways["peft"]
    resident = residents(model, text, arguments.resident, arguments.rounds)
    result = {
        "setup": setup("halka", "torch", "transformers", "peft"),
        "rows": ROWS,
        "ways": found,
        "resident": resident,
    }
    target = HERE / "results" / "decoding.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    plot(result, target.with_suffix(".svg"))


def decode(base: Any, text: torch.Tensor, **options: Any) -> Iterator[float]:
    """Seconds of one step after another, greedily, after the text."""
    with torch.inference_mode():
        result = base(input_ids=text, use_cache=True, **options)
        while True:
            token = result.logits[:, -1:].argmax(-1)
            started = time.perf_counter()
            result = base(input_ids=token, past_key_values=result.past_key_values, use_cache=True, **options)
            yield time.perf_counter() - started


def decode_with(model: halka.core.AdaptedModel, names: Any, text: torch.Tensor) -> Iterator[float]:
    with model.use(names), use_attention(model.base):
        yield from decode(model.base, text)


def peft_ways(text: torch.Tensor) -> Way:
    """peft's own mixed batch, on a base of its own."""
    import peft

    base, _ = load_base("smollm2-135m", device="cpu")
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config, adapter_name="0", autocast_adapter_dtype=False)
    for number in range(1, ROWS):
        model.add_adapter(str(number), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    model.eval().to(torch.bfloat16)
    return lambda: decode(model, text, adapter_names=[str(number) for number in range(ROWS)])


def measured(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Each way's milliseconds a step, round by round."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in random.sample([*ways], len(ways)):
            steps = ways[way]()
            times = [next(steps) for _ in range(STEPS)]
            steps.close()
            found[way].append(statistics.median(times[2:]) * 1000)
    return found


def ratio(base: list[float], times: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(base, times, strict=True))


def residents(model: halka.core.AdaptedModel, text: torch.Tensor, counts: list[int], rounds: int) -> list[dict]:
    """The batch's step while ever more adapters are in the model; as many of them as can be are in the batch."""
    found = []
    for count in counts:
        for number in range(ROWS, count):
            if f"lora{number}" not in model.adapters:
                filled(model, f"lora{number}", halka.LoRA(rank=16), number)
        names = [f"lora{row * max(1, count // ROWS) % count}" for row in range(ROWS)]
        given = {"base": None, "mixed": names}
        seen = measured({way: partial(decode_with, model, using, text) for way, using in given.items()}, rounds)
        found.append(
            {
                "resident": count,
                "in_the_batch": len({*names}),
                "ms_per_step": statistics.median(seen["mixed"]),
                "of_base": ratio(seen["base"], seen["mixed"]),
            }
        )
        print(found[-1], flush=True)
    return found


def plot(result: dict[str, Any], target: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    counts = [each["resident"] for each in result["resident"]]
    axes.plot(counts, [each["ms_per_step"] for each in result["resident"]], "o-", label="a batch of 32 rows")
    base = result["ways"]["base"]["ms_per_step"]
    axes.axhline(base, color="grey", linestyle="--", label="the base without adapters")
    axes.set(xscale="log", xlabel="LoRA adapters in the model (rank 16)", ylabel="ms a step", ylim=(0, None))
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
