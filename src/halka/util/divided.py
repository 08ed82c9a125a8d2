"""Tensors of which each process that trains holds a part, as `fully_shard` leaves of a base's: made whole, and divided.

Where tensors are whole, as everywhere else, these functions return what they are called with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from halka.util.errors import HalkaError, LostRankError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

T = TypeVar("T")


def is_divided(tensor: object) -> TypeGuard[DTensor]:
    """Whether each process holds a part of the tensor. Shape and dtype are the whole one's."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor  # takes a while to import

    return isinstance(tensor, DTensor)


def first_process() -> bool:
    """Whether this is the process that writes what is divided among several."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def mesh_of(module: nn.Module) -> DeviceMesh | None:
    """The processes that the module's parameters are divided among now; None where they are whole."""
    return next((parameter.device_mesh for parameter in module.parameters() if is_divided(parameter)), None)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered; all processes call it together. Its gradient is their sum, added up in fp32."""
    if not is_divided(tensor):
        return tensor
    from torch.distributed.tensor import Partial, Replicate

    dimensions = tensor.device_mesh.ndim
    replicated = tensor.redistribute(
        placements=[Replicate()] * dimensions, backward_dtype=torch.float32 if tensor.is_floating_point() else None
    )
    return replicated.to_local(grad_placements=[Partial()] * dimensions)


def divide(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """This process's part, a copy, of a tensor that all have whole: some of its rows, as `fully_shard` deals them."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    if is_divided(tensor):
        return tensor.clone()
    placements = [Shard(0) if tensor.dim() else Replicate()]
    return distribute_tensor(tensor.detach(), mesh, placements, src_data_rank=None).clone()


def part_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Of a whole tensor the part that this process has of `other`, a copy; the tensor itself where that is whole."""
    if not is_divided(other) or is_divided(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.detach(), other.device_mesh, other.placements, src_data_rank=None).clone()


def gathered(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors whole and on the CPU, one after another; all processes iterate, the first alone gets divided ones."""
    for name, tensor in tensors:
        with lost_rank_error():
            complete = whole(tensor.detach())
        if not is_divided(tensor) or first_process():
            yield name, complete.cpu()


def checked_by_first(check: Callable[[], T], *, together: bool = True) -> T | None:
    """What `check` returns in the first process, None in others. All call this together; an error is raised in all.

    The check exchanges nothing. With `together` False it is this process's alone.
    Raises what the check does in the first process, or in the only one, and HalkaError in the others.
    """
    if not together or not (dist.is_available() and dist.is_initialized()):
        return check()
    result, error = None, None
    if first_process():
        try:
            result = check()
        except Exception as raised:
            error = raised
    refusals = [None if error is None else str(error)]
    with lost_rank_error():
        dist.broadcast_object_list(refusals, src=0)
    if error is not None:
        raise error
    if refusals[0] is not None:
        raise HalkaError(refusals[0])
    return result


def lost_rank(error: RuntimeError) -> LostRankError:
    """What the error of a collective operation means, most often that another process ended."""
    reason = str(error).partition(". ")[0]
    return LostRankError(
        f"rank {dist.get_rank()} lost the others ({reason}): where one ended, its own message says why"
    )


@contextmanager
def lost_rank_error() -> Iterator[None]:
    """Turns errors of the exchange between processes, within passes that gather, too, into LostRankError."""
    try:
        yield
    except RuntimeError as error:
        together = dist.is_available() and dist.is_initialized()
        if not together or not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):  # gloo's have no type
            raise
        raise lost_rank(error) from error


@contextmanager
def whole_parameters(module: nn.Module) -> Iterator[None]:
    """Within the block the module's own parameters are whole; all processes enter it together."""
    own = dict(module._parameters)
    for key, parameter in own.items():
        if is_divided(parameter):
            module._parameters[key] = nn.Parameter(whole(parameter.detach()), requires_grad=False)
    try:
        yield
    finally:
        module._parameters.update(own)
