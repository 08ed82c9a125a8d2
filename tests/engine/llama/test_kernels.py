"""Each kernel computes the line of torch in its docstring, in fp32 and in bf16."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from llvmlite.binding import Linkage
from numba.core import caching, config
from numba.core.dispatcher import Dispatcher
from torch import Tensor

from halka.engine.llama import kernels
from halka.engine.llama.product import MANY, WIDE, Product
from halka.engine.llama.row_adapter import ACTIVATION_NAMES, READS
from halka.kernels import layers
from halka.kernels.compiled import kernel as compiling
from halka.kernels.shared import array_of, shared
from halka.methods.bottleneck import ACTIVATIONS
from halka.models.attention.function import grouped_products
from halka.models.attention.paged import ALWAYS, SIZE, KVBlocks, PagedPlan, PagedText
from halka.models.attention.paged_groups import Products, groups_of
from halka.util.float32_linear import FEWEST
from numbers_for_tests import random

DTYPES = [torch.float32, torch.bfloat16]
NO_SCALE = np.empty(0, np.float32)


def whole_numbers(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """An int8 weight, from -127 to 127, and its scale."""
    values = torch.randint(-127, 128, (outputs, inputs), generator=torch.Generator().manual_seed(4), dtype=torch.int8)
    return values, random(outputs, seed=5) / 100


def assert_close(a: Tensor, b: Tensor, dtype: torch.dtype) -> None:
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(a.float(), b.float(), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_residual(dtype):
    x, y, weight = random(5, 48), random(5, 48, dtype=dtype, seed=1), random(48, dtype=dtype, seed=2)
    h, expected = torch.empty(5, 48, dtype=dtype), x + y.float()
    kernels.add_norm(2, array_of(x), array_of(y), array_of(weight), np.float32(1e-5), array_of(h))
    torch.testing.assert_close(x, expected)
    assert_close(h, F.rms_norm(expected, (48,), weight.float(), 1e-5), dtype)
    kernels.add_norm(2, array_of(x), array_of(y[:0]), array_of(weight), np.float32(1e-5), array_of(h))
    torch.testing.assert_close(x, expected)


def test_kernels_have_no_function_in_common():
    """With one, a kernel's bits would depend on which of them this process compiled or loaded first."""
    x, nothing = random(2, 48), random(0, 48)
    kernels.add_norm(1, array_of(x), array_of(nothing), array_of(x[0]), np.float32(1e-5), array_of(torch.empty(2, 48)))
    layers.silu_gate(1, array_of(x), array_of(x), array_of(torch.empty(2, 48)))
    for kernel in [*(getattr(kernels, name) for name in kernels.__all__), *vars(layers).values()]:
        for compiled in kernel.overloads.values() if isinstance(kernel, Dispatcher) else ():
            code, own = compiled.library._get_module_for_linking(), compiled.fndesc
            shared_by_name = {
                function.name
                for function in code.functions
                if not function.is_declaration and function.linkage != Linkage.internal
            }
            assert shared_by_name <= {own.llvm_func_name, own.llvm_cpython_wrapper_name}, own.qualname


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu(dtype):
    y, z = random(3, 2 * 40, dtype=dtype) * 30, torch.empty(3, 40, dtype=dtype)
    y[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -90.0])
    kernels.silu_product(2, array_of(y), array_of(z))
    gate, up = y.float().chunk(2, -1)
    assert_close(z, F.silu(gate) * up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_product(dtype):
    weight, x, y = random(31, 48, dtype=dtype), random(48, dtype=dtype, seed=1), torch.empty(31, dtype=dtype)
    kernels.product(3, array_of(weight), NO_SCALE, array_of(x), array_of(y))
    assert_close(y, weight.float() @ x.float(), dtype)
    values, scale = whole_numbers(31, 48)
    kernels.product(3, array_of(values), array_of(scale), array_of(x), array_of(y))
    assert_close(y, values.float() @ x.float() * scale, dtype)


@pytest.mark.skipif(not kernels.PAIRS, reason="this processor does not multiply pairs of bf16")
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(1, 5, 2), (3, 12, 8), (16, 31, 48), (70, 100, 34)])
def test_products_of_pairs(tokens, outputs, inputs):
    """Tokens and outputs that fill registers and tiles, or do not."""
    dtype = torch.bfloat16
    x, weight = random(tokens, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype, seed=1)
    bias, y = random(outputs, dtype=dtype, seed=2), torch.empty(tokens, outputs, dtype=dtype)
    for own in (bias, bias[:0]):
        kernels.products(2, array_of(x), array_of(weight), NO_SCALE, array_of(own), array_of(y))
        assert_close(y, x.float() @ weight.float().mT + (own.float() if len(own) else 0), dtype)
    values, scale = whole_numbers(outputs, inputs)
    kernels.products(2, array_of(x), array_of(values), array_of(scale), array_of(bias), array_of(y))
    assert_close(y, x.float() @ values.float().mT * scale + bias.float(), dtype)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_products_of_many_tokens_are_in_float32_where_bf16_is_slow(pairs, biased):
    """Rounded once, after scale and bias; of fewer tokens as ever."""
    few = WIDE if pairs else FEWEST
    x, weight = random(few, 48, dtype=torch.bfloat16), random(100, 48, dtype=torch.bfloat16, seed=1)
    bias = random(100, dtype=torch.bfloat16, seed=2) if biased else None
    values, scale = whole_numbers(100, 48)
    for own, its_scale in ((weight, None), (values, scale)):
        product = Product(own, its_scale, bias, pairs and kernels.PAIRS, x.dtype, slow=True)
        expected = x.float() @ own.float().mT
        expected = expected if its_scale is None else expected * its_scale
        expected = expected if bias is None else expected + bias.float()
        y = torch.zeros(few, 100, dtype=torch.bfloat16)
        product(1, shared(x), shared(y))
        torch.testing.assert_close(y.float(), expected, rtol=1.01 * 2**-8, atol=1e-4)
        product(1, shared(x[: few - 1]), shared(y[1:]))
        assert_close(y[1:], expected[:-1], torch.bfloat16)


@pytest.mark.parametrize("tokens", [1, 5, MANY + 1])
@pytest.mark.skipif(not kernels.PAIRS, reason="this processor does not multiply pairs of bf16")
def test_products_in_fp32_of_bf16_states_are_not_rounded(tokens):
    x, weight = random(tokens, 48, dtype=torch.bfloat16), random(100, 48, dtype=torch.bfloat16, seed=1)
    y = torch.zeros(tokens, 100)
    Product(weight, None, None, kernels.PAIRS, x.dtype)(1, shared(x), shared(y))
    torch.testing.assert_close(y, x.float() @ weight.float().mT, rtol=1e-5, atol=1e-5)


def test_states_too_wide_for_a_threads_stack_are_torchs():
    """Those of a base of 70 billion parameters, in a thread with as little stack as any has."""
    x, weight = random(5, 28672, dtype=torch.bfloat16), random(20, 28672, dtype=torch.bfloat16, seed=1) / 100
    y = torch.zeros(5, 20, dtype=torch.bfloat16)
    assert x.shape[1] > kernels.WIDEST
    product, size = Product(weight, None, None, kernels.PAIRS, x.dtype), threading.stack_size(2**21)
    try:
        thread = threading.Thread(target=product, args=(1, shared(x), shared(y)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(size)
    assert_close(y, x.float() @ weight.float().mT, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_products_are_packed(dtype):
    """Bit for bit as torch rounds them, also where the scale is no power of 2."""
    shapes, scales = ((4, 33, 20), (1, 7, 9)), (2.0, 1 / 3)
    factors = [(random(R, I, seed=R), random(O, R, seed=O)) for R, I, O in shapes]
    packed = [(torch.empty(R, I, dtype=dtype), torch.empty(R, O, dtype=dtype)) for R, I, O in shapes]
    addresses, own = (np.array([[each.data_ptr() for each in pair] for pair in both]) for both in (factors, packed))
    ranks, widths = np.array([[R] for R, *_ in shapes]), np.array([pair for _, *pair in shapes])
    slots, like = np.hstack([own, ranks]), array_of(torch.empty(0, dtype=dtype))
    kernels.pack_low_rank(2, addresses, widths, np.array(scales, np.float32), slots, like)
    for (A, B), (own_A, own_B), scale in zip(factors, packed, scales, strict=True):
        assert torch.equal(own_A, A.to(dtype))
        assert torch.equal(own_B, (B.to(dtype) * scale).mT)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_products_of_several_adapters(dtype, pieces):
    """Ragged ranks, a slot without any, tokens without an adapter, two tokens of one."""
    widths, inputs, ranks = (20, 7, 9), 33, ((4, 0, 3), (1, 16, 2))
    table = np.zeros((2, 2, 7, 3), np.int64)
    matrices = {}
    for adapter, own in enumerate(ranks):
        for slot, rank in enumerate(own):
            A = random(rank, inputs, dtype=dtype, seed=10 * adapter + slot)
            B = random(rank, widths[slot], dtype=dtype, seed=10 * adapter + slot + 5)
            matrices[adapter, slot] = A, B
            table[adapter, 1, 3 + slot] = A.data_ptr(), B.data_ptr(), rank
    x, y = random(5, inputs, dtype=dtype), random(5, sum(widths), dtype=dtype, seed=1)
    owner = [1, -1, 0, 1, 0]
    expected = y.float().clone()
    for n, adapter in enumerate(owner):
        if adapter >= 0:
            products = [x[n].float() @ A.float().mT @ B.float() for A, B in (matrices[adapter, s] for s in range(3))]
            expected[n] += torch.cat(products)
    places = np.flatnonzero(np.array(owner) >= 0)
    arguments = (table, places, np.array(owner)[places], 1, 3, np.array(widths), pieces)
    kernels.add_low_rank(2, array_of(x), array_of(y), *arguments)
    assert_close(y, expected, dtype)


@pytest.mark.skipif(not kernels.PAIRS, reason="this processor does not multiply pairs of bf16")
@pytest.mark.parametrize("pieces", [1, 3])
def test_low_rank_products_of_chunks(pieces):
    """Ragged and odd ranks, a slot without any, outputs and tokens that fill tiles, or do not."""
    dtype, widths, inputs = torch.bfloat16, (70, 7, 32), 34
    table, chunks = np.zeros((2, 2, 7, 3), np.int64), ((0, 0, 32), (1, 32, 45), (0, 47, 48))
    x, y = random(50, inputs, dtype=dtype), random(50, sum(widths), dtype=dtype, seed=1)
    expected, kept = y.float().clone(), []
    for adapter, own in enumerate(((4, 0, 3), (1, 16, 40))):
        for slot, rank in enumerate(own):
            A = random(rank, inputs, dtype=dtype, seed=10 * adapter + slot)
            B = random(rank, widths[slot], dtype=dtype, seed=10 * adapter + slot + 5)
            kept.append((A, B))
            table[adapter, 1, 3 + slot] = A.data_ptr(), B.data_ptr(), rank
            for _, start, end in (chunk for chunk in chunks if chunk[0] == adapter):
                inner = (x[start:end].float() @ A.float().mT).to(dtype)
                expected[start:end].split(widths, 1)[slot].add_(inner.float() @ B.float())
    arguments = (table, *np.array(chunks).T.copy(), 1, 3, np.array(widths), pieces)
    kernels.add_low_rank_chunks(2, array_of(x), array_of(y), *arguments)
    assert_close(y, expected, dtype)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bottlenecks_of_several_adapters(dtype, activation, reads):
    """Ragged widths, an adapter without any, tokens without an adapter, two tokens of one."""
    width, table, matrices = 33, np.zeros((3, 2, 4, 7), np.int64), {}
    kind = READS.index(reads), ACTIVATION_NAMES.index(activation)
    for adapter, rank in ((0, 5), (2, 16)):
        sizes = (rank, width), (rank,), (rank, width), (width,)
        own = [random(*size, dtype=dtype, seed=10 * adapter + seed) for seed, size in enumerate(sizes)]
        matrices[adapter] = own
        table[adapter, 1, 2] = *(tensor.data_ptr() for tensor in own), rank, *kind
    h, y = (random(6, width, dtype=dtype, seed=seed) for seed in (1, 2))
    x, owner = random(6, width, seed=3), [2, -1, 0, 1, 2, 0]
    read = {"output": y.float(), "input": h.float(), "residual": x, "sum": x + y.float()}[reads]
    expected = y.float().clone()
    for n, adapter in enumerate(owner):
        if adapter in matrices:
            D, b, U, c = (tensor.float() for tensor in matrices[adapter])
            expected[n] += ACTIVATIONS[activation](D @ read[n] + b) @ U + c
    places = np.flatnonzero(np.array(owner) >= 0)
    kernels.add_bottlenecks(2, array_of(h), array_of(x), array_of(y), table, places, np.array(owner)[places], 1, 2)
    torch.testing.assert_close(y.float(), expected, rtol=2e-5 if dtype == torch.float32 else 1e-2, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_of_several_adapters(dtype):
    """A slot without any, a token without an adapter, two tokens of one."""
    widths, owner, table = (20, 7, 9), [1, -1, 0, 1], np.zeros((2, 2, 9, 1), np.int64)
    y, own = random(4, sum(widths), dtype=dtype), {}
    factors = torch.ones(2, sum(widths))
    for adapter, slot in ((0, 0), (0, 2), (1, 1)):
        own[adapter, slot] = random(widths[slot], dtype=dtype, seed=3 * adapter + slot)
        table[adapter, 1, 4 + slot] = own[adapter, slot].data_ptr()
        factors[adapter].split(widths)[slot].copy_(own[adapter, slot])
    expected = torch.stack([row * factors[it] if it >= 0 else row for row, it in zip(y.float(), owner, strict=True)])
    places = np.flatnonzero(np.array(owner) >= 0)
    kernels.scale(2, array_of(y), table, places, np.array(owner)[places], 1, 4, np.array(widths))
    assert_close(y, expected, dtype)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_and_keys_are_turned_and_kept(dtype, normed):
    queries, heads, width = 4, 2, 8
    y, angles = random(3, (queries + 2 * heads) * width, dtype=dtype), random(3, width // 2, seed=1).repeat(1, 2)
    norms = [random(width if normed else 0, dtype=dtype, seed=seed) for seed in (2, 3)]
    kv, q = KVBlocks(3, (4, heads, width), dtype), torch.empty(3, queries, width, dtype=dtype)
    kv.clear(range(3))
    expected = kv.data.clone()
    slots = torch.tensor([2, SIZE + 5, 2 * SIZE + 15])
    kernels.keep(
        *(2, array_of(y), *map(array_of, norms), np.float32(1e-5), angles.cos().numpy(), angles.sin().numpy()),
        *(array_of(kv.data), 1, slots.numpy(), array_of(q)),
    )
    own = y.float().view(3, -1, width).split([queries, heads, heads], dim=1)
    turned = []
    for states, weight in zip(own[:2], norms, strict=True):
        x = F.rms_norm(states, (width,), weight.float(), 1e-5) if normed else states
        half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
        turned.append(x * angles.cos()[:, None] + half * angles.sin()[:, None])
    assert_close(q, turned[0], dtype)
    twin = KVBlocks(3, (4, heads, width), dtype)
    twin.data = expected
    twin.write(1, slots // SIZE, slots % SIZE, turned[1].to(dtype), own[2].to(dtype))
    assert_close(kv.data, twin.data, dtype)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("queries", "heads", "width"), [(6, 2, 8), (10, 2, 64), (3, 1, 64), (4, 2, 32), (2, 2, 96)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_to_blocks(dtype, queries, heads, width, window, pieces):
    """Texts of several lengths, with virtual blocks and shared ones; one text has a chunk in the line."""
    kv = KVBlocks(28, (4, heads, width), dtype)
    kv.data.copy_(random(*kv.data.shape))
    many = range(20)  # blocks, more than are computed at a time
    texts = [
        PagedText(1, (5,), (3,), (0,)),
        PagedText(4, (1, 2), (SIZE, 9), (0, SIZE)),
        PagedText(1, (7, 1, 3), (6, SIZE, 2), (ALWAYS, 6, 6 + SIZE)),
        PagedText(1, (7, 1, 4, 6), (6, SIZE, SIZE, 1), (ALWAYS, 6, 6 + SIZE, 6 + 2 * SIZE)),
        PagedText(1, [8 + m for m in many], [SIZE for _ in many], [SIZE * m for m in many]),
    ]
    positions = [2, 21, 22, 23, 24, 7 + SIZE, 6 + 2 * SIZE, 20 * SIZE - 1]
    plan = PagedPlan(kv, texts, positions, [0] * 8, [8])
    q, out = random(8, queries, width, dtype=dtype, seed=3), torch.zeros(8, queries * width, dtype=dtype)
    places, singles = np.array([0, 5, 6, 7]), np.array([0, 2, 3, 4])
    kernels.attend(
        *(2, array_of(q), array_of(kv.data), 1, places, singles, plan.tables.numpy(), plan.counts.numpy()),
        *(
            plan.begins.numpy(),
            plan.positions.numpy(),
            window or 0,
            np.float32(0.4),
            *kernels.partial_sums(4, pieces, queries, width),
            array_of(out),
        ),
    )
    expected = torch.zeros(8, queries * width)
    for group in groups_of(plan, Products(queries, window=window)):
        if (own := group.places).shape[1] == 1:
            keys, values = (tensor.float() for tensor in kv.read(1, *group.strips))
            attended = grouped_products(q[own].float().transpose(1, 2), keys, values, group.mask, 0.4)
            expected[own[:, 0]] = attended.flatten(1)
    assert_close(out, expected, dtype)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_no_threads_but_torch_s():
    code = (
        "import os, numpy as np, torch; from halka.engine.llama import kernels\n"
        "x = np.ones((2, 8), np.float32)\n"
        "kernels.add_norm(1, x, x, x[0], np.float32(0), x)  # what compiles may have threads\n"
        "torch.ones(999, 999) @ torch.ones(999, 999); before = os.listdir('/proc/self/task')\n"
        "kernels.add_norm(2, x, x, x[0], np.float32(0), x)\n"
        "print(len(os.listdir('/proc/self/task')) - len(before), torch.get_num_threads())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == ["0", "2"]


def test_code_is_kept_in_halkas_cache_where_numba_may_write_nowhere(monkeypatch, tmp_path):
    """As a service whose source is read-only and who has no home."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [caching.UserProvidedCacheLocator])
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv("HALKA_CACHE", str(tmp_path))

    def double(x):
        return 2 * x

    kept = compiling(double)
    assert Path(kept._cache.cache_path).is_relative_to(tmp_path / "numba")
    monkeypatch.setattr(config, "CACHE_DIR", "")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HALKA_CACHE", str(tmp_path / "file"))
    assert compiling(double)._cache.cache_path is None
