"""Do rows of a mixed batch answer as each would alone? Greedy, token for token, on prompts of a real task.

    python benchmarks/mixed_answers.py             # some minutes

Six adapters of SmolLM2-135M-Instruct, one of every family and two ranks of LoRA, are trained together on snips_nlu for
a few steps. Then 140 of its test commands are answered, 24 tokens each, in mixed batches of 35 (a seventh of the rows
on the bare base), and one by one. In fp32 the answers must be the same. In bf16 a batch's products are summed in
another order than one row's, whatever the adapters, and a near-tie may fall the other way: each first difference is
listed with the two tokens' gap in fp32, beside the gaps that tokens usually have; the bare base alone, in batches
against one by one, shows how often bf16 does that without any adapter. The result goes to
benchmarks/results/mixed_answers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from side_by_side import setup

import halka
from halka.data.batches import collate
from halka.data.task import limit, load_task
from halka.data.tokens import Tokens, encode_all, encode_prompt
from halka.models.attention.function import use_attention
from halka.models.loading import load_base

HERE = Path(__file__).parent
METHODS = {
    "lora-8": halka.LoRA(rank=8),
    "lora-16": halka.LoRA(rank=16),
    "bottleneck": halka.Bottleneck(),
    "prefix": halka.Prefix(),
    "prompt": halka.Prompt(),
    "ia3": halka.IA3(),
}
NEW = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=140)
    arguments = parser.parse_args()
    task = limit(load_task(HERE / "tasks" / "snips_nlu.py"), train=400, test=arguments.prompts)
    model = halka.adapt(*load_base("smollm2-135m", device="cpu"))
    items = encode_all(task.train, model.tokenizer).items
    config = halka.TrainConfig(steps=arguments.steps, batch_size=4)
    for name, method in METHODS.items():
        model.add(name, method)
    for told in halka.train_many(model, [halka.Job(name, items, config) for name in METHODS]):
        print({name: round(step.loss, 3) for name, step in told.items()}, flush=True)
    exact = halka.adapt(*load_base("smollm2-135m", dtype="float32", device="cpu"))
    for name, adapter in model.adapters.items():
        exact.add(name, adapter.method, state=adapter.state_dict())
    prompts = sorted((encode_prompt(example, model.tokenizer) for example in task.test), key=len)
    using = [[*METHODS, None][i % (len(METHODS) + 1)] for i in range(len(prompts))]
    found = {
        "float32": compared(exact, exact, prompts, using),
        "bfloat16": compared(model, exact, prompts, using),
        "bfloat16, the bare base": compared(model, exact, prompts, [None] * len(prompts)),
    }
    found["usual_gap"] = usual_gap(exact, prompts, using)
    for name, each in found.items():
        print(name, json.dumps(each, indent=1))
    result = {"setup": setup("halka", "torch", "transformers"), "prompts": len(prompts), "tokens": NEW, **found}
    (HERE / "results" / "mixed_answers.json").write_text(json.dumps(result, indent=1) + "\n")


def compared(model: Any, exact: Any, prompts: list[list[int]], using: list[str | None]) -> dict[str, Any]:
    """How many answers are the same in batches as alone, and of the others how near a tie the first difference was."""
    batched: list[list[int]] = []
    for start in range(0, len(prompts), 35):
        batched += answers(model, prompts[start : start + 35], using[start : start + 35])
    alone = [answers(model, [prompt], [name])[0] for prompt, name in zip(prompts, using, strict=True)]
    differ = []
    for prompt, name, one, other in zip(prompts, using, batched, alone, strict=True):
        if one != other:
            place = next(i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
            logits = next_logits(exact, [*prompt, *other[:place]], name)
            gap = float(logits[other[place]] - logits[one[place]])
            differ.append({"adapter": name, "token": place, "gap_in_fp32": gap, "logit": float(logits[other[place]])})
    return {"same": len(prompts) - len(differ), "of": len(prompts), "first_differences": differ}


def answers(model: Any, prompts: list[list[int]], using: list[str | None]) -> list[list[int]]:
    tokenizer, base = model.tokenizer, model.base
    pad = tokenizer.pad_token_id
    batch = collate([Tokens(ids, [False] * len(ids)) for ids in prompts], pad, "left")
    with torch.inference_mode(), model.use(using if len(using) > 1 else using[0]), use_attention(base):
        made = base.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            pad_token_id=pad,
        )
    return made[:, batch.input_ids.shape[1] :].tolist()


def next_logits(model: Any, ids: list[int], name: str | None) -> torch.Tensor:
    with torch.inference_mode(), model.use(name):
        return model.base(input_ids=torch.tensor([ids])).logits[0, -1]


def usual_gap(model: Any, prompts: list[list[int]], using: list[str | None]) -> dict[str, float]:
    """How far apart the two likeliest next tokens are, in fp32, over the prompts."""
    gaps = []
    for prompt, name in zip(prompts, using, strict=True):
        first, second = next_logits(model, prompt, name).topk(2).values.tolist()
        gaps.append(first - second)
    return {"median": statistics.median(gaps), "tenth": statistics.quantiles(gaps, n=10)[0]}


if __name__ == "__main__":
    main()
