"""A base in fewer bits beside itself in bf16: bytes, perplexity, and the speed of training and of decoding.

    python benchmarks/quantised.py                 # some ten minutes on two cores
    python benchmarks/quantised.py --rounds 1

SmolLM2-135M-Instruct with a LoRA of rank 16 at every linear layer. Bytes are those of the packed layers, and of all
weights; perplexity is the bare base's on the page of plain prose that comes with Halka; what a process grew by, at most
while it loaded the base and after a pass, is of a process of its own, the pages of the mapped file included. The forms
are timed in turn, in random order, several rounds of 3 training steps (4 × 128 tokens, the fastest counts) and 24
tokens of one row; figures are medians over rounds. The result goes to benchmarks/results/quantised.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from side_by_side import in_a_process, setup

import halka
from halka.core import AdaptedModel
from halka.data.texts import shipped_text
from halka.evaluation.evaluating import perplexity
from halka.models.attention.function import use_attention
from halka.models.loading import load_base
from halka.models.quantised import QuantizedLinear, bytes_of, check_quantize
from halka.util import machine

HERE = Path(__file__).parent
BASE, FORMS = "smollm2-135m", (None, "nf4", "int8")
ROWS, LENGTH, STEPS, TOKENS = 4, 128, 3, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(loading(**json.loads(arguments.worker))))
        return
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    load_base(BASE, device="cpu")  # fetched, if need be, before anything is measured
    grown = {name(form): in_a_process(__file__, {"form": form}) for form in FORMS}
    models = {name(form): opened(form) for form in FORMS}
    layers = {key: packed_bytes(model) for key, model in models.items()}
    plain = next(whole for whole, _ in layers.values() if whole)
    found: dict[str, dict[str, Any]] = {}
    for key, model in models.items():
        kept = layers[key][1] or plain
        found[key] = {
            "layers_bytes": kept,
            "of_bf16": kept / plain,
            "all_bytes": bytes_of(model.base),
            "perplexity": perplexity(model, None, shipped_text("forgetting")),
            **grown[key],
            "training": [],
            "decoding": [],
        }
    for _ in range(arguments.rounds):
        for key in random.sample([*models], len(models)):
            found[key]["training"].append(trained(models[key]))
            found[key]["decoding"].append(decoded(models[key]))
    for each in found.values():
        each["training_tokens_per_second"] = statistics.median(each["training"])
        each["decoding_tokens_per_second"] = statistics.median(each["decoding"])
    result = {"setup": setup("halka", "torch", "transformers", "bitsandbytes"), "forms": found}
    print(json.dumps(found, indent=1))
    (HERE / "results" / "quantised.json").write_text(json.dumps(result, indent=1) + "\n")


def name(form: str | None) -> str:
    return form or "bf16"


def opened(form: str | None) -> AdaptedModel:
    model = halka.adapt(*load_base(BASE, quantize=form, device="cpu"))
    model.add("a", halka.LoRA(rank=16))
    return model


def packed_bytes(model: AdaptedModel) -> tuple[int, int]:
    """The packed layers' weights in bf16, and as they are kept."""
    layers = [each for each in model.base.modules() if isinstance(each, QuantizedLinear)]
    kept = [buffer for each in layers for buffer in each.buffers()]
    return (
        sum(2 * each.in_features * each.out_features for each in layers),
        sum(buffer.numel() * buffer.element_size() for buffer in kept),
    )


def text() -> torch.Tensor:
    return torch.randint(100, 40000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


def trained(model: AdaptedModel) -> float:
    """Tokens per second of the fastest of some training steps."""
    optimizer = torch.optim.AdamW(model.parameters("a"), lr=1e-4)
    base: Any = model.base
    times = []
    with use_attention(base):
        for _ in range(STEPS):
            started = time.perf_counter()
            with model.use("a"):
                base(text(), labels=text(), use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - started)
    return ROWS * LENGTH / min(times)


def decoded(model: AdaptedModel) -> float:
    """Tokens per second of one row."""
    base: Any = model.base
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    with torch.inference_mode(), use_attention(base), model.use("a"):
        started = time.perf_counter()
        base.generate(text()[:1, :32], do_sample=False, **length)
        return TOKENS / (time.perf_counter() - started)


def loading(form: str | None) -> dict[str, int]:
    """What this process grew by: at most while it loaded the base, and after a pass that used all of it."""
    cpu = torch.device("cpu")
    if form is not None:
        check_quantize(form)  # the library itself is no part of it
    before = machine.resident(cpu)
    machine.reset_peak(cpu)
    base, _ = load_base(BASE, quantize=form, device="cpu")
    most = machine.peak(cpu)
    with torch.inference_mode():
        base(text()[:1, :8])
    return {"loading_grew_by": most - before, "grew_by": machine.resident(cpu) - before}


if __name__ == "__main__":
    sys.exit(main())
