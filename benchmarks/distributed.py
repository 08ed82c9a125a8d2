"""Training on several processes beside one: memory of each, losses, runs that were killed, adapters that were written.

    python benchmarks/distributed.py                 # some twenty-five minutes, and 6 GB of memory
    python benchmarks/distributed.py --only full     # a part, which takes its place in the result

Processes exchange by gloo, with one thread each. SmolLM2-135M-Instruct trains on the same eight examples in every
step, dealt among the processes, with the base whole on each or in parts (`--shard`).

Memory is `RssAnon` of /proc/PID/status, beyond what the process had before it loaded the base: pages of its own,
without those of mapped files, which the system may drop. A base that is whole is copied out of its file first, as onto
a device. Memory is looked at every 2 ms. The noise in bf16 is what one process changes that takes the same examples in
batches of four and of two. Runs of a tiny random base, all methods at once, are killed by SIGKILL on one, two and
four processes in turn, amid steps and where a checkpoint is due. The result goes to
benchmarks/results/distributed.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from side_by_side import setup

import halka
from halka.core import Method
from halka.data.tokens import Tokens
from halka.models.sharded import load_sharded_base, shard
from halka.training import Job, Ranks, RunFolder, joined_ranks, train_many
from halka.util.divided import is_divided
from ranks_for_tests import METHODS, local, start
from tiny import tiny
from training_for_tests import items

HERE = Path(__file__).parent
STATUS = Path("/proc/self/status")
EXAMPLES, LENGTH, STEPS = 8, 40, 3
BATCHES = (8, 4, 2)  # examples in each batch of a step
FORMS = [(1, False), (2, False), (2, True), (4, False), (4, True)]
BESIDE_ONE: dict[str, Method] = {
    "lora": halka.LoRA(rank=16),
    "full": halka.Full(),
    "bottleneck": halka.Bottleneck(),
    "prefix": halka.Prefix(length=16),
    "prompt": halka.Prompt(length=16),
}
PARTS = (*BESIDE_ONE, "killed")
RUN = {"steps": 60, "batch_size": 5, "lr": 1e-3, "save_every": 5}
KILLED = {
    "whole": ((1, 17), (2, 30), (4, 41), (1, 60), (4, None)),
    "in parts": ((4, 8), (1, 20), (2, 33), (4, 45), (2, None)),
}
"""By form: so many processes until so many steps are recorded, or until the end. The last ones write the adapters."""


# ── one process ─────────────────────────────────────────────────────────────────────────────────────────────────────


def anonymous() -> int:
    """Bytes of this process's own pages that are in memory."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most that `anonymous` was within the block, as the list's only item."""
    most, over = [anonymous()], threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], anonymous())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def examples() -> list[Tokens]:
    draw = random.Random(0)
    rows = [[draw.randrange(3, 49152) for _ in range(LENGTH)] for _ in range(EXAMPLES)]
    return [Tokens(row, [place >= LENGTH // 2 for place in range(LENGTH)]) for row in rows]


def measured(method: str, parts: bool, dtype: str, batches: Sequence[int]) -> dict[str, Any]:
    """Memory and losses of training in this process, with each step's examples in batches of these sizes."""
    before = anonymous()
    with watched() as loading:
        load = load_sharded_base if parts else halka.load_base
        base, tokenizer = load("smollm2-135m", dtype=dtype, device="cpu")
        if not parts and dtype == "bfloat16":  # as it is stored
            for parameter in base.parameters():
                parameter.data = parameter.data.clone()
    after = anonymous()
    bytes_of = dict.fromkeys((True, False), 0)
    for parameter in base.parameters():
        bytes_of[not is_divided(parameter)] += local(parameter).numel() * parameter.element_size()
    losses, peaks = [], []
    for size in batches:
        with watched() as training:
            model = halka.adapt(base, tokenizer)
            model.add("a", BESIDE_ONE[method])
            lr = 1e-5 if method == "full" else None
            config = {"steps": STEPS, "batch_size": size, "accumulate": EXAMPLES // size, "lr": lr}
            losses.append([step.loss for step in halka.train(model, "a", examples(), config)])
        peaks.append(training[0] - before)
        model.remove("a")
        gc.collect()
    return {
        "base": sum(bytes_of.values()),
        "whole": bytes_of[True],
        "loaded": after - before,
        "peak_loading": loading[0] - before,
        "peak_training": peaks[0],
        "losses": losses,
    }


def all_methods(folder: Path, parts: bool) -> None:
    """Train adapters of all methods on the tiny base, each in its folder, and go on where they were killed."""
    base = tiny()
    if parts and Ranks.here().count > 1:
        shard(base, base.device)
    model = halka.adapt(base)
    for name, method in METHODS.items():
        model.add(name, method)
    config, validation = halka.TrainConfig(**RUN), items(5)  # of the training examples: the last weights are the best
    if Ranks.here().first:
        for name in METHODS:
            RunFolder(folder / name).begin({})
    jobs = [Job(name, items(13), config, validation, folder / name) for name in METHODS]
    for _ in train_many(model, jobs):
        pass
    for name in METHODS:
        if Ranks.here().first or model.adapter(name).divided:
            halka.save(model, name, folder / name / "adapter")


def worker(arguments: dict[str, Any]) -> None:
    """As one of several processes: writes what it measured to FOLDER/RANK.json."""
    folder = Path(arguments.pop("folder"))
    with joined_ranks() as ranks:
        if "method" in arguments:
            result = [measured(**arguments, dtype=dtype, batches=own) for dtype, own in arguments.pop("dtypes")]
            (folder / f"{ranks.rank}.json").write_text(json.dumps(result))
        else:
            all_methods(folder, **arguments)


# ── all of them ─────────────────────────────────────────────────────────────────────────────────────────────────────


def trained(method: str, count: int, parts: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What each of so many processes measured in bf16 and in fp32."""
    batches = BATCHES if count == 1 else BATCHES[:1]
    with tempfile.TemporaryDirectory() as folder:
        run(count, folder=folder, method=method, parts=parts, dtypes=[("bfloat16", batches), ("float32", BATCHES[:1])])
        results = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(count)]
    return [result[0] for result in results], [result[1] for result in results]


def run(count: int, *, until: tuple[Path, int] | None = None, **arguments: Any) -> None:
    """So many processes, until they end; or until a file has so many lines, when they are killed."""
    processes = start(count, "--worker", json.dumps(arguments), script=__file__)
    while until is not None and not (until[0].exists() and until[0].read_text().count("\n") >= until[1]):
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.002)
    for process in processes:
        if until is not None:
            process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert until is not None or process.returncode == 0, output


def worst(losses: list[float], others: list[float]) -> float:
    """The largest difference, of the losses."""
    return max(abs(one - other) / one for one, other in zip(losses, others, strict=True))


def killed(root: Path) -> dict[str, Any]:
    """How far runs that were killed and resumed end from those of one process, and what is in their adapters."""
    run(1, folder=str(root / "straight"), parts=False)
    result: dict[str, Any] = {}
    for form, stages in KILLED.items():
        folder = root / form.replace(" ", "-")
        for count, steps in stages:
            until = None if steps is None else (folder / "lora" / "metrics.jsonl", steps)
            run(count, until=until, folder=str(folder), parts=form == "in parts")
        losses = {name: worst(*(ends(root / "straight" / name), ends(folder / name))) for name in METHODS}
        result[form] = {"stages": stages, "loss": losses, "logits": {name: logits_of(folder, name) for name in METHODS}}
    return result


def ends(folder: Path) -> list[float]:
    """Loss and validation loss of the last step."""
    steps = RunFolder(folder).steps()
    assert [step.step for step in steps] == [*range(1, RUN["steps"] + 1)]
    return [steps[-1].loss, steps[-1].validation or 0.0]


def logits_of(folder: Path, name: str) -> dict[str, Any]:
    """What reads the written adapter, and how far its logits are from those of the run in one process."""
    from peft import PeftModel

    ids = torch.tensor([item.ids for item in items(3, seed=4, length=9)])
    with torch.no_grad():
        logits = []
        for at in (folder.parent / "straight", folder):
            model = halka.adapt(tiny())
            halka.load(model, at / name / "adapter", name="a")
            with model.use("a"):
                logits.append(model.base(ids).logits)
        reader, worst = "halka", float((logits[1] - logits[0]).abs().max())
        if name in ("lora", "prefix", "prompt"):
            peft = PeftModel.from_pretrained(tiny(), folder / name / "adapter").eval()
            theirs = peft(ids).logits[:, -ids.shape[1] :]
            reader, worst = "peft", max(worst, float((theirs - logits[0]).abs().max()))
    empty = [key for key, tensor in model.adapter("a").state_dict().items() if not tensor.numel()]
    return {"reader": reader, "worst": worst, "empty_tensors": empty}


def beside_one(method: str) -> list[dict[str, Any]]:
    """Each form's memory by process, losses, and their largest difference from those of one process."""
    rows: list[dict[str, Any]] = []
    alone: list[list[dict[str, Any]]] = []
    for count, parts in FORMS if method in ("lora", "full") else FORMS[:3]:
        if method == "full" and count == 4 and not parts:
            continue  # four times what one process takes
        half, exact = trained(method, count, parts)
        alone = alone or [half, exact]
        keys = ("base", "whole", "loaded", "peak_loading", "peak_training")
        bf16, fp32 = (
            worst(one[0]["losses"][0], ranks[0]["losses"][0]) for one, ranks in zip(alone, (half, exact), strict=True)
        )
        noise = max(worst(alone[0][0]["losses"][0], other) for other in alone[0][0]["losses"][1:])
        memory = {key: [rank[key] for rank in half] for key in keys}
        rows.append({"processes": count, "parts": parts, **memory, "fp32": fp32, "bf16": bf16, "noise": noise})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        torch.set_num_threads(1)
        worker(arguments.worker)
        return
    path = HERE / "results" / "distributed.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    for part in arguments.only:
        if part == "killed":
            with tempfile.TemporaryDirectory() as folder:
                result[part] = killed(Path(folder))
        else:
            result[part] = beside_one(part)
        settings = RUN if part == "killed" else {"examples": EXAMPLES, "length": LENGTH, "steps": STEPS}
        result.setdefault("setups", {})[part] = {**setup("halka", "torch", "transformers", "peft"), **settings}
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
