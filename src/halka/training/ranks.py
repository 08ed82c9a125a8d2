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

from halka.util.divided import is_divided, lost_rank
from halka.util.errors import HalkaError
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

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, value: float) -> float:
        """The sum of every rank's value."""
        return float(self._summed(torch.tensor([value], dtype=torch.float64))[0])

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        return self.sum(flag) > 0

    def reduce(self, parameters: Sequence[nn.Parameter], loss: Tensor | float) -> Tensor | float:
        """Add up every rank's gradients, in place, and losses; returns the loss.

        A parameter that got no gradient on any rank has none afterwards, as in one process. Of one that is divided
        among the ranks, the gradient is the sum already.
        """
        if self.count == 1:
            return loss
        parameters = [parameter for parameter in parameters if not is_divided(parameter)]
        has_gradient = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        loss, *used = self._summed(torch.cat([torch.tensor([float(loss)]), has_gradient]))
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
        return loss

    def from_first(self, value: T) -> T:
        """The first rank's value, which must be picklable; what the others pass is dropped."""
        if self.count == 1:
            return value
        values: list[Any] = [value]
        with _lost_rank_error():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def stream(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The first rank's tensors with their names, one after another, on the CPU; what the others pass is dropped."""
        if self.count == 1:
            yield from tensors
            return
        own = iter(tensors)
        while True:
            name, tensor = next(own, ("", None)) if self.first else ("", None)
            form = self.from_first(None if tensor is None else (name, tensor.shape, tensor.dtype))
            if form is None:
                return
            name, shape, dtype = form
            tensor = torch.empty(shape, dtype=dtype) if tensor is None else tensor.detach().cpu().contiguous()
            with _lost_rank_error():
                dist.broadcast(tensor, src=0)  # pyright: ignore[reportUnknownMemberType]
            yield name, tensor

    def check_same(self, identity: Mapping[str, Any]) -> None:
        """Raises HalkaError, on every rank, where one trains something else than the first."""
        identities: list[Any] = [None] * self.count
        with _lost_rank_error():
            dist.all_gather_object(identities, dict(identity))  # pyright: ignore[reportUnknownMemberType]
        first = identities[0]
        for rank, other in enumerate(identities):
            if different := sorted(key for key in {*first, *other} if first.get(key) != other.get(key)):
                shown = "; ".join(f"{key} is {first.get(key)!r} and {other.get(key)!r}" for key in different)
                raise HalkaError(f"ranks 0 and {rank} do not train the same: {shown}. Start them by one command")

    def _summed(self, tensor: Tensor) -> Tensor:
        """The tensor, with every rank's values added to its own."""
        if self.count > 1:
            with _lost_rank_error():
                dist.all_reduce(tensor)  # pyright: ignore[reportUnknownMemberType]
        return tensor


@contextmanager
def joined_ranks() -> Generator[Ranks]:
    """Within the block this process trains together with the others that torchrun started; alone without torchrun.

    They exchange by NCCL where there are GPUs, a rank each, and by gloo on CPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Ranks.here()
        return
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(_local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        yield Ranks.here()
    finally:
        dist.destroy_process_group()


def device_of_rank(device: str | None) -> str | None:
    """The device of this rank, where `device` is what the run's settings name: GPUs are dealt, one to each rank.

    Raises HalkaError where there are fewer GPUs than ranks on this machine.
    """
    if Ranks.here().count == 1 or device not in (None, "cuda") or not torch.cuda.is_available():
        return device
    if _local_rank() >= torch.cuda.device_count():
        raise HalkaError(
            f"this machine has {torch.cuda.device_count()} GPUs, and rank {_local_rank()} would be one more: "
            "start fewer processes, or train on CPUs by --device cpu"
        )
    return f"cuda:{_local_rank()}"


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in lists of one device and precision and of up to BUCKET values, or of one larger tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        alike = not bucket or (bucket[0].device, bucket[0].dtype) == (tensor.device, tensor.dtype)
        if bucket and (not alike or sum(one.numel() for one in bucket) + tensor.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
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
