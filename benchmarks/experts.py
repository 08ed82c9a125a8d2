"""LoRA on a mixture's experts: grouped products, one expert and row at a time, and peft's `target_parameters`.

    python benchmarks/experts.py             # some minutes on one core

The base is a random mixture of experts of Qwen3-MoE's form (SIZES), in bf16 on one thread; the LoRAs have rank 16, on
both weights of all experts. In turns and told as medians of the process's CPU time: a training step (forward,
backward), a forward pass over the same tokens, and eight tokens decoded in each row; with one adapter for all rows, and
with one a row, which peft refuses. Every run has other tokens, as training has: experts' shares of them differ.
The result goes to benchmarks/results/experts.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
from side_by_side import setup
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import halka
from halka.core import AdaptedModel
from halka.models import experts

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 384,
}
RANK, ROWS, LENGTH = 16, 4, 128
MIXED = ("a", "b", "c", None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, dict[str, list[float]]] = {}
    ways = [*halkas(), *pefts()]
    for turn in range(arguments.runs + 1):
        torch.manual_seed(turn)
        tokens = torch.randint(3, SIZES["vocab_size"], (ROWS, LENGTH))
        for way, what, run in ways:
            began = time.process_time()
            run(tokens)
            if turn:  # the first warms up
                times.setdefault(way, {}).setdefault(what, []).append(1000 * (time.process_time() - began))
    result = {
        "setup": setup("halka", "torch", "transformers", "peft"),
        "base": SIZES,
        "rank": RANK,
        "rows": ROWS,
        "length": LENGTH,
        "runs": arguments.runs,
        "ms": {
            way: {what: round(statistics.median(each), 1) for what, each in of.items()} for way, of in times.items()
        },
    }
    (HERE / "results" / "experts.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ms"], indent=1))


Way = tuple[str, str, Callable[[torch.Tensor], None]]


def base() -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES)).bfloat16().eval()


def halkas() -> list[Way]:
    model = halka.adapt(base())
    for name in ("a", "b", "c"):
        disturb(model.add(name, halka.LoRA(rank=RANK, targets=("experts",))).parameters())
    ways: list[Way] = [("bare base", what, run) for what, run in passes(model, None)]
    for product, way in ((experts.product, "grouped"), (experts.one_by_one, "one at a time")):
        ways += [(way, what, computing(product, run)) for what, run in [training(model), *passes(model, "a")]]
        ways += [(f"{way}, an adapter a row", what, computing(product, run)) for what, run in passes(model, MIXED)]
    return ways


def computing(product: Callable[..., Any], run: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
    """The run with experts' products computed so."""

    def compute(tokens: torch.Tensor) -> None:
        with mock.patch.object(experts, "product", product):
            run(tokens)

    return compute


def training(model: AdaptedModel) -> tuple[str, Callable[[torch.Tensor], None]]:
    def step(tokens: torch.Tensor) -> None:
        with model.use("a"):
            model.base(tokens, labels=tokens, use_cache=False).loss.backward()
        for parameter in model.parameters("a"):
            parameter.grad = None

    return "training step", step


def passes(model: AdaptedModel, names: Any) -> list[tuple[str, Callable[[torch.Tensor], None]]]:
    @torch.no_grad()
    def forward(tokens: torch.Tensor) -> None:
        with model.use(names):
            model.base(tokens, use_cache=False)

    @torch.no_grad()
    def decode(tokens: torch.Tensor) -> None:
        with model.use(names):
            model.base.generate(tokens[:, :2], max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)

    return [("forward", forward), ("8 tokens a row", decode)]


def pefts() -> list[Way]:
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=[],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base(), config)
    disturb([parameter for parameter in model.parameters() if parameter.requires_grad])

    def step(tokens: torch.Tensor) -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        model.zero_grad()

    @torch.no_grad()
    def forward(tokens: torch.Tensor) -> None:
        model(input_ids=tokens, use_cache=False)

    @torch.no_grad()
    def decode(tokens: torch.Tensor) -> None:
        model.generate(input_ids=tokens[:, :2], max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)

    return [("peft", "training step", step), ("peft", "forward", forward), ("peft", "8 tokens a row", decode)]


def disturb(parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.01)


if __name__ == "__main__":
    main()
