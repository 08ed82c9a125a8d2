"""FlexAttention is compiled once for each kind of call; where torch cannot compile it, other kernels compute.

On a CPU it has no gradient, and other backends stand for torch's compiler: what is traced, how often, and what follows
from an error is as on a GPU. `test_gpu.py` has the kernels themselves.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from halka.estimating.allocator import AllocatorModel
from halka.estimating.fake_tensors import DryRunMode
from halka.models.attention.flex_kernels import FEW, FlexKernels
from halka.models.attention.forest import ForestPlan
from halka.models.attention.function import attend, attend_to_forest
from halka.models.attention.layer_stack import LayerMemory
from halka.models.attention.scoring import Scoring
from halka.util.forest import Forest

VIRTUAL = 20


def tree(first: int) -> Forest:
    lengths = (first, first + 40, 30)
    return Forest(lengths, (-1, 0, 0), (sum(lengths),))


def line(*runs: int) -> Forest:
    """A text for each run."""
    return Forest(runs, (-1,) * len(runs), runs)


def agree(
    kernels: FlexKernels,
    forest: Forest,
    window: int | None = None,
    softcap: float | None = None,
    virtual: bool = False,
    heads: int = 4,
) -> None:
    """Queries, keys and values lie as layers compute them, token by token."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, forest.tokens, count, 16, generator=generator).transpose(1, 2) for count in (heads, 2, 2)
    )
    keys, values = (torch.randn(1, 2, VIRTUAL, 16, generator=generator) for _ in range(2))
    memory, plan = LayerMemory(keys, values, None) if virtual else None, ForestPlan(forest)
    scoring = Scoring(0.3, softcap=softcap, window=window)
    ours, expected = (
        attend_to_forest(query, key, value, plan, scoring, memory, way, kernels) for way in ("flex", "dense")
    )
    torch.testing.assert_close(ours, expected)


def test_every_kind_of_call_is_compiled_once_for_forests_of_all_sizes():
    """More kinds than torch compiles of one function, eight, before it runs the rest uncompiled."""
    counted = CompileCounter()
    kernels = FlexKernels(counted)
    for several, single in ((260, 11), (360, 15)):
        for window, softcap, virtual in product((None, 40), (None, 30.0), (False, True)):
            agree(kernels, tree(several), window, softcap, virtual)
        agree(kernels, tree(single))
        with torch.no_grad():
            agree(kernels, tree(several))
    assert counted.frame_count == 8 + 2


def test_a_count_of_blocks_is_none_of_heads_and_no_width():
    """Although the first line has as many blocks as there are heads: what equals is not taken for the same."""
    counted = CompileCounter()
    kernels = FlexKernels(counted)
    for tokens in (4 * 128, 2 * 128 - 7, 3 * 128, 16 * 128):
        agree(kernels, line(tokens))
    assert counted.frame_count == 1


def test_runs_of_a_line_are_of_one_kind():
    counted = CompileCounter()
    kernels = FlexKernels(counted)
    for runs in ((200, 500, 260), (300,), (140, 30, 150), (40,)):
        agree(kernels, line(*runs))
    assert counted.frame_count == 2  # one for runs of fewer tokens than a block


class Inductor:
    """Stands for it: asks what it asks of a line's tokens, and compiles what `refuses` does not refuse.

    compiled   of each graph whether it is for few tokens, and torch's options
    """

    def __init__(self, refuses):
        self.refuses, self.compiled = refuses, []

    def __call__(self, graph, _):
        (node,) = [node for node in graph.graph.nodes if "flex_attention" in str(node.target)]
        tokens, options = node.args[0].meta["example_value"].shape[2], node.args[6]
        few = bool(tokens < FEW)  # for which torch compiles anew
        if reason := self.refuses(tokens, options):
            raise RuntimeError(reason)
        self.compiled.append((few, options))
        return graph.forward


def test_lines_of_fewer_tokens_than_a_block_take_the_same_kernel_and_are_a_kind_of_their_own():
    """Instead of the kernel of decoding, which has no tiles for 4 times 100 tokens (pytorch#185349)."""

    def of_decoding(tokens, options):
        return tokens < FEW and not options.get("FORCE_USE_FLEX_ATTENTION") and "NoValidChoicesError"

    inductor = Inductor(of_decoding)
    kernels = FlexKernels(inductor)
    for tokens in (300, 100, 40, 300):
        agree(kernels, line(tokens), heads=8)
    assert [few for few, _ in inductor.compiled] == [False, True]
    assert all("fwd_BLOCK_M" not in options for _, options in inductor.compiled)


@pytest.mark.parametrize("small_fits", [True, False])
def test_a_kind_that_torch_compiles_anew_is_tried_as_in_its_first_call(small_fits):
    def of_another_size(tokens, options):
        return tokens < 300 and not (small_fits and "fwd_BLOCK_M" in options) and "out of resource: shared memory"

    kernels = FlexKernels(Inductor(of_another_size))
    agree(kernels, line(400))
    with nullcontext() if small_fits else pytest.warns(UserWarning, match="torch cannot compile FlexAttention"):
        agree(kernels, line(200))
    agree(kernels, line(400))
    agree(kernels, line(250))


def no_compiler(*_):
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")


@pytest.mark.parametrize(("window", "softcap", "virtual"), [(None, None, False), (7, None, True), (7, 30.0, True)])
def test_where_torch_compiles_nothing_other_kernels_compute_and_one_warning_says_so(window, softcap, virtual):
    kernels = FlexKernels(no_compiler)
    reason = (
        r"FlexAttention for cpu \(.*RuntimeError: Failed to find C compiler.*\), so .* "
        r"needs Triton, a C compiler and tiles that fit the GPU's shared memory$"
    )
    with pytest.warns(UserWarning, match=reason):
        agree(kernels, tree(12), window, softcap, virtual)
    agree(kernels, tree(12), window, softcap, virtual)  # without another warning, which would be an error
    agree(kernels, tree(150))


def test_on_a_python_for_which_torch_compiles_nothing_other_kernels_compute(monkeypatch):
    def unsupported(*_, **options):
        raise RuntimeError("torch.compile is not supported on Python 3.15+")

    monkeypatch.setattr(torch, "compile", unsupported)
    kernels = FlexKernels()
    with pytest.warns(UserWarning, match=r"FlexAttention for cpu \(torch.compile is not supported on Python 3.15\+\)"):
        agree(kernels, tree(12))
    agree(kernels, tree(12))


def test_tiles_that_are_too_large_for_the_gpu_are_made_smaller():
    options = []

    def with_little_shared_memory(graph, _):
        (node,) = [node for node in graph.graph.nodes if "flex_attention" in str(node.target)]
        options.append(node.args[6])
        if "fwd_BLOCK_M" not in options[-1]:
            raise RuntimeError(
                "No valid triton configs. OutOfMemoryError: out of resource: Required: 131072 Limit: 101376"
            )
        return graph.forward

    agree(FlexKernels(with_little_shared_memory), tree(12))
    assert len(options) == 2
    assert {key: options[1][key] for key in ("fwd_BLOCK_N", "bwd_BLOCK_M1", "num_stages")} == {
        **{"fwd_BLOCK_N": 32, "bwd_BLOCK_M1": 16, "num_stages": 1}
    }


def test_memory_that_ran_out_is_no_missing_compiler():
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(RuntimeError, match="out of memory"):
        agree(FlexKernels(full), tree(12))


@pytest.mark.parametrize(("softcap", "virtual"), [(None, 0), (30.0, 0), (None, 20)])
def test_a_gpu_keeps_neither_scores_nor_a_mask_of_one_text(softcap, virtual):
    """On an estimate's GPU, whose kernels keep none: torch's causal kernel, or FlexAttention."""
    module: Any = SimpleNamespace(layer_idx=0, is_causal=True)
    half: Any = {"dtype": torch.bfloat16}
    with DryRunMode(AllocatorModel(), gpu=True) as mode:
        query, key, value = (torch.randn(1, heads, 1800, 16, **half).requires_grad_() for heads in (2, 1, 1))
        keys, values = (torch.randn(1, 1, virtual, 16, **half) for _ in range(2))
        memory = [LayerMemory(keys, values, None)] if virtual else None
        plan = ForestPlan(Forest((1800,), (-1,), (1800,)), query.device)
        mask = plan.inputs["attention_mask"]
        mode.reset()
        before = mode.live
        output, _ = attend(module, query, key, value, mask, softcap=softcap, memory=memory, forest=plan)
        assert output.shape == (1, 1800, 2, 16)
        assert mode.peak - before < 1800 * 1800
