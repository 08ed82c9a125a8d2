"""The precisions that a base may have, and the forms that its layers may be quantised to, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from halka.util.errors import HalkaError

if TYPE_CHECKING:
    import torch

Dtype = Literal["bfloat16", "float32", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Quantize = Literal["nf4", "int8"]


def dtype_name(dtype: str | torch.dtype, *others: str) -> str:
    """The name of a precision: bfloat16 for "bfloat16" and for torch.bfloat16.

    Raises HalkaError that lists the names for one that is neither in `DTYPES` nor in `others`.
    """
    name, names = str(dtype).removeprefix("torch."), (*DTYPES, *others)
    if name not in names:
        raise HalkaError(f"dtype {name!r} is none of {', '.join(names)}")
    return name
