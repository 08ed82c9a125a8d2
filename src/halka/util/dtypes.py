"""The precisions that a base may have, by name."""

from __future__ import annotations

from typing import Literal, get_args

Dtype = Literal["bfloat16", "float32", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
