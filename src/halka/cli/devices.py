"""Training on several devices: torchrun starts a process for each, and the first one speaks for all."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass

import typer

from halka.cli.command import Failed
from halka.training import joined_ranks
from halka.util.errors import HalkaError


@dataclass(frozen=True)
class Devices:
    """--devices and --shard: how many processes this command starts, if any; whether each holds a part of the base."""

    count: int | None
    shard: bool

    def start(self, check: Callable[[], object]) -> bool:
        """Run this command once more in as many processes, and wait for them; False if there are none to start.

        `check` is called before, so that a mistake in the data is named once. Raises HalkaError for no device, and for
        `shard` in one process; as `_run` does.
        """
        if self.count is not None and self.count < 1:
            raise HalkaError(f"--devices must be at least 1, not {self.count}")
        if "WORLD_SIZE" in os.environ:  # this is one of them
            return False
        if self.shard and (self.count or 1) == 1:
            raise HalkaError("--shard is for several processes: say how many by --devices, or start them by torchrun")
        if self.count is not None:
            check()
            _run(self.count)
        return self.count is not None

    @contextmanager
    def joined(self) -> Iterator[bool]:
        """Within the block this process trains with the others, if there are some; yields whether it is the first.

        The others' progress and warnings are dropped, their errors are not.
        """
        with joined_ranks() as ranks, nullcontext() if ranks.first else redirect_stderr(io.StringIO()):
            yield ranks.first


def _run(count: int) -> None:
    """Raises Failed where a process ended with an error, typer.Exit after Ctrl-C."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
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
        elastic_launch(config, sys.executable)("-m", "halka", *sys.argv[1:])
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        own = {rank: code for rank, code in codes.items() if code != -signal.SIGTERM}  # by which torchrun ends the rest
        killed = {rank: code for rank, code in own.items() if code < 0}  # the others then miss it, and fail for that
        ends = ", ".join(f"rank {rank} {_end_of(code)}" for rank, code in sorted((killed or own or codes).items()))
        raise Failed(f"{ends}; what it said is above. The same command goes on from the last checkpoint") from None
    except SignalException as error:
        raise typer.Exit(128 + int(error.sigval)) from None


def _end_of(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    reason = ", often because memory ran out" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{reason}"
