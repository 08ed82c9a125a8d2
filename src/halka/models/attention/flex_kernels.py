"""`FlexKernels`: torch's FlexAttention, compiled for each kind of call, and a word where it cannot be.

Of one function torch compiles eight variants at most, and runs what comes then uncompiled, which stores all scores. A
base has more kinds of calls: training and evaluation, layers with and without a window, batches of one block and of
more, lines of a few tokens. So each kind is compiled from code of its own, and takes no count of tokens for a width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental import _config as shapes
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from halka.util.machine import ran_out

Kernel = Callable[[Tensor, Tensor, Tensor, BlockMask, Tensor | None], Tensor]
FEW = 128  # tokens below which inductor looks for its kernel of decoding, and compiles anew


def uncompiled(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float, softcap: float | None
) -> Tensor:
    """The twin of the kernels, which stores all scores, and has no gradient on a CPU."""
    cap = None if softcap is None else torch.full((), softcap, device=query.device)
    return _attention(query, key, value, mask, cap, scale, small=False)


class FlexKernels:
    """The kernels that were compiled so far, by kind of call; where torch cannot compile one, none is.

    backend: torch's compiler, or another for tests
    """

    def __init__(self, backend: Any = "inductor"):
        self._backend = backend
        self._of: dict[Hashable, Kernel | None] = {}
        self._failed: set[Hashable] = set()

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: BlockMask,
        scale: float,
        softcap: float | None = None,
        windowed: bool = False,
    ) -> Tensor | None:
        """As `attend_by_flex`. A kind's first call goes back as well, where it is differentiated, to compile that too.

        Warns where torch cannot compile it, once for a device, a precision and a width of heads: in a kind's first
        call, or where it compiles a kind anew, for sizes that it had not left open.
        """
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        # in a run of a line, rows are as far apart as the line is long, for which torch would compile anew
        query, key, value = (tensor.squeeze(0)[None] for tensor in (query, key, value))  # `[0]` copies gradients
        cap = _cap(softcap, query.device)
        kind = (*_kind(query, key, value, mask), scale, cap is None, windowed)
        if kind in self._of:
            kernel = self._of[kind]
            try:
                return None if kernel is None else kernel(query, key, value, mask, cap)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                if ran_out(error):
                    raise
        kernel = self._of[kind] = self._compiled(query, key, value, mask, scale, cap)
        return None if kernel is None else kernel(query, key, value, mask, cap)

    def _compiled(
        self, query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float, cap: Tensor | None
    ) -> Kernel | None:
        """The first kernel that torch compiles for such tensors: with tiles of its own choice, or with small ones.

        It chooses by the GPU's generation, not all of which have the shared memory for it.
        """
        like = (query.device, query.dtype, query.shape[-1], value.shape[-1])
        problem: Exception | None = None
        for small in () if like in self._failed else (False, True):
            plain: Any = _kernel_of(scale, small=small)
            try:
                kernel: Any = torch.compile(plain, dynamic=True, fullgraph=True, backend=self._backend)
                with _compiling(query.device):
                    _tried(kernel, query, key, value, mask, cap)
            except Exception as error:  # torch's, Triton's, or of the C compiler that these call
                if ran_out(error):
                    raise
                problem = problem or error
            else:
                return kernel
        if problem is not None:
            self._failed.add(like)
            reason = " ".join(str(problem).partition("\n\n")[0].split())  # without advice on torch's logs
            warnings.warn(
                f"torch cannot compile FlexAttention for {query.device} ({reason}), so packed batches take slower "
                "kernels: it needs Triton, a C compiler and tiles that fit the GPU's shared memory",
                stacklevel=2,
            )
        return None


KERNELS = FlexKernels()


def _kind(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> tuple[Hashable, ...]:
    """What of the tensors torch compiles a kernel for.

    The counts of tokens, keys and blocks are numbers to it, except where they are 1, and below FEW tokens. A layer's
    own keys lie token by token, as it computed them, and head by head where virtual ones were joined to them.
    """
    tensors = (query, key, value)
    counts = (query.shape[2], key.shape[2], *mask.kv_indices.shape[-2:])
    modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled())
    return (
        (query.device, query.dtype, key.dtype, *modes),
        tuple(
            (*tensor.shape[1::2], tensor.requires_grad, tensor.is_contiguous(), tensor.stride(1) > tensor.stride(2))
            for tensor in tensors
        ),
        (counts[0] < FEW, *(count == 1 for count in counts)),
    )


@contextmanager
def _compiling(device: torch.device) -> Iterator[None]:
    """Within the block torch compiles for this device, of whose generation tiles are, and takes no two sizes for one.

    It does if they are equal in the first call: a count of blocks for that of heads, for which it then is a constant.
    """
    current = nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
    with current, shapes.patch(use_duck_shape=False):  # pyright: ignore[reportAttributeAccessIssue]
        yield


def _kernel_of(scale: float, *, small: bool) -> Kernel:
    """The function that is compiled, with its own code; the scale is a constant in it, as Triton needs it.

    small: with tiles that fit into 64 KB of shared memory, those of heads of 256 in half precision included
    """

    @torch.compiler.assume_constant_result
    def scale_here() -> float:
        return scale

    @torch.compiler.assume_constant_result
    def small_here() -> bool:
        return small

    def attention(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, cap: Tensor | None) -> Tensor:
        return _attention(query, key, value, mask, cap, scale_here(), small=small_here())

    attention.__code__ = attention.__code__.replace()  # by which torch counts what it compiles
    return attention


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, cap: Tensor | None, scale: float, *, small: bool
) -> Tensor:
    def capped(score: Tensor, row: Tensor, head: Tensor, token: Tensor, place: Tensor) -> Tensor:
        return score if cap is None else torch.tanh(score / cap) * cap

    # instead of the kernel of decoding, which lacks tiles where the tokens of a group's heads are more than a block
    options: Any = {"FORCE_USE_FLEX_ATTENTION": True}
    if small:
        options |= {
            "num_stages": 1,
            "num_warps": 4,
            "fwd_BLOCK_M": 32,
            "fwd_BLOCK_N": 32,
            "bwd_BLOCK_M1": 16,
            "bwd_BLOCK_N1": 16,
            "bwd_BLOCK_M2": 16,
            "bwd_BLOCK_N2": 16,
        }
    return flex_attention(
        query,
        key,
        value,
        score_mod=None if cap is None else capped,
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=options,
    )


def _tried(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, cap: Tensor | None) -> None:
    """Compute forward and, where that is differentiated, back: torch compiles the way back when it is first gone."""
    own = [_at_storages_begin(tensor).requires_grad_(tensor.requires_grad) for tensor in (query, key, value)]
    with saved_tensors_hooks(_same, _same):  # a layer that is recomputed in backward counts what it saves
        output = kernel(own[0], own[1], own[2], mask, cap)
        if output.requires_grad:
            torch.autograd.grad(output, [tensor for tensor in own if tensor.requires_grad], output.detach())


def _at_storages_begin(tensor: Tensor) -> Tensor:
    """A copy that lies alike. What torch compiles for it takes a line's later runs, too; not so the other way round."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor.detach())


def _same(tensor: Tensor) -> Tensor:
    return tensor


@cache
def _cap(softcap: float | None, device: torch.device) -> Tensor | None:
    """The softcap as a tensor: FlexAttention takes no number that it is not compiled for."""
    if softcap is None:
        return None
    with torch.inference_mode(False):
        return torch.full((), softcap, device=device)
