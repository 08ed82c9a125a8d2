"""The names of precisions."""

import ast
from pathlib import Path

import pytest
import torch

import halka
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


def test_dtypes_are_not_compared_by_their_texts():
    paths = Path(halka.__file__).parent.rglob("*.py")
    compared = [
        node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Compare)
    ]
    texts = [
        part.value for node in compared for part in (node.left, *node.comparators) if isinstance(part, ast.Constant)
    ]
    assert len(texts) > 100
    assert not [text for text in texts if str(text).startswith("torch.")]
