"""Tensors without content: the very operations of a training step run, and only sizes, bytes and FLOPs come of them.

A ghost has a tensor's shape, dtype and history, and no values. Within `Rehearsal` parameters are ghosts, and so is
whatever is computed with them; whole numbers stay real, so that masks, positions and choices are what they would be.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import ItemsView
from contextlib import ExitStack
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from halka.estimating.costs import Call, Layout, Plain, Work, aten, tensors, work_of

REAL = 2**22  # values; of more, whole numbers are ghosts too
FEW = 64  # whole numbers that are told apart: where experts' tokens end, for instance
META = torch.device("meta")
GPU = torch.device("xpu")  # any GPU: of one that is "cuda", transformers would ask the driver for its capability


class Ghost(Tensor):
    """A tensor on a CPU; `inner`, on the meta device, stands for its storage."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Ghost:
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cpu"),
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Ghost({tuple(self.shape)}, {self.dtype})"

    def data_ptr(self) -> int:
        return id(self.inner)

    def __deepcopy__(self, memo: Any) -> Any:
        made: Any = self.detach().clone().requires_grad_(self.requires_grad)
        made._is_param = getattr(self, "_is_param", False)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} met a ghost outside of its rehearsal")


class GPUGhost(Ghost):
    """One that says of itself that it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU


class Allocator(Protocol):
    """What gives out memory: how many bytes it holds is more than how many are in use."""

    held: int

    def take(self, size: int) -> int:
        """The place of so many bytes."""
        ...

    def free(self, place: int) -> None: ...


class Rehearsal(TorchDispatchMode):
    """Within its block computation is rehearsed. `live` bytes of tensors are there now, `peak` at most since `reset`.

    allocator   whom tensors are taken from, if what it holds is to be known, too: `held` at most
    gpu         ghosts are on a GPU, as far as Python can see, where attention has a kernel that keeps no scores
    """

    def __init__(self, allocator: Allocator | None = None, *, gpu: bool = False):
        super().__init__()
        self.live = self.peak = self.held = 0
        self.work: Counter[Work] = Counter()
        self._allocator = allocator
        self._there: dict[int, Any] = {}  # a storage's address -> what sees it go
        self._known: dict[tuple[Call, torch.dtype], Any] = {}  # what comes out of an operation: layers are alike
        self._ghost = GPUGhost if gpu else Ghost
        self._gpu = gpu
        self._entered = ExitStack()

    def __enter__(self) -> Rehearsal:
        super().__enter__()
        if self._gpu:
            self._entered.enter_context(_OnAGPU(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.close()
        super().__exit__(*error)

    def reset(self) -> None:
        """Let `peak`, `held` and `work` begin from now."""
        self.peak, self.work = self.live, Counter()
        self.held = 0 if self._allocator is None else self._allocator.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _TOLD:
            told = _TOLD[func](*args, **kwargs)
            if told is not NotImplemented:
                return told
        if func in _INDEXING:
            args = (args[0], _numbered(args[1]), *args[2:])
        given = [*tensors((*args, *kwargs.values()))]
        if any(isinstance(each, Ghost) for each in given) or not _stays_real(func, args, kwargs):
            call = _call(func, args, kwargs)
            out = self._imagined(call, args, kwargs)
        else:
            call, out = None, func(*args, **kwargs)
        fresh = sum(self._see(each.inner if isinstance(each, Ghost) else each) for each in tensors((out,)))
        if (work := work_of(func, args, kwargs, out, fresh, call)) is not None:
            self.work[work] += 1
        return out

    def _imagined(self, call: Call, args: Any, kwargs: Any) -> Any:
        if _shares(call.func):
            return return_and_correct_aliasing(call.func, args, kwargs, self.ghosts(_on_meta(call.func, args, kwargs)))
        key = (call, torch.get_default_dtype())  # in which a base's own weights are made, and an adapter's are not
        if key not in self._known:
            out = _on_meta(call.func, args, kwargs)
            self._known[key] = _like(out)
            return self.ghosts(out)
        return self.ghosts(_made(self._known[key]))

    def ghosts(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._ghost(value)
        return type(value)(map(self.ghosts, value)) if isinstance(value, list | tuple) else value

    def _see(self, tensor: Tensor) -> int:
        """How many bytes the allocator asked the system for."""
        storage = tensor.untyped_storage()
        address = id(storage)
        if address in self._there:
            return 0
        size = storage.nbytes()
        before = 0 if self._allocator is None else self._allocator.held
        place = None if self._allocator is None or not size else self._allocator.take(size)

        def gone(_: Any) -> None:
            del self._there[address]
            self.live -= size
            if place is not None:
                self._allocator.free(place)  # type: ignore[union-attr]

        self._there[address] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
        if self._allocator is None:
            return 0
        self.held = max(self.held, self._allocator.held)
        return self._allocator.held - before


# ── operations ──────────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _shares(func: Any) -> bool:
    """Whether what comes out shares memory with what goes in, or is that."""
    return func._overloadpacket is aten._unsafe_view or any(each.alias_info for each in func._schema.returns)


def _stays_real(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation without ghosts is to be done: unless something large, or numbers to learn, come out."""
    try:
        out = [*tensors((_on_meta(func, args, kwargs),))]
    except (NotImplementedError, RuntimeError):  # what comes out depends on the values
        return True
    filled = func._overloadpacket in _FILLED
    return all(each.numel() <= REAL and not (filled and each.dtype.is_floating_point and each.dim()) for each in out)


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = _inner(args), {key: _inner(each) for key, each in kwargs.items()}
    if "device" in kwargs or not any(True for _ in tensors((*args, *kwargs.values()))):
        kwargs["device"] = META
    return _ON_META.get(func, func)(*args, **kwargs)


def _grouped(tokens: Tensor, weights: Tensor, *rest: Any, **more: Any) -> Any:
    """Products of runs of tokens, each with its expert's weight; on the meta device only bf16 is taken."""
    made = aten._grouped_mm.default(tokens.bfloat16(), weights.bfloat16(), *rest, **more)
    return made.to(tokens.dtype)


def _normed(tokens: Tensor, shape: Any, weight: Tensor | None, *rest: Any) -> Any:
    """Means and deviations are in the tokens' precision on a CPU, unless weights are in a higher one."""
    made, *about = aten.native_layer_norm.default(tokens, shape, weight, *rest)
    kind = tokens.dtype if weight is None else weight.dtype
    return made, *(each.to(kind) for each in about)


def _inner(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.inner if isinstance(value, Ghost) else value.to(META)
    return type(value)(map(_inner, value)) if isinstance(value, list | tuple) else value


def _like(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Layout(tuple(value.shape), value.stride(), value.dtype)
    return [*map(_like, value)] if isinstance(value, list | tuple) else value


def _made(value: Any) -> Any:
    if isinstance(value, Layout):
        return torch.empty_strided(value.size, value.stride, dtype=value.dtype, device=META)
    return tuple(map(_made, value)) if isinstance(value, list) else value


def _call(func: Any, args: Any, kwargs: Any) -> Call:
    """What an operation has in common with others that do the same work and of which the same comes out."""
    return Call(func, _told(args), _told(kwargs.items()))


def _told(value: Any) -> Any:
    if isinstance(value, Tensor):
        known = value.numel() <= FEW and value.dtype in _WHOLE and not isinstance(value, Ghost)
        values = tuple(value.flatten().tolist()) if known else None
        return Layout(tuple(value.shape), value.stride(), value.dtype, values)
    if isinstance(value, list | tuple | ItemsView):
        return tuple(map(_told, value))
    return Plain(type(value), value)


def _numbered(indices: Any) -> list[Any]:
    """Truth values, whose number decides over what comes out, as the places where they are true."""
    found: list[Any] = []
    for each in indices:
        real = isinstance(each, Tensor) and each.dtype == torch.bool and not isinstance(each, Ghost)
        found += each.nonzero().unbind(1) if real else [each]
    return found


def _scalar(tensor: Tensor) -> Any:
    """What Python reads of a ghost: there is some number, and nothing is the case."""
    if not isinstance(tensor, Ghost):
        return NotImplemented
    return False if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1


def _top(tensor: Tensor, count: int, *rest: Any, **more: Any) -> Any:
    """The best of ghosts: each choice is taken as often as any other."""
    if not isinstance(tensor, Ghost):
        return NotImplemented
    values, places = aten.topk.default(tensor.inner, count, *rest, **more)
    return type(tensor)(values), (torch.arange(places.numel()) % tensor.shape[-1]).view(places.shape)


def _counted(numbers: Tensor, *rest: Any) -> Any:
    """Whole numbers counted, as a GPU can and a CPU cannot."""
    if numbers.dtype.is_floating_point:
        return NotImplemented
    return aten.histc.default(numbers.float(), *rest).to(numbers.dtype)


_TOLD = {
    aten.histc.default: _counted,
    aten._local_scalar_dense.default: _scalar,
    aten.topk.default: _top,
    aten.is_pinned.default: lambda tensor, device=None: False,
}
_ON_META = {aten._grouped_mm.default: _grouped, aten.native_layer_norm.default: _normed}
_FILLED = {aten.empty, aten.empty_strided, aten.zeros, aten.ones, aten.full, aten.rand, aten.randn}
_WHOLE = (torch.int32, torch.int64)
_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


# ── a GPU that is not there ─────────────────────────────────────────────────────────────────────────────────────────


class _OnAGPU(TorchFunctionMode):
    """Whatever is to be on a GPU stays where ghosts are, and torch's attention is a kernel that keeps no scores."""

    def __init__(self, rehearsal: Rehearsal):
        super().__init__()
        self._rehearsal = rehearsal

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value, *rest = args
            return _Fused.apply(query, key, value, rest[0] if rest else kwargs.get("attn_mask"), self._rehearsal.work)
        if func is Tensor.backward:
            with self:  # what is computed once more within it is on a GPU, too
                (root,) = args
                return _engine_run_backward(
                    *((root,), (torch.ones_like(root),), False, False, ()), allow_unreachable=True, accumulate_grad=True
                )
        return func(*map(_here, args), **{name: _here(each) for name, each in kwargs.items()})


def _here(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == GPU.type else value


class _Fused(torch.autograd.Function):
    """It keeps queries, keys, values, the mask, the result, and a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, work: Counter) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, result, sums)
        ctx.work, ctx.flops = work, 4 * query.numel() * key.shape[-2]
        work[Work(ctx.flops, 4 * query.numel() * query.element_size())] += 1
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        ctx.work[Work(5 * ctx.flops // 2, 8 * query.numel() * query.element_size())] += 1  # scores are made anew
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None, None
