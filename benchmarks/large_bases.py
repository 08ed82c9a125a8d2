"""Estimates what tuning bases of 0.1 to 70 billion parameters takes: full, LoRA, and LoRA on NF4 weights.

    python benchmarks/large_bases.py     # some minutes on one core: nothing is trained, no weights are loaded

One row of 2,048 tokens, gradient checkpointing, bf16, an H100 (whose memory need not be large enough: then so many GPUs
share it). The shapes are those of the published configurations; figures are estimates of `halka.estimate`, which nobody
has compared with a GPU. Of GPT-3 175B the trained parameters are counted as in LoRA's paper (arXiv:2106.09685): ranks 1
and 4 on the queries and values of 96 layers that are 12,288 wide.

The result goes to benchmarks/results/large_bases.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from side_by_side import setup
from transformers import LlamaConfig

import halka

RESULT = Path(__file__).parent / "results" / "large_bases.json"
LENGTH, TASKS = 2048, 100
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
BASES: dict[str, tuple[tuple[int, ...], int, bool]] = {  # sizes, the vocabulary, and whether head and embedding are one
    "SmolLM2-135M": ((576, 1536, 30, 9, 3), 49152, True),
    "Llama 3.2 1B": ((2048, 8192, 16, 32, 8), 128256, True),
    "Llama 3.2 3B": ((3072, 8192, 28, 24, 8), 128256, True),
    "Llama 3.1 8B": ((4096, 14336, 32, 32, 8), 128256, False),
    "Llama 3.1 70B": ((8192, 28672, 80, 64, 8), 128256, False),
}
GPT3: dict[str, Any] = {"layers": 96, "width": 12288, "matrices": 2, "total": 175e9, "ranks": (1, 4)}


def gpt3() -> list[dict[str, Any]]:
    """By rank, how many parameters LoRA has on GPT-3, and what share that is."""
    of_rank_one = GPT3["layers"] * GPT3["matrices"] * 2 * GPT3["width"]
    trained = {rank: rank * of_rank_one for rank in GPT3["ranks"]}
    return [{"rank": rank, "trained": count, "share": count / GPT3["total"]} for rank, count in trained.items()]


def main() -> None:
    rows = []
    for name, (sizes, vocabulary, tied) in BASES.items():
        shape = dict(zip(SIZES, sizes, strict=True))
        config = LlamaConfig(**shape, vocab_size=vocabulary, max_position_embeddings=LENGTH, tie_word_embeddings=tied)
        for quantize, methods in ((None, ["full", halka.LoRA(rank=16)]), ("nf4", [halka.LoRA(rank=16)])):
            how: dict[str, Any] = {"batch_size": 1, "length": LENGTH, "checkpointing": True, "quantize": quantize}
            estimate = halka.estimate(config, methods, device="h100", tasks=TASKS, **how)
            for row in estimate.rows:
                assert row.memory is not None
                subject = {"base": name, "parameters": estimate.parameters, "method": row.method, "quantize": quantize}
                costs = {"trained": row.trained, "memory": row.memory.total, "seconds": row.seconds}
                rows.append(subject | costs | {"stored": row.stored, "served": row.served})
                print(rows[-1], flush=True)
    about = {"setup": setup("halka", "torch", "transformers"), "length": LENGTH, "tasks": TASKS, "gpt3": gpt3()}
    RESULT.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
