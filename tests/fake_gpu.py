"""Two devices, `gpu:0` and `gpu:1`, for tests: tensors there are computed on the CPU, and must not meet the CPU's.

They show where tensors are put, what the host waits for, and how many operations a device is given. They stand at
torch's place for devices of others (PrivateUse1), so code meets them as it meets any GPU: `tensor.device.type` is
"gpu", and an operation on tensors of two devices raises RuntimeError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from halka.estimating.costs import is_free

NAME = "gpu"
aten: Any = torch.ops.aten

COPIES = {aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default, aten._copy_from.default}
EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty}
WAITS = {  # what a GPU's result must be known for before the host goes on
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default),
    *(aten._unique2.default, aten.bincount.default, aten.is_nonzero.default),
}


class Seen:
    """What was asked of the fake GPUs since `watching` began: how often the host waited, for what; operations."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.in_float64: Counter[str] = Counter()  # operations, which Apple's GPUs have not
        self.launches = 0  # operations that compute something: no views, no empty tensors
        self.seeds: list[tuple[int, int]] = []  # by device


_seen = Seen()


@contextmanager
def watching() -> Iterator[Seen]:
    """Within the block what is asked of the fake GPUs is counted."""
    global _seen
    before, _seen = _seen, Seen()
    try:
        yield _seen
    finally:
        _seen = before


class FakeGPUTensor(Tensor):
    """A tensor on a fake GPU; `inner`, on the CPU, has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> FakeGPUTensor:
        with torch.inference_mode(False):  # a view of an inference tensor cannot be wrapped
            tensor: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=device,
            )
        tensor.inner = inner
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FakeGPUTensor({self.inner}, {self.device})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: Any) -> Any:
        copy: Any = self.detach().clone().requires_grad_(self.requires_grad)
        copy._is_param = getattr(self, "_is_param", False)
        return copy

    def tolist(self) -> Any:
        _seen.waits["tolist"] += 1
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """The operation on the CPU, its result on the device of its arguments."""
    if func is aten._fused_sdp_choice.default:
        return 0  # of torch's kernels for attention, the one of plain operations
    if func._overloadpacket is aten.to:  # as inference mode calls it: a copy, or nothing
        return func.decompose(*args, **kwargs)
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    places = {tensor.device for tensor in tensors if tensor.dim() or tensor.device.type == NAME}
    asked = kwargs.get("device")
    if func in COPIES:
        _count_copy(func, args, kwargs, tensors)
        place = torch.device(asked) if asked is not None else tensors[0].device
        if func is aten._foreach_copy_.default and len({tensor.device for tensor in args[0]}) > 1:
            raise RuntimeError(f"{func} to several devices, which torch does one by one")
    else:
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            indices = [index for index in args[1] if index is not None]
            places = {args[0].device, *(index.device for index in indices if index.device.type != "cpu")}
            places |= {values.device for values in args[2:3] if values.dim()}
            if any(index.dtype == torch.bool or index.device.type == "cpu" for index in indices):
                _seen.waits[f"{func} by a mask, or from the CPU"] += 1
        if len(places) > 1:
            raise RuntimeError(f"{func} of tensors on {', '.join(sorted(map(str, places)))}")
        place = torch.device(asked) if asked is not None else next(iter(places))
        waits = func in WAITS or (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None)
        if waits:
            _seen.waits[str(func)] += 1
    _seen.operations[str(func)] += 1
    _seen.launches += not is_free(func) and func._overloadpacket not in EMPTY
    place = torch.device(NAME, 0) if place.type == NAME and place.index is None else place
    inner = tree_map(_inner, args)
    if func is aten.histc.default and not inner[0].is_floating_point():
        inner = (inner[0].float(), *inner[1:])  # the CPU counts no whole numbers
    out = func(*inner, **tree_map(_inner, kwargs))
    if any(isinstance(it, Tensor) and it.dtype == torch.float64 for it in tree_flatten(out)[0]) and place.type == NAME:
        _seen.in_float64[str(func)] += 1
    wrapped = tree_map(
        lambda it: FakeGPUTensor(it, place) if isinstance(it, Tensor) and place.type == NAME else it, out
    )
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if place.type == NAME else wrapped


def _count_copy(func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """A copy between host and GPU waits unless it is said not to."""
    target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else tensors[0].device.type
    sides = {target, *(tensor.device.type for tensor in tensors)}
    waits = not kwargs.get("non_blocking", func is aten.copy_.default and len(args) > 2 and args[2])
    if waits and len(sides) > 1:
        _seen.waits["a copy between CPU and GPU"] += 1


def _inner(value: Any) -> Any:
    if isinstance(value, FakeGPUTensor):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


class _Module(_DummyBackendModule):
    """What torch asks of a kind of device. Its random numbers are a state for each device that nothing draws from."""

    def __init__(self) -> None:
        self.current, self.present = 0, False
        self.states = [0, 0]

    def is_available(self) -> bool:
        return self.present

    def device_count(self) -> int:
        return 2 * self.present

    def current_device(self) -> int:
        return self.current

    @contextmanager
    def device(self, device: torch.device | int) -> Iterator[None]:
        before, self.current = self.current, self._number(device)
        try:
            yield
        finally:
            self.current = before

    def get_rng_state(self, device: torch.device | int | None = None) -> int:
        return self.states[self._number(device)]

    def set_rng_state(self, state: int, device: torch.device | int | None = None) -> None:
        self.states[self._number(device)] = state

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def _number(self, device: torch.device | int | None) -> int:
        if isinstance(device, int):
            return device
        return self.current if device is None or device.index is None else device.index

    def manual_seed(self, seed: int) -> None:
        self.states[self.current] = seed
        _seen.seeds.append((self.current, seed))

    def manual_seed_all(self, seed: int) -> None:
        for device in range(len(self.states)):
            with self.device(torch.device(NAME, device)):
                self.manual_seed(seed)

    def _is_in_bad_fork(self) -> bool:
        return False


@contextmanager
def present() -> Iterator[None]:
    """Within the block this machine has the fake GPUs. Torch knows their kind for the rest of the process."""
    module = _installed()
    module.present = True
    try:
        yield
    finally:
        module.present = False


@cache
def _installed() -> _Module:
    global _library
    module = _Module()
    _setup_privateuseone_for_python_backend(NAME, backend_module=module)
    _library = torch.library.Library("_", "IMPL")
    _library.fallback(_run, "PrivateUse1")
    return module
