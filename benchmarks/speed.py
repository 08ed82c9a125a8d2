"""Training speed beside transformers' Trainer and TRL's SFTTrainer, both with peft, on the same batches.

    python benchmarks/speed.py                      # all tasks and pairs, three interleaved runs of each side
    python benchmarks/speed.py --pairs lora --tasks snips --runs 5
    python benchmarks/speed.py --losses             # the validation losses alone, also on a busy machine

All sides train SmolLM2-135M-Instruct, loaded in bf16, 8 examples a step, on snips_nlu: `snips` as it is, `snips-180`
behind an instruction of some 180 tokens that names all intents and slots. A list of batches is drawn once a seed and
all sides follow it: others' trainers by a data loader that has the list as its batch sampler, Halka by a run that
takes its batches from it. There are two lists: `random`, the order of Trainer as people start it, and `grouped`, that
of its `train_sampling_strategy="group_by_length"`. Every side's loss is on the same tokens: those of the answers. All
sides have one schedule of learning rates, Halka's: Trainer's cosine ends at nothing, Halka's at a tenth.

    halka           packed batches, the default
    halka padded    with batches=padded
    trainer         transformers' Trainer with peft, bf16=True
    trl             TRL's SFTTrainer with peft, only on `grouped`; its default loss, in chunks without the whole logits.
                    Gradient checkpointing is off, as on all sides, though it is TRL's default

Full fine-tuning trains the bf16 weights themselves where people start Trainer or TRL on them; Halka trains fp32 copies.
Useful tokens are all tokens of all rows, shared ones included and padding not. Speed is theirs per second without the
first two steps, memory the process's peak beyond what it held with the base loaded. The validation loss is computed
by one function on the same 60 examples. Run n has seed n on all sides; ratios are medians over runs of the same
seed. Every run is a process of its own. TRL is optional: `pip install "halka[trl]"`. The result goes to
benchmarks/results/speed.json, where what another processor measured before stays beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from side_by_side import in_a_process, setup

RESULT = Path(__file__).parent / "results" / "speed.json"
SIZE = 8
TASKS = ("snips", "snips-180")
PAIRS = {
    "lora": {"halka": {"method": "lora", "rank": 8}, "lr": 1e-3},
    "prompt": {"halka": {"method": "prompt", "length": 100}, "lr": 3e-2},
    "prefix": {"halka": {"method": "prefix", "length": 20}, "lr": 1e-2},
    "full": {"halka": {"method": "full"}, "lr": 1e-4},
}
SIDES = {"random": ("halka", "halka padded", "trainer"), "grouped": ("halka", "halka padded", "trainer", "trl")}


def worker(side: str, pair: str, task: str, order: str, steps: int, seed: int) -> dict[str, float]:
    """One run of one side, in this process."""
    import torch
    from fixed_batches import BASE, batches_of, held_out_loss, items_of, tokens_per_second, warmed

    from halka.models.loading import load_base
    from halka.util import machine

    base, tokenizer = load_base(BASE, device="cpu")
    train, held_out = items_of(task, tokenizer)
    batches = batches_of(train, order, SIZE, steps, seed)
    warmed(base)
    cpu = torch.device("cpu")
    before = machine.resident(cpu)
    machine.reset_peak(cpu)
    if side in ("trainer", "trl"):
        times, logits_of = run_peft(side, base, tokenizer, train, batches, pair, seed)
    else:
        times, logits_of = run_halka(side, base, tokenizer, train, batches, pair, seed)
    memory = machine.peak(cpu) - before
    return {
        "tokens_per_second": tokens_per_second(train, batches, times),
        "memory": memory,
        "validation_loss": held_out_loss(logits_of, held_out, tokenizer.pad_token_id),
    }


def run_halka(side, base, tokenizer, train, batches, pair, seed) -> tuple[list[float], Callable]:
    """Train; returns when each step ended, and the trained model's logits of a batch."""
    from fixed_batches import FixedRun

    import halka
    from halka.methods import method_named
    from halka.training.job import EncodedJob
    from halka.training.loop import Observer, loop
    from halka.training.ranks import Ranks

    fields = dict(PAIRS[pair]["halka"])
    method = method_named(fields.pop("method"))(**fields)
    model = halka.adapt(base, tokenizer)
    model.add("a", method, seed=seed)
    form = "padded" if side == "halka padded" else "packed"
    config = halka.TrainConfig(lr=PAIRS[pair]["lr"], steps=len(batches), batch_size=SIZE, batches=form, seed=seed)
    run = FixedRun(model, EncodedJob("a", train, config))
    run.batches = batches
    times = [time.perf_counter() for _ in loop(model, [run], Observer(), Ranks())]

    def logits_of(inputs):
        with model.use("a"):
            return base(**inputs).logits

    return times, logits_of


def run_peft(side, base, tokenizer, train, batches, pair, seed) -> tuple[list[float], Callable]:
    """As `run_halka`, in transformers' Trainer or TRL's SFTTrainer."""
    import datasets
    import peft
    import torch
    import transformers

    from halka.data.batches import IGNORE_INDEX, collate
    from halka.data.tokens import Tokens
    from halka.training.config import TrainConfig, learning_rate

    torch.manual_seed(seed)
    config = {
        "lora": lambda: peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=100, task_type="CAUSAL_LM"),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
        "full": lambda: None,
    }[pair]()
    base.requires_grad_(True)
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            times.append(time.perf_counter())

    def collated(rows):
        items = [Tokens(row["input_ids"], [label != IGNORE_INDEX for label in row["labels"]]) for row in rows]
        batch = collate(items, tokenizer.pad_token_id)
        return {**batch.inputs, "labels": batch.labels}

    def loader(trainer):
        """The trainer's data loader, with the list of batches in place of its sampler."""
        fixed = torch.utils.data.DataLoader(
            trainer.train_dataset, batch_sampler=batches, collate_fn=trainer.data_collator
        )
        return trainer.accelerator.prepare(fixed)

    if side == "trl":
        import trl

        trainer_of, arguments_of, settings = trl.SFTTrainer, trl.SFTConfig, {"gradient_checkpointing": False}
        own = {"model": base, "peft_config": config}
    else:
        trainer_of, arguments_of, settings = transformers.Trainer, transformers.TrainingArguments, {}
        model = base if config is None else peft.get_peft_model(base, config)
        own = {"model": model, "data_collator": collated}

    class FixedTrainer(trainer_of):
        def get_train_dataloader(self):
            return loader(self)

        def create_scheduler(self, num_training_steps, optimizer=None):
            def factor(done):
                return learning_rate(min(done + 1, len(batches)), len(batches), 1.0, TrainConfig())

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            return self.lr_scheduler

    rows = [
        {
            "input_ids": item.ids,
            "labels": [t if loss else IGNORE_INDEX for t, loss in zip(item.ids, item.loss, strict=True)],
        }
        for item in train
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = arguments_of(
            output_dir=folder,
            per_device_train_batch_size=SIZE,
            max_steps=len(batches),
            learning_rate=PAIRS[pair]["lr"],
            bf16=True,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            seed=seed,
            **settings,
        )
        trainer = FixedTrainer(
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
            **own,
        )
        assert len(trainer.train_dataset) == len(train)  # the list's indices are these rows'
        trainer.train()
    trained = trainer.model.eval()
    return times, lambda inputs: trained(**inputs).logits


def measured(pair: str, task: str, order: str, sides: list[str], steps: int, runs: int) -> dict[str, Any]:
    """Interleaved runs of all sides on one list of batches a run."""
    from fixed_batches import interleaved, median_ratio, medians

    of_side: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for run, side in interleaved(sides, runs):
        given = {"side": side, "pair": pair, "task": task, "order": order, "steps": steps, "seed": run}
        of_side[side].append(in_a_process(__file__, given))
        print(given, of_side[side][-1], flush=True)
    ratios = {
        side: {
            "speed": median_ratio(of_side["halka"], of_side[side], "tokens_per_second"),
            "memory": median_ratio(of_side["halka"], of_side[side], "memory"),
        }
        for side in sides
        if side != "halka" and "halka" in sides
    }
    return {
        "sides": {side: medians(each) for side, each in of_side.items()},
        "halka_to": ratios,
        "runs": of_side,
        "steps": steps,
        "setup": setup("halka", "torch", "transformers", "peft", *(["trl"] if "trl" in sides else [])),
    }


def of_others(before: dict[str, Any] | None, now: dict[str, Any]) -> list[dict[str, Any]]:
    """What other processors than this one measured before, the latest first."""
    if before is None:
        return []
    earlier = [{name: value for name, value in before.items() if name != "elsewhere"}, *before.get("elsewhere", [])]
    here = now["setup"]["machine"]["cpu"]
    return [each for each in earlier if each["setup"]["machine"]["cpu"] != here]


def losses(pair: str, task: str, order: str, sides: list[str], steps: int, runs: int) -> dict[str, Any]:
    """Every side's validation losses, one a seed."""
    from fixed_batches import interleaved

    of_side: dict[str, list[float]] = {side: [] for side in sides}
    for run, side in interleaved(sides, runs):
        settings = {"side": side, "pair": pair, "task": task, "order": order, "steps": steps, "seed": run}
        of_side[side].append(in_a_process(__file__, settings)["validation_loss"])
        print(settings, of_side[side][-1], flush=True)
    return {"sides": of_side, "steps": steps, "setup": setup("halka", "torch", "transformers", "peft")}


def summary(tasks: dict[str, Any]) -> dict[str, Any]:
    """What README shows of a pair: `snips` in Trainer's own order, Halka beside Trainer."""
    found = tasks["snips"]["random"]
    return {
        "halka": found["sides"]["halka"],
        "peft": found["sides"]["trainer"],
        "speed_ratio": found["halka_to"]["trainer"]["speed"],
        "memory_ratio": found["halka_to"]["trainer"]["memory"],
        "steps": found["steps"],
        "setup": found["setup"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=PAIRS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--orders", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--sides", nargs="+", default=list(SIDES["grouped"]), choices=SIDES["grouped"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--losses", action="store_true", help="validation losses alone; nothing is timed")
    parser.add_argument("--out", type=Path, default=RESULT, help="the file that results are added to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(**json.loads(arguments.worker))))
        return
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    absent = set() if find_spec("trl") else {"trl"}
    if absent:
        print('without the side trl, which is not installed: pip install "halka[trl]"')
    for task in arguments.tasks:
        for pair in arguments.pairs:
            for order in arguments.orders:
                sides = [side for side in SIDES[order] if side in arguments.sides and side not in absent]
                if arguments.losses:
                    by_task = found.setdefault(pair, {}).setdefault("losses", {})
                    by_task.setdefault(task, {})[order] = losses(
                        pair, task, order, sides, arguments.steps, arguments.runs
                    )
                    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
                    continue
                tasks = found.get(pair, {}).get("tasks", {})
                now = measured(pair, task, order, sides, arguments.steps, arguments.runs)
                before = tasks.setdefault(task, {}).get(order)
                tasks[task][order] = now | {"elsewhere": of_others(before, now)}
                of_pair = {**(summary(tasks) if "random" in tasks.get("snips", {}) else {}), "tasks": tasks}
                found[pair] = {**found.get(pair, {}), **of_pair}
                arguments.out.write_text(json.dumps(found, indent=1) + "\n")
                print(task, pair, order, tasks[task][order]["sides"], tasks[task][order]["halka_to"])


if __name__ == "__main__":
    main()
