"""Training speed beside transformers' Trainer with peft: same machine, precision, examples and batch size.

    python benchmarks/speed.py                      # all pairs, three interleaved runs of each, medians and ratios
    python benchmarks/speed.py --pairs lora --runs 5

Both sides train SmolLM2-135M-Instruct in bf16 on snips_nlu, 8 examples a step, padded to their longest; speed is useful
(unpadded) tokens per second without the first two steps, memory is the process's peak beyond what it held with the base
loaded. Halka puts examples of like length together, which Trainer does not unless asked. Validation losses come from
the same 60 examples.
Every run is a process of its own. The result goes to benchmarks/results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from side_by_side import setup

HERE = Path(__file__).parent
SIZE = 8
PAIRS = {
    "lora": {"halka": {"method": "lora", "rank": 8}, "lr": 1e-3},
    "prompt": {"halka": {"method": "prompt", "length": 100}, "lr": 3e-2},
    "prefix": {"halka": {"method": "prefix", "length": 20}, "lr": 1e-2},
}


def worker(side: str, pair: str, steps: int, target: str) -> None:
    """One run of one side, in this process."""
    import torch

    from halka.data.task import limit, load_task
    from halka.data.tokens import encode_all
    from halka.models.loading import load_base
    from halka.util import machine

    task = limit(load_task(HERE / "tasks" / "snips_nlu.py"), train=1000, validation=60)
    base, tokenizer = load_base("smollm2-135m")
    train, held_out = (encode_all(split, tokenizer).items for split in (task.train, task.validation))
    with torch.no_grad():
        base(torch.tensor([train[0].ids]))  # brings the weights into memory
    cpu = torch.device("cpu")
    before = machine.resident(cpu)
    machine.reset_peak(cpu)
    run = {"halka": run_halka, "peft": run_peft}[side]
    times, tokens, loss = run(base, tokenizer, train, held_out, pair, steps, lambda: machine.peak(cpu))
    result = {
        "tokens_per_second": sum(tokens[2:steps]) / (times[-1] - times[1]),  # Trainer collates a batch ahead
        "memory": loss.pop("peak") - before,
        "validation_loss": loss["loss"],
    }
    Path(target).write_text(json.dumps(result))


def run_halka(base, tokenizer, train, held_out, pair, steps, peak):
    import halka
    from halka.methods import method_named

    fields = dict(PAIRS[pair]["halka"])
    method = method_named(fields.pop("method"))(**fields)
    model = halka.adapt(base, tokenizer)
    model.add("a", method)
    config = halka.TrainConfig(lr=PAIRS[pair]["lr"], steps=steps, batch_size=SIZE)
    times, tokens, before = [], [], 0
    for step in halka.train(model, "a", train, config):
        times.append(time.perf_counter())
        tokens.append(step.tokens - before)
        before = step.tokens
    top = peak()
    from halka.training import mean_loss

    return times, tokens, {"loss": mean_loss(model, "a", held_out), "peak": top}


def run_peft(base, tokenizer, train, held_out, pair, steps, peak):
    import peft
    import torch
    import transformers

    from halka.data.batches import IGNORE_INDEX, collate

    config = {
        "lora": lambda: peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=100, task_type="CAUSAL_LM"),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
    }[pair]()
    model = peft.get_peft_model(base, config)
    tokens, times = [], []

    def collated(items):
        batch = collate([item["tokens"] for item in items], tokenizer.pad_token_id)
        tokens.append(batch.tokens)
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            times.append(time.perf_counter())

    arguments = transformers.TrainingArguments(
        output_dir="/tmp/halka-speed",
        per_device_train_batch_size=SIZE,
        max_steps=steps,
        learning_rate=PAIRS[pair]["lr"],
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.06 * steps)),
        bf16=True,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=0,
    )
    dataset = [{"tokens": item} for item in train]
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=dataset, data_collator=collated, callbacks=[Clock()]
    )
    trainer.train()
    top = peak()
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(held_out), SIZE):
            batch = collate(held_out[start : start + SIZE], tokenizer.pad_token_id)
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            logits = logits[:, -batch.labels.shape[1] :][:, :-1].float()
            targets = batch.labels[:, 1:]
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
            count += int((targets != IGNORE_INDEX).sum())
    return times, tokens, {"loss": total / count, "peak": top}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=PAIRS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--worker", nargs=4, metavar=("SIDE", "PAIR", "STEPS", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        side, pair, steps, target = arguments.worker
        worker(side, pair, int(steps), target)
        return
    path = HERE / "results" / "speed.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for pair in arguments.pairs:
        runs: dict[str, list[dict]] = {"halka": [], "peft": []}
        for number in range(arguments.runs):
            for side in ("halka", "peft") if number % 2 else ("peft", "halka"):
                target = Path(f"/tmp/halka-speed-{os.getpid()}.json")
                command = [
                    sys.executable,
                    "-W",
                    "ignore",
                    __file__,
                    "--worker",
                    side,
                    pair,
                    str(arguments.steps),
                    str(target),
                ]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                runs[side].append(json.loads(target.read_text()))
                print(pair, side, runs[side][-1], flush=True)
        medians = {
            side: {key: statistics.median(run[key] for run in each) for key in each[0]} for side, each in runs.items()
        }
        ours, theirs = medians["halka"], medians["peft"]
        ratios = [
            one["tokens_per_second"] / two["tokens_per_second"]
            for one, two in zip(runs["halka"], runs["peft"], strict=True)
        ]
        found[pair] = {
            **medians,
            "speed_ratio": statistics.median(ratios),
            "memory_ratio": ours["memory"] / theirs["memory"],
            "runs": runs,
            "steps": arguments.steps,
            "setup": setup("halka", "torch", "transformers", "peft"),
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(
            f"{pair}: {ours['tokens_per_second']:.0f} against {theirs['tokens_per_second']:.0f} useful tokens/s, "
            f"{statistics.median(ratios):.2f} times as fast; memory beyond the base {ours['memory'] / 1e6:.0f} MB "
            f"against {theirs['memory'] / 1e6:.0f} MB; validation loss {ours['validation_loss']:.4f} against "
            f"{theirs['validation_loss']:.4f}"
        )


if __name__ == "__main__":
    main()
