"""Fake tensors: a training step runs its own operations on them, which yield sizes, bytes and FLOPs, but no values.

A fake tensor has a shape, a dtype and autograd history. Within `DryRunMode` parameters are fake, and so is whatever is
computed with them; integers stay real, so that masks, positions and the choices of experts are what they would be.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import ItemsView
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from halka.estimating.costs import Call, Layout, Plain, Work, aten, is_free, tensors, work_of
from halka.models.attention.forest_flex import attend_by_flex, keys_of_tokens
from halka.models.attention.function import has_flash, takes_groups

REAL = 2**22  # values; larger integer tensors are fake, too
FEW = 64  # values of integers that make two calls differ, as the offsets of experts' tokens do
META = torch.device("meta")
GPU = torch.device("xpu")  # any GPU: of one that is "cuda", transformers would ask the driver for its capability


class FakeTensor(Tensor):
    """A tensor that claims to be on the CPU; `inner`, on the meta device, stands for its storage."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> FakeTensor:
        fake: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cpu"),
        )
        fake.inner = inner
        return fake

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FakeTensor({tuple(self.shape)}, {self.dtype})"

    def data_ptr(self) -> int:
        return id(self.inner)

    def __deepcopy__(self, memo: Any) -> Any:
        copy: Any = self.detach().clone().requires_grad_(self.requires_grad)
        copy._is_param = getattr(self, "_is_param", False)
        return copy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} got a fake tensor outside of its dry run")


class FakeGPUTensor(FakeTensor):
    """A fake tensor that claims to be on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU


class Allocator(Protocol):
    """Hands out memory: it holds more bytes than are in use."""

    held: int

    def take(self, size: int) -> int:
        """The place of a piece of `size` bytes."""
        ...

    def free(self, place: int) -> None: ...


class _Outcome(NamedTuple):
    """What comes of a call: that its tensors are real, else the layouts of its results, and its work."""

    outputs: Any = None
    work: Work | None = None
    real: bool = False


_VIEW = _Outcome()


class DryRunMode(TorchDispatchMode):
    """Within its block tensors are fake. `live` bytes of tensors exist now, `peak` at most since `reset`.

    allocator   a model of the allocator: `held` is the most bytes that it held since `reset`
    gpu         tensors claim to be on a GPU, whose attention kernel keeps no scores
    flash       whether the GPU has flash attention, the one kernel that takes grouped heads
    """

    def __init__(self, allocator: Allocator, *, gpu: bool = False, flash: bool = True):
        super().__init__()
        self.flash = flash
        self.live = self.peak = self.held = 0
        self.work: Counter[Work] = Counter()
        self._allocator = allocator
        self._storages: dict[int, Any] = {}  # address -> weak reference that sees the storage freed
        self._outcomes: dict[tuple[Call, bool, torch.dtype], _Outcome] = {}
        self._kind = FakeGPUTensor if gpu else FakeTensor
        self._gpu = gpu
        self._entered = ExitStack()

    def __enter__(self) -> DryRunMode:
        super().__enter__()
        if self._gpu:
            self._entered.enter_context(_FakeGPUMode(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.close()
        super().__exit__(*error)

    def reset(self) -> None:
        """Count `peak`, `held` and `work` from now on."""
        self.peak, self.held, self.work = self.live, self._allocator.held, Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # what is looked at here is none of the step's operations
            return self._dispatch(func, args, kwargs or {})

    def _dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in _REPLACED:
            result = _REPLACED[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in _INDEXING:
            args = (args[0], _integer_indices(args[1]), *args[2:])
        fake = any(isinstance(tensor, FakeTensor) for tensor in tensors((*args, *kwargs.values())))
        if fake and is_free(func):
            outcome, out = _VIEW, self._shared(func, args, kwargs)
        else:
            outcome = self._outcome_of(_call(func, args, kwargs), fake, args, kwargs)
            if outcome.real:
                out = func(*args, **kwargs)
            elif _in_place(func):
                out = args[0]
            else:
                out = self._shared(func, args, kwargs) if _shares(func) else self.fake(_from_layout(outcome.outputs))
        fresh = sum(self._track(it.inner if isinstance(it, FakeTensor) else it) for it in tensors((out,)))
        work = work_of(func, args, kwargs, out) if outcome.real else outcome.work
        if work is not None:
            self.work[work._replace(fresh=fresh) if fresh else work] += 1
        return out

    def _outcome_of(self, call: Call, fake: bool, args: Any, kwargs: Any) -> _Outcome:
        """What an operation does, looked at once for all calls that are equal: layers are alike."""
        key = (call, fake, torch.get_default_dtype())  # transformers sets it while it makes a base's weights
        if key not in self._outcomes:
            if not fake and _stays_real(call.func, args, kwargs):
                self._outcomes[key] = _Outcome(real=True)
            else:
                out = _on_meta(call.func, args, kwargs)
                self._outcomes[key] = _Outcome(_like(out), work_of(call.func, args, kwargs, out, call=call))
        return self._outcomes[key]

    def _shared(self, func: Any, args: Any, kwargs: Any) -> Any:
        return return_and_correct_aliasing(func, args, kwargs, self.fake(_on_meta(func, args, kwargs)))

    def fake(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._kind(value)
        return type(value)(map(self.fake, value)) if isinstance(value, list | tuple) else value

    def _track(self, tensor: Tensor) -> int:
        """Count a tensor's storage until it is freed; returns the bytes that the allocator asked the system for."""
        storage = tensor.untyped_storage()
        address = id(storage)
        if address in self._storages:
            return 0
        size = storage.nbytes()
        before = self._allocator.held
        place = self._allocator.take(size) if size else None

        def freed(_: Any) -> None:
            del self._storages[address]
            self.live -= size
            if place is not None:
                self._allocator.free(place)

        self._storages[address] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)
        self.held = max(self.held, self._allocator.held)
        return self._allocator.held - before


# ── operations ──────────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _shares(func: Any) -> bool:
    """Whether an operation returns its input or a view of it."""
    return func._overloadpacket is aten._unsafe_view or any(value.alias_info for value in func._schema.returns)


@functools.cache
def _in_place(func: Any) -> bool:
    """Whether an operation returns its first argument, of which it changes nothing but the values."""
    first, returned = func._schema.arguments[:1], func._schema.returns
    aliases = [it.alias_info for it in (*first, *returned)]
    return (
        len(aliases) == 2
        and all(alias is not None and alias.is_write for alias in aliases)
        and torch.Tag.inplace_view not in func.tags
    )


def _stays_real(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation on real tensors runs: unless its result is large, or floats that a parameter begins as."""
    try:
        out = [*tensors((_on_meta(func, args, kwargs),))]
    except (NotImplementedError, RuntimeError):  # the result's size depends on the values
        return True
    filled = func._overloadpacket in _FILLED
    return all(it.numel() <= REAL and not (filled and it.dtype.is_floating_point and it.dim()) for it in out)


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = _inner(args), {key: _inner(value) for key, value in kwargs.items()}
    if "device" in kwargs or not any(True for _ in tensors((*args, *kwargs.values()))):
        kwargs["device"] = META
    return _ON_META.get(func, func)(*args, **kwargs)


def _grouped(tokens: Tensor, weights: Tensor, *rest: Any, **more: Any) -> Any:
    """Grouped products of tokens and experts' weights, in bf16, which is all that the meta device takes."""
    product = aten._grouped_mm.default(tokens.bfloat16(), weights.bfloat16(), *rest, **more)
    return product.to(tokens.dtype)


def _normed(tokens: Tensor, shape: Any, weight: Tensor | None, *rest: Any) -> Any:
    """Layer norm as on a CPU: means and deviations are in the tokens' precision, unless weights are in a higher one."""
    normed, *statistics = aten.native_layer_norm.default(tokens, shape, weight, *rest)
    dtype = tokens.dtype if weight is None else weight.dtype
    return normed, *(statistic.to(dtype) for statistic in statistics)


def _inner(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.inner if isinstance(value, FakeTensor) else value.to(META)
    return type(value)(map(_inner, value)) if isinstance(value, list | tuple) else value


def _like(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Layout(tuple(value.shape), value.stride(), value.dtype)
    return [*map(_like, value)] if isinstance(value, list | tuple) else value


def _from_layout(value: Any) -> Any:
    if isinstance(value, Layout):
        return torch.empty_strided(value.size, value.stride, dtype=value.dtype, device=META)
    return tuple(map(_from_layout, value)) if isinstance(value, list) else value


def _call(func: Any, args: Any, kwargs: Any) -> Call:
    """The operation with its arguments' layouts: equal calls do the same work and have results of the same layout."""
    return Call(func, _described(args), _described(kwargs.items()))


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        readable = value.numel() <= FEW and value.dtype in _INTEGERS and not isinstance(value, FakeTensor)
        values = tuple(value.flatten().tolist()) if readable else None
        return Layout(tuple(value.shape), value.stride(), value.dtype, values)
    if isinstance(value, list | tuple | ItemsView):
        return tuple(map(_described, value))
    return Plain(type(value), value)


def _integer_indices(indices: Any) -> list[Any]:
    """Indices with boolean masks replaced by the places where they are true, whose number is the result's size."""
    integers: list[Any] = []
    for index in indices:
        mask = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        integers += index.nonzero().unbind(1) if mask else [index]
    return integers


def _scalar(tensor: Tensor) -> Any:
    """The value that Python reads from a fake tensor: 1, and False."""
    if not isinstance(tensor, FakeTensor):
        return NotImplemented
    return False if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1


def _top(tensor: Tensor, count: int, *rest: Any, **more: Any) -> Any:
    """The top values of a fake tensor, with real indices that choose each place equally often."""
    if not isinstance(tensor, FakeTensor):
        return NotImplemented
    values, places = aten.topk.default(tensor.inner, count, *rest, **more)
    return type(tensor)(values), (torch.arange(places.numel()) % tensor.shape[-1]).view(places.shape)


def _counted(numbers: Tensor, *rest: Any) -> Any:
    """A histogram of integers, which a GPU can compute and a CPU cannot."""
    if numbers.dtype.is_floating_point:
        return NotImplemented
    return aten.histc.default(numbers.float(), *rest).to(numbers.dtype)


_REPLACED = {
    aten.histc.default: _counted,
    aten._local_scalar_dense.default: _scalar,
    aten.topk.default: _top,
    aten.is_pinned.default: lambda tensor, device=None: False,
}
_ON_META = {aten._grouped_mm.default: _grouped, aten.native_layer_norm.default: _normed}
_FILLED = {aten.empty, aten.empty_strided, aten.zeros, aten.ones, aten.full, aten.rand, aten.randn}
_INTEGERS = (torch.int32, torch.int64)
_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


# ── a fake GPU ──────────────────────────────────────────────────────────────────────────────────────────────────────


class _FakeGPUMode(TorchFunctionMode):
    """Keeps on the CPU what is to be made on the fake GPU, and replaces attention by a fused kernel."""

    def __init__(self, mode: DryRunMode):
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value, *rest = args
            mask = rest[0] if rest else kwargs.get("attn_mask")
            causal = rest[2] if len(rest) > 2 else kwargs.get("is_causal", False)
            if kwargs.get("enable_gqa") and not (self._mode.flash and takes_groups(query, mask)):
                return _stored_scores(query, key, value, mask, causal=causal)
            keys = -(-key.shape[-2] // 2) if causal else key.shape[-2]  # kernels skip the half that no token sees
            return _FusedAttention.apply(query, key, value, mask, keys, self._mode.work)
        if func is has_flash:
            return self._mode.flash
        if func is attend_by_flex:
            query, key, value, blocks, *_ = args
            keys = min(key.shape[-2], keys_of_tokens(blocks))
            return _FusedAttention.apply(query, key, value, None, keys, self._mode.work)
        if func is Tensor.backward:
            with self:  # backward leaves the mode, and recomputation in it needs it, too
                (root,) = args
                return _engine_run_backward(
                    *((root,), (torch.ones_like(root),), False, False, ()), allow_unreachable=True, accumulate_grad=True
                )
        return func(*map(_on_cpu, args), **{name: _on_cpu(value) for name, value in kwargs.items()})


def _stored_scores(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Attention as torch's math kernel computes it, which is its last choice: scores of T × S are stored."""
    return aten._scaled_dot_product_attention_math.default(query, key, value, mask, 0.0, causal, enable_gqa=True)[0]


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == GPU.type else value


class _FusedAttention(torch.autograd.Function):
    """Attention that saves queries, keys, values, the mask, the result, and a number for each query and head.

    keys: how many a token's scores are computed for, on average.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, keys: int, work: Counter
    ) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, result, sums)
        ctx.work, ctx.flops = work, 4 * query.numel() * keys
        work[Work(ctx.flops, 4 * query.numel() * query.element_size())] += 1
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        ctx.work[Work(5 * ctx.flops // 2, 8 * query.numel() * query.element_size())] += 1  # it recomputes the scores
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None, None, None
