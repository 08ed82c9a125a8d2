"""Processes that train together: `run` starts some that go through all cases, which one process goes through, too.

python tests/ranks_for_tests.py FOLDER    as one of the processes; the first one writes FOLDER/trained.pt
"""

from __future__ import annotations

import faulthandler
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import halka
from contract import METHODS as FORMS
from full_disk import file_limit
from halka.core import AdaptedModel, Method
from halka.data.tokens import Tokens
from halka.methods import BitFit, Joint
from halka.models.quantised import quantise
from halka.models.sharded import in_turn, load_sharded_base, shard
from halka.objectives.sequence_to_sequence import Pair
from halka.training import Job, Ranks, RunFolder, TrainConfig, joined_ranks, train, train_many
from halka.training.shards import read_shards, write_shards
from halka.util.divided import is_divided, whole
from halka.util.dtypes import Quantize
from halka.util.errors import HalkaError, TrainingError
from tiny import tiny
from training_for_tests import items, recorded_gradients

CONFIG = TrainConfig(steps=3, batch_size=5, lr=1e-3, clip=0, seed=1)


@dataclass(frozen=True)
class Case:
    """An adapter to train on a tiny base; `settings` are of `TrainConfig`."""

    method: Method
    settings: dict[str, Any] = field(default_factory=dict)
    architecture: str = "llama"
    quantize: Quantize | None = None
    shard: bool = False  # the base is in parts; one process has it whole
    dtype: torch.dtype = torch.float32


METHODS: dict[str, Method] = {
    "lora": halka.LoRA(rank=4),
    "bottleneck": halka.Bottleneck(width=5),
    "prefix": halka.Prefix(length=3),
    "prompt": halka.Prompt(length=5),
    "full": halka.Full(),
}
OTHERS: dict[str, Method] = {
    **{name: forms[0] for name, forms in FORMS.items() if name not in METHODS},
    "modules": halka.Modules(("head", "model.layers.1.input_layernorm")),
    "joint": Joint((halka.LoRA(rank=4, targets=("attn.q",)), BitFit(targets=("attn.o",)))),
}
CASES: dict[str, Case] = {
    **{
        f"{name}{' on parts' if shard else ''}, {how}": Case(method, {"batches": how}, shard=shard)
        for name, method in METHODS.items()
        for how in ("packed", "padded")
        for shard in (False, True)
    },
    "whole batches": Case(METHODS["lora"], {"accumulate": 4}),
    "whole batches and one more": Case(METHODS["lora"], {"accumulate": 3}),
    "fewer examples than ranks": Case(METHODS["lora"], {"batch_size": 1}),
    "recomputed": Case(METHODS["lora"], {"checkpointing": True}),
    "experts": Case(METHODS["lora"], {}, "mixtral"),
    "encoder and decoder": Case(halka.LoRA(rank=4, alpha=8), {}, "t5"),
    "nf4": Case(METHODS["lora"], quantize="nf4"),
    "recomputed on parts": Case(METHODS["lora"], {"checkpointing": True}, shard=True),
    "recomputed prompt on parts": Case(METHODS["prompt"], {"checkpointing": True}, shard=True),
    "fewer examples than ranks on parts": Case(METHODS["lora"], {"batch_size": 1}, shard=True),
    "magnitudes on parts": Case(halka.DoRA(rank=4), shard=True),
    "experts on parts": Case(METHODS["lora"], {}, "mixtral", shard=True),
    "encoder and decoder on parts": Case(halka.LoRA(rank=4, alpha=8), {}, "t5", shard=True),
    "nf4 on parts": Case(METHODS["lora"], quantize="nf4", shard=True),
    "int8 on parts": Case(METHODS["lora"], quantize="int8", shard=True),
    "magnitudes on parts of nf4": Case(halka.DoRA(rank=4), quantize="nf4", shard=True),
    "whole modules on parts": Case(halka.Modules(("head", "model.layers.1.input_layernorm")), shard=True),
    "full of tied weights on parts, recomputed": Case(
        METHODS["full"], {"accumulate": 3, "checkpointing": True, "clip": 0.1}, "gemma", shard=True
    ),
    "full of an encoder and decoder on parts": Case(METHODS["full"], {}, "t5", shard=True),
    "full of experts on parts, bf16": Case(METHODS["full"], {}, "mixtral", shard=True, dtype=torch.bfloat16),
}


def data(architecture: str = "llama") -> list[Any]:
    """Examples of which some begin alike."""
    if architecture == "t5":
        return [Pair(item.ids[:5], item.ids[5:]) for item in items(13)]
    begins = [token + 3 for token in range(9)]
    return [Tokens(begins + item.ids, [False] * 9 + item.loss) for item in items(7)] + items(6, seed=1)


def trained(case: Case) -> dict[str, Any]:
    """What training by this case comes to, in this process and those that it trains with."""
    base = tiny(case.architecture, case.dtype)
    if case.shard and Ranks.here().count > 1:
        shard(base, base.device, quantize=case.quantize)
    elif case.quantize:
        quantise(base, case.quantize)
    model = halka.adapt(base)
    model.add("a", case.method)
    before = [local(parameter).clone() for parameter in base.parameters()]
    with recorded_gradients() as gradients:
        config = TrainConfig(**{**vars(CONFIG), **case.settings})
        steps = [*train(model, "a", data(case.architecture), config, validation=data(case.architecture)[:5])]
    return {
        "losses": [step.loss for step in steps],
        "validation": [step.validation for step in steps],
        "norms": [step.gradient_norm for step in steps],
        "tokens": steps[-1].tokens,
        "gradients": [[whole(gradient) for gradient in of_step] for of_step in gradients],
        "weights": whole_weights(model),
        "share": sum(local(one).numel() for one in gradients[0]) / sum(one.numel() for one in gradients[0]),
        "base unchanged": all(
            torch.equal(local(parameter), own) for parameter, own in zip(base.parameters(), before, strict=True)
        ),
    }


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of it."""
    return tensor.detach().to_local() if is_divided(tensor) else tensor.detach()


def whole_weights(model: AdaptedModel) -> dict[str, torch.Tensor]:
    return {key: whole(tensor.detach()) for key, tensor in model.adapter("a").state_dict().items()}


def trained_together(folder: Path, *, parts: bool = False) -> dict[str, Any]:
    """The losses of adapters of all methods that are trained in the same passes, each saved to its folder."""
    base = tiny()
    if parts:
        shard(base, base.device)
    model = halka.adapt(base)
    for name, method in {**METHODS, **OTHERS}.items():
        model.add(name, method)
    jobs = [Job(name, data(), CONFIG) for name in model.adapters]
    losses = [step.loss for steps in train_many(model, jobs) for step in steps.values()]  # type: ignore[union-attr]
    for name in model.adapters:
        if Ranks.here().first or model.adapter(name).divided:
            halka.save(model, name, folder / name)
    return {"losses": losses}


def free_port() -> int:
    """A port that stays free while processes import torch: whoever asks the system for any gets one from 32768 on."""
    for port in range(20_000 + secrets.randbelow(10_000), 32_000):  # one by one would be another process's next
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port below 32000 is free")


def start(count: int, *arguments: str, script: str = __file__) -> list[subprocess.Popen[str]]:
    """So many processes that run a file together, each in its own thread."""
    together = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    path = os.pathsep.join([str(Path(halka.__file__).parents[1]), str(Path(__file__).parent)])
    return [
        subprocess.Popen(
            [sys.executable, script, *arguments],
            env={**os.environ, **together, "PYTHONPATH": path, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def run(count: int, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """What so many processes print that run this file together."""
    processes = start(count, *arguments)
    try:
        outputs = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def main(folder: Path) -> None:
    """As one of several processes: all cases, and the runs in FOLDER that one process began, to their end."""
    faulthandler.dump_traceback_later(300, exit=True)  # seconds, from when all is imported
    torch.set_num_threads(1)
    with joined_ranks() as ranks:
        results: dict[str, Any] = {}
        for name, case in CASES.items():
            print(name, flush=True)  # for whoever reads why it failed
            results[name] = trained(case)
        results["together"] = [trained_together(folder / "together", parts=parts) for parts in (False, True)]
        results["mixture"] = mixture_in_parts(folder, ranks)
        for name in RUNS:
            results[f"{name} resumed"] = resumed(folder / f"{name} run", name)
            stopped(folder / f"{name} stopped", name, steps=3)
        results["scores"] = [scores_of_which_one_is_none(of, ranks) for of in range(2)]
        results["default device"] = exchanged_under_a_default_device(ranks)
        results["refusal"] = saved_of_fewer_labels(folder / "of fewer labels")
        results["refusals"] = refused_runs(folder)
        results["parts"] = parts(folder, ranks)
        results["full disk"] = [full_disk(folder / f"full {name}", model_of_run(name), ranks) for name in RUNS]
        results["lost"] = lost(folder / "lost run", ranks)
        if ranks.first:
            torch.save(results, folder / "trained.pt")


RUNS = ("lora", "full")
RUN = {"steps": 6, "batch_size": 5, "lr": 1e-3, "save_every": 2}


def model_of_run(name: str) -> AdaptedModel:
    """A model with an adapter of that method, on a base in parts where there are several processes."""
    base = tiny()
    if Ranks.here().count > 1:
        shard(base, base.device)
    model = halka.adapt(base)
    model.add("a", METHODS[name])
    return model


def stopped(folder: Path, name: str, steps: int) -> None:
    """Begin a run in that folder and stop it after so many steps."""
    if Ranks.here().first:
        RunFolder(folder).begin({})
    model = model_of_run(name)
    with closing(train(model, "a", data(), RUN, validation=items(5, seed=2), folder=folder)) as running:
        for _ in range(steps):
            next(running)
        running.stop()


def saved_of_fewer_labels(folder: Path) -> str:
    """Save a full copy of a classifier with fewer labels than its base; before, all processes are refused a folder."""
    base = tiny("bert", kind="sequence-classification", num_labels=3)
    if Ranks.here().count > 1:
        shard(base, base.device)
    model = halka.adapt(base)
    model.add("a", METHODS["full"], labels=("no", "yes"))
    with pytest.raises(HalkaError, match="no part of an adapter") as refusal:
        halka.save(model, "a", Path(__file__).parent)
    halka.save(model, "a", folder)
    return str(refusal.value)


def refused_runs(folder: Path) -> list[list[str]]:
    """Each process's errors, which it catches, where the folder has another run, and where it has a finished one."""
    refusals: list[str] = []
    for name, lr in (("stopped", 2e-3), ("run", RUN["lr"])):
        with pytest.raises(HalkaError) as refusal:
            halka.fit(model_of_run("lora"), "a", data(), {**RUN, "lr": lr}, folder=folder / f"lora {name}")
        refusals.append(str(refusal.value))
    return of_all(refusals)


def scores_of_which_one_is_none(rank: int, ranks: Ranks) -> list[list[str]]:
    """Each process's steps of two adapters; of one the score is no number on that rank, and on another not finite."""
    model = halka.adapt(tiny())
    for name in ("a", "b"):
        model.add(name, METHODS["lora"])
    score = {rank: None, 1 - rank: 0.5 if rank else float("nan")}[ranks.rank]
    jobs = [
        Job(name, data(), {"steps": 2, "batch_size": 5}, items(2), score=lambda value=value: value)  # type: ignore[arg-type]
        for name, value in (("a", score), ("b", 1.0))
    ]
    steps = [f"{name} {step}" for steps in train_many(model, jobs) for name, step in steps.items()]
    return of_all([step if "score at" in step else step[0] for step in steps])


def of_all(value: Any) -> list[Any]:
    """Each process's value."""
    values: list[Any] = [None] * Ranks.here().count
    dist.all_gather_object(values, value)
    return values


def full_disk(folder: Path, model: AdaptedModel, ranks: Ranks) -> dict[str, list[str]]:
    """Each process's error, which it catches, by the file of a run that the first one has no room for."""
    config = {"steps": 2, "batch_size": 5, "lr": 1e-3, "save_every": None}

    def trained(path: Path, validation: Any = (), **settings: Any) -> None:
        for _ in train(model, "a", data(), {**config, **settings}, validation=validation, folder=path):
            pass

    def stopped(path: Path) -> None:
        running = train(model, "a", data(), {**config, "save_every": 9}, folder=path)
        next(running)
        running.stop()

    def fitted(path: Path) -> None:
        halka.fit(model, "a", data(), config, folder=path)

    nothing, little = 10, 3000  # bytes: less than any file has, and less than any tensors
    errors: dict[str, list[str]] = {}
    for file, room, act in (
        ("run.yaml", nothing, fitted),
        ("metrics.jsonl", nothing, trained),
        ("best-1.safetensors", nothing, lambda path: trained(path, items(5, seed=2))),
        ("checkpoint-next.safetensors", little, lambda path: trained(path, save_every=1)),
        ("checkpoint-next.safetensors at a stop", little, stopped),
        ("adapter", little, fitted),
    ):
        error = "none"
        with file_limit(room) if ranks.first else nullcontext():
            try:
                act(folder / file)
            except (HalkaError, OSError) as raised:
                error = str(raised)
        errors[file] = of_all(error)
    return errors


def parts(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """The tensors of a full copy, written in parts to several files and read again; and each process's error, which it
    catches, where the second has no room for its parts, where one of its files is lost, and where it writes elsewhere.
    """
    tensors = model_of_run("full").adapter("a").state_dict()
    write_shards(folder / "parts", tensors, file_bytes=50_000)
    again = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    read_shards(folder / "parts", again)
    with pytest.raises(HalkaError) as full, nullcontext() if ranks.first else file_limit(3000):
        write_shards(folder / "no room", tensors)
    write_shards(folder / "damaged", tensors)
    if ranks.first:
        (folder / "damaged" / "shard-00002-model-00001-of-00001.safetensors").unlink()
    dist.barrier()
    with pytest.raises(HalkaError) as lacking:
        read_shards(folder / "damaged", again)
    with pytest.raises(HalkaError) as unseen:
        write_shards(folder / f"of {ranks.rank} alone", tensors, wait=0)
    return {
        "written": {name: whole(tensor.detach()) for name, tensor in tensors.items()},
        "read": {name: whole(tensor.detach()) for name, tensor in again.items()},
        "full": of_all(str(full.value)),
        "lacking": of_all(str(lacking.value)),
        "unseen": of_all(str(unseen.value)),
    }


def exchanged_under_a_default_device(ranks: Ranks) -> dict[str, Any]:
    """What both processes have of their gradients, and of the first one's tensor, where torch makes no tensor here."""
    one, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    one.grad = torch.full((3,), 1.0 + ranks.rank)
    tensors = [("a", torch.arange(3.0))] if ranks.first else []
    with torch.device("meta"):
        loss, computed = ranks.reduce([one, unused], 0.25, 1 << 30)
        streamed = dict(ranks.stream(tensors))
    return {"gradients": [one.grad, unused.grad], "loss": loss, "computed": computed, "streamed": of_all(streamed)}


def mixture_in_parts(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """The weights of a mixture that is loaded in parts; and who has a turn at what all may do one after another."""
    base, _ = load_sharded_base(folder / "mixture", dtype="float32")
    with in_turn():
        for word in ("begins", "ends"):
            with (folder / "turns").open("a") as file:
                file.write(f"{ranks.rank} {word}\n")
            time.sleep(0.05)
    return {"weights": {name: whole(parameter.detach()) for name, parameter in base.named_parameters()}}


def lost(folder: Path, ranks: Ranks) -> str:
    """The error of a run in parts where memory of the second process runs out in the first evaluation."""
    model = model_of_run("full")

    def run_out(module: torch.nn.Module, args: object) -> None:
        if not ranks.first and not module.training:
            raise torch.OutOfMemoryError("out of memory")

    model.base.get_submodule("model.layers.0").register_forward_pre_hook(run_out)
    try:
        halka.fit(model, "a", data(), {**RUN, "save_every": 1}, validation=items(5, seed=2), folder=folder)
    except TrainingError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def resumed(folder: Path, name: str) -> dict[str, Any]:
    """What a run comes to that goes on in that folder, or begins there."""
    model = model_of_run(name)
    result = halka.fit(model, "a", data(), RUN, validation=items(5, seed=2), folder=folder)
    return {"loss": result.loss, "validation": result.validation_loss, "weights": whole_weights(model)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
