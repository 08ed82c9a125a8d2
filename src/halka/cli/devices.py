"""Training on several devices: torchrun starts a process for each, and the first one speaks for all."""

from __future__ import annotations

import io
import logging
import math
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass

import typer

from halka.cli.command import Failed
from halka.training import TrainConfig, joined_ranks
from halka.training.ranks import dealt_device, world_size
from halka.util.errors import HalkaError
from halka.util.machine import cores
from halka.util.python import program

GRACE = 110  # seconds that processes have after Ctrl-C or SIGTERM to end their step and write a checkpoint


@dataclass(frozen=True)
class Devices:
    """--devices and --shard: how many processes this command starts, if any; whether each holds a part of the base."""

    count: int | None
    shard: bool

    def start(self, device: str | None, check: Callable[[], object]) -> bool:
        """Run this command once more in as many processes, and wait for them; False if there are none to start.

        `device` is what the settings name. It is dealt, and `check` is called, before, so that a mistake in the command
        or the data is named once; what else `check` has to say the first process says. Raises HalkaError for no device,
        for another number of processes than the environment has, for `shard` in one process, and as `dealt_device`;
        Failed and typer.Exit as `_run`.
        """
        if self.count is not None and self.count < 1:
            raise HalkaError(f"--devices must be at least 1, not {self.count}")
        joined = "WORLD_SIZE" in os.environ  # this is one of them
        count = world_size() if joined else self.count or 1
        if self.count not in (None, count):
            raise HalkaError(
                f"--devices {self.count}, and the environment has WORLD_SIZE={count}: under torchrun leave --devices "
                "out; where something else set WORLD_SIZE, unset it"
            )
        if self.shard and count == 1:
            raise HalkaError("--shard is for several processes: say how many by --devices, or start them by torchrun")
        if joined or self.count is None:
            return False
        if count > 1:
            dealt_device(device, count - 1, count)
        messages = io.StringIO()
        try:
            with redirect_stderr(messages):
                check()
        except BaseException:  # no process starts that would say it again
            sys.stderr.write(messages.getvalue())
            raise
        _run(count)
        return True

    @contextmanager
    def joined(self, device: str | None) -> Iterator[bool]:
        """Within the block this process trains with the others, if there are some; yields whether it is the first.

        The others' progress and warnings are dropped, their errors are not. Raises HalkaError as `joined_ranks`.
        """
        with joined_ranks(device) as ranks, nullcontext() if ranks.first else redirect_stderr(io.StringIO()):
            yield ranks.first


def shares(config: TrainConfig, count: int) -> str:
    """What each of so many processes computes of a step's batches, in words."""
    whole, split = divmod(config.accumulate, count)
    units = {"batch_tokens": "tokens", "batch_size": "examples"}
    limits = {units[name]: limit for name, limit in config.limits().items() if isinstance(limit, int)}
    parts: list[str] = []
    if whole:
        parts.append(f"{whole} for each")
    if split:
        most = " and ".join(f"{limit:,} {unit}" for unit, limit in limits.items())
        share = " and ".join(f"{math.ceil(limit / count):,}" for limit in limits.values())
        number = "it is" if config.accumulate == 1 else "1 is" if split == 1 else f"{split} are"
        none = f"--accumulate {(whole + 1) * count}"
        parts.append(f"{number} split, of up to {most} some {share} for each (with {none} each has whole ones)")
    batches = "batch" if config.accumulate == 1 else f"{config.accumulate} batches"
    return f"{count} processes share a step's {batches}: {', '.join(parts)}"


def _run(count: int) -> None:
    """Raises Failed where a process ended with an error, typer.Exit after Ctrl-C and SIGTERM."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE))  # which torch knows from 2.12 on
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its account of a failure is 30 lines
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*program("halka", *sys.argv[1:])[1:])
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        own = {rank: code for rank, code in codes.items() if code != -signal.SIGTERM}  # by which torchrun ends the rest
        killed = {rank: code for rank, code in own.items() if code < 0}  # the others then miss it, and fail for that
        ends = ", ".join(f"rank {rank} {_end_of(code)}" for rank, code in sorted((killed or own or codes).items()))
        same = "The same command" + (" without --overwrite" if "--overwrite" in sys.argv else "")
        raise Failed(f"{ends}; what it said is above. {same} goes on from the last checkpoint") from None
    except SignalException as error:
        raise typer.Exit(128 + int(error.sigval)) from None


def _end_of(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    reason = ", often because memory ran out" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{reason}"
