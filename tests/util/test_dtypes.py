"""The names of precisions."""

import pytest
import torch

from halka import HalkaError
from halka.util.dtypes import DTYPES, dtype_name


def test_torch_dtypes_and_names_get_the_same_name():
    for name in DTYPES:
        assert dtype_name(getattr(torch, name)) == dtype_name(name) == name
    assert dtype_name("auto", "auto") == "auto"
    assert dtype_name(torch.float64, "float64") == "float64"


@pytest.mark.parametrize("dtype", ["auto", "bf16", torch.int8, torch.float64])
def test_an_unknown_dtype_is_refused_with_the_names(dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(HalkaError, match=f"dtype '{name}' is none of bfloat16, float32, float16$"):
        dtype_name(dtype)
