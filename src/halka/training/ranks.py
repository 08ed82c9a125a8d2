"""`Ranks`: the processes, one for each device, that train together, started by torchrun.

Each has the whole adapter and computes a share of every step. What travels between them are the adapters' gradients and
losses, added up; of the frozen base nothing does. Where base and adapter are divided, `util.divided` gathers them.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from halka.util.divided import checked_by_first, is_divided, lost_rank
from halka.util.errors import HalkaError, LostRankError, OutOfMemoryError
from halka.util.machine import ran_out

T = TypeVar("T")

BUCKET = 1 << 24  # values that are copied together to be reduced at once; larger tensors are reduced where they are


@dataclass(frozen=True)
class Ranks:
    """`count` processes that train together, of which this is `rank`; the first one reads and writes folders."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def here() -> Ranks:
        """Those of torch's default process group; this process alone where there is none."""
        if dist.is_available() and dist.is_initialized():
            return Ranks(dist.get_rank(), dist.get_world_size())
        return Ranks()

    @staticmethod
    def joined() -> Ranks:
        """`here`. Raises HalkaError for one of several that would train alone, and for a group that cannot exchange."""
        if not (dist.is_available() and dist.is_initialized()):
            if (count := world_size()) > 1:
                raise HalkaError(
                    f"the environment has WORLD_SIZE={count}, and each of the processes would train alone: train "
                    "within `with halka.training.joined_ranks():`, or unset WORLD_SIZE where each has its own run"
                )
        elif "cpu:" not in (backends := dist.get_backend_config()):
            raise HalkaError(
                f"torch's process group exchanges by {backends} alone, and ranks exchange numbers on the CPU, too: "
                'make it by halka.training.joined_ranks(), or by dist.init_process_group("cpu:gloo,cuda:nccl")'
            )
        return Ranks.here()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, value: float) -> float:
        """The sum of every rank's value."""
        return float(self._summed(torch.tensor([value], dtype=torch.float64, device="cpu"))[0])

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        return self.sum(flag) > 0

    @contextmanager
    def raised_in_all(self) -> Generator[None]:
        """An error with files that one rank has within the block is raised in all, at the block's end.

        All enter it together. What they exchange within they exchange to the end, whatever files do. Raises the
        block's own error, and HalkaError with the same message in the others. A rank that was lost and memory that ran
        out end a rank at once, since then the others may be anywhere.
        """
        failure: Exception | None = None
        try:
            yield
        except (LostRankError, OutOfMemoryError):
            raise
        except (HalkaError, OSError) as error:
            failure = error
        if not self.any(failure is not None):
            return
        messages = self._of_all(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        raise HalkaError(next(message for message in messages if message is not None))

    def reduce(
        self, parameters: Sequence[nn.Parameter], loss: Tensor | float, computed: int
    ) -> tuple[Tensor | float, int]:
        """Add up every rank's gradients, in place, losses and numbers of computed tokens; returns these two.

        A parameter that got no gradient on any rank has none afterwards, as in one process. Of one that is divided
        among the ranks, the gradient is the sum already.
        """
        if self.count == 1:
            return loss, computed
        parameters = [parameter for parameter in parameters if not is_divided(parameter)]
        has_gradient = [parameter.grad is not None for parameter in parameters]
        own = torch.tensor([float(loss), computed, *has_gradient], dtype=torch.float64, device="cpu")
        mean, tokens, *used = map(float, self._summed(own))
        gradients: list[Tensor] = []
        for parameter, count in zip(parameters, used, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                self._summed(bucket[0])
                continue
            flat = self._summed(torch.cat([gradient.flatten() for gradient in bucket]))
            start = 0
            for gradient in bucket:
                gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
                start += gradient.numel()
        return mean, round(tokens)

    def from_first(self, value: T) -> T:
        """The first rank's value, which must be picklable; what the others pass is dropped."""
        if self.count == 1:
            return value
        values: list[Any] = [value]
        with _lost_rank_error():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def stream(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The first rank's tensors with their names, one after another, on the CPU; what the others pass is dropped.

        An error with which the first rank's end is raised in all, as HalkaError in the others.
        """
        if self.count == 1:
            yield from tensors
            return
        own = iter(tensors)
        while True:
            name, tensor = checked_by_first(lambda: next(own, None)) or ("", None)
            form = self.from_first(None if tensor is None else (name, tensor.shape, tensor.dtype))
            if form is None:
                return
            name, shape, dtype = form
            tensor = (
                torch.empty(shape, dtype=dtype, device="cpu") if tensor is None else tensor.detach().cpu().contiguous()
            )
            with _lost_rank_error():
                dist.broadcast(tensor, src=0)  # pyright: ignore[reportUnknownMemberType]
            yield name, tensor

    def check_same(self, identity: Mapping[str, Any]) -> None:
        """Raises HalkaError, on every rank, where one trains something else than the first."""
        identities = self._of_all(dict(identity))
        first = identities[0]
        for rank, other in enumerate(identities):
            if different := sorted(key for key in {*first, *other} if first.get(key) != other.get(key)):
                shown = "; ".join(f"{key} is {first.get(key)!r} and {other.get(key)!r}" for key in different)
                raise HalkaError(f"ranks 0 and {rank} do not train the same: {shown}. Start them by one command")

    def _of_all(self, value: T) -> list[T]:
        """Every rank's value, which must be picklable."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            with _lost_rank_error():
                dist.all_gather_object(values, value)  # pyright: ignore[reportUnknownMemberType]
        return values

    def _summed(self, tensor: Tensor) -> Tensor:
        """The tensor, with every rank's values added to its own."""
        if self.count > 1:
            with _lost_rank_error():
                dist.all_reduce(tensor)  # pyright: ignore[reportUnknownMemberType]
        return tensor


@contextmanager
def joined_ranks(device: str | None = None) -> Generator[Ranks]:
    """Within the block this process trains together with the others that torchrun started; alone without torchrun.

    `device` is what the run's settings name (`device_of_rank`). Ranks exchange by NCCL where each has a GPU, else by
    gloo. Raises HalkaError as `world_size` and `device_of_rank` do, and where torchrun's other variables are missing.
    """
    count = world_size()
    if count == 1 or dist.is_initialized():
        yield Ranks.here()
        return
    if missing := [key for key in ("RANK", "MASTER_ADDR", "MASTER_PORT") if key not in os.environ]:
        raise HalkaError(
            f"the environment has WORLD_SIZE={count} and no {' and no '.join(missing)}: start the processes by "
            "torchrun, or unset WORLD_SIZE to train in one"
        )
    own = _own_device(device)
    gpu = own.startswith("cuda")
    if gpu:
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    try:
        yield Ranks.here()
    except BaseException:
        if not gpu:  # NCCL's end waits for the other processes, which may wait for this one: it has to end instead
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together, as torchrun says in the environment: 1 where it does not.

    Raises HalkaError for a WORLD_SIZE that is no such number.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise HalkaError(f"the environment has WORLD_SIZE={size!r}, which is no number of processes: unset it")
    return int(size)


def device_of_rank(device: str | None) -> str | None:
    """The device of this rank, where `device` is what the run's settings name; that itself in one process.

    Raises HalkaError as `dealt_device` does.
    """
    return device if Ranks.here().count == 1 else _own_device(device)


def _own_device(device: str | None) -> str:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    return dealt_device(device, int(os.environ.get("LOCAL_RANK", "0")), local)


def dealt_device(device: str | None, rank: int, count: int, gpus: int | None = None) -> str:
    """The device of `rank`, one of the `count` on a machine with so many GPUs, by default as many as torch sees here.

    `device` is what the run's settings name: None deals a GPU to each rank, or the CPU to all where there is no GPU.
    Raises HalkaError where GPUs are fewer than ranks, for one GPU that ranks would share, and for a device whose
    tensors ranks cannot exchange.
    """
    gpus = torch.cuda.device_count() if gpus is None else gpus
    kind, _, index = (device or ("cuda" if gpus else "cpu")).partition(":")
    if kind not in ("cuda", "cpu"):
        raise HalkaError(f"device {device}: processes train together on cuda or cpu alone, so name one of these")
    if kind == "cpu":
        return kind
    if index and count > 1:
        raise HalkaError(f"device {device} is one GPU, which {count} processes cannot share: cuda gives each its own")
    if rank >= gpus:
        raise HalkaError(
            f"{count} processes need a GPU each, and this machine has {gpus}: start fewer, or train on the CPU "
            "(--device cpu)"
        )
    return f"cuda:{index or rank}"


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in lists of one device and precision and of up to BUCKET values, or of one larger tensor."""
    bucket, values = list[Tensor](), 0
    for tensor in tensors:
        alike = not bucket or (bucket[0].device, bucket[0].dtype) == (tensor.device, tensor.dtype)
        if bucket and (not alike or values + tensor.numel() > BUCKET):
            yield bucket
            bucket, values = [], 0
        bucket.append(tensor)
        values += tensor.numel()
    if bucket:
        yield bucket


@contextmanager
def _lost_rank_error() -> Generator[None]:
    """Turns the error of a collective operation, most often that of a rank that ended, into LostRankError."""
    try:
        yield
    except RuntimeError as error:
        if ran_out(error):
            raise
        raise lost_rank(error) from error
