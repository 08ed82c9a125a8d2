"""A line of segments computes what each of its rows computes alone, whichever way attention goes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from halka.models.attention.forest import ForestPlan
from halka.models.attention.forest_flex import BLOCK, attend_by_flex, block_mask
from halka.models.attention.forest_groups import groups_of
from halka.models.attention.forest_products import LARGE, TILE
from halka.models.attention.function import attend, attend_to_forest, use_attention, way_of_forest
from halka.models.attention.layer_stack import LayerMemory
from halka.models.attention.scoring import Scoring
from halka.util.forest import Forest
from tiny import CONFIGS, WINDOWED, tiny, windowed
from torch_calls import torch_calls

FORESTS = {
    "nothing shared": Forest((4, 7, 3), (-1, -1, -1), (14,)),
    "one level": Forest((6, 5, 9, 3), (-1, 0, 0, 0), (23,)),
    "three levels": Forest((3, 4, 2, 7, 1, 6), (-1, 0, 1, 1, 0, 0), (23,)),
    "several trees": Forest((3, 4, 8, 2, 6, 1, 5), (-1, 0, 0, -1, 3, 3, -1), (29,)),
    "several runs": Forest((3, 4, 8, 2, 6, 21, 5, 3), (-1, 0, 0, -1, 3, -1, -1, 6), (23, 21, 8)),
    "a run without tokens": Forest((5, 4, 2, 6), (-1, 0, -1, 2), (9, 0, 8)),
}
VIRTUAL = 4  # the longest run's virtual tokens


def leaf_paths(forest: Forest) -> list[Tensor]:
    """The places in the line of each row's tokens, one row for each segment that is nobody's parent."""
    leaves = [segment for segment in range(len(forest.lengths)) if segment not in forest.parents]
    return [
        torch.cat(
            [
                torch.arange(forest.lengths[segment]) + forest.starts[segment]
                for segment in (*forest.ancestors(leaf), leaf)
            ]
        )
        for leaf in leaves
    ]


def leaf_runs(forest: Forest) -> list[int]:
    return [run for segment, run in enumerate(forest.run_of_segment) if segment not in forest.parents]


def memory_of(base, forest: Forest) -> tuple[Tensor, Tensor]:
    """Keys and values (layers, 2, R, H, P, W) of virtual tokens for every run, and which are valid (R, P)."""
    config, runs = base.config.get_text_config().per_layer_config[0], len(forest.runs)
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(3)
    pairs = torch.randn(2, 2, runs, heads, VIRTUAL, width, generator=generator).requires_grad_()
    return pairs, torch.arange(VIRTUAL) < torch.tensor([4, 0, 2])[:runs, None]


def everything(base, forest: Forest, packed: bool, memory: bool = False) -> list[Tensor]:
    """Logits of all rows and the gradients of all weights, packed or row by row."""
    base.zero_grad()
    ids = torch.randint(3, 97, (1, forest.tokens), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    paths, plan = leaf_paths(forest), ForestPlan(forest)
    pairs, valid = memory_of(base, forest)
    layers = [LayerMemory(*pair, valid) for pair in pairs] if memory else None
    with use_attention(base):
        if packed:
            positions = plan.positions[None]
            line = base(input_ids=ids, position_ids=positions, use_cache=False, memory=layers, **plan.inputs).logits[0]
            rows = [line[path] for path in paths]
        else:
            rows = []
            for path, run in zip(paths, leaf_runs(forest), strict=True):
                own = [LayerMemory(*pair[:, run : run + 1], valid[run : run + 1]) for pair in pairs] if memory else None
                positions = torch.arange(len(path))[None]
                rows.append(base(ids[:, path], position_ids=positions, use_cache=False, memory=own).logits[0])
        weights = [torch.randn(row.shape, generator=generator) for row in rows]
        sum((row * weight).sum() for row, weight in zip(rows, weights, strict=True)).backward()
    gradients = [parameter.grad for parameter in base.parameters() if parameter.grad is not None]
    return [*(row.detach() for row in rows), *gradients, *([pairs.grad] if memory else [])]


def alike(ours: list[Tensor], expected: list[Tensor], within: float = 1e-5) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine - theirs).norm() <= within * theirs.norm() + 1e-7


CASES = list(zip(CONFIGS, itertools.cycle(FORESTS), strict=False))
"""A forest for each architecture; llama takes them all."""


@pytest.mark.parametrize(
    ("architecture", "forest"), sorted({*CASES, *(("llama", forest) for forest in FORESTS)}), ids=str
)
@pytest.mark.parametrize("memory", [False, True], ids=["", "memory"])
def test_rows_in_one_line_equal_rows_alone(architecture, forest, memory):
    base = tiny(architecture)
    alike(*(everything(base, FORESTS[forest], packed, memory) for packed in (True, False)))


@pytest.mark.parametrize(("architecture", "forest"), list(zip(WINDOWED, itertools.cycle([*FORESTS][1:]), strict=False)))
def test_a_window_follows_the_path_and_not_the_line(architecture, forest):
    base, wide = (tiny(architecture, **windowed(architecture, window)) for window in (5, 64))
    expected = everything(base, FORESTS[forest], False)
    assert not torch.allclose(expected[0], everything(wide, FORESTS[forest], False)[0], atol=1e-3)
    alike(everything(base, FORESTS[forest], True), expected)


def test_a_softcap_is_in_what_a_line_is_compared_with():
    """Of which `test_rows_in_one_line_equal_rows_alone` sees where it is left out."""
    capped, free = (
        everything(base, FORESTS["three levels"], True)[0]
        for base in (tiny("gemma2"), tiny("gemma2", attn_logit_softcapping=None))
    )
    assert (capped - free).norm() > 1e-3 * free.norm()


def test_recomputed_layers_see_the_same_forest():
    base = tiny().train()
    expected = everything(base, FORESTS["several runs"], False, memory=True)
    base.activation_checkpointing_enable({"use_reentrant": False})
    alike(everything(base, FORESTS["several runs"], True, memory=True), expected)


def test_half_precision_is_as_near_as_rows_alone():
    base, exact = tiny(dtype=torch.bfloat16), tiny()
    expected = everything(exact, FORESTS["three levels"], False)
    alone, line = (
        [tensor.float() for tensor in everything(base, FORESTS["three levels"], packed)] for packed in (False, True)
    )
    for truth, row, ours in zip(expected, alone, line, strict=True):
        assert (ours - truth).norm() <= 1.5 * (row - truth).norm() + 0.01 * truth.norm()


# ── the ways to compute it ──────────────────────────────────────────────────────────────────────────────────────────


def line_inputs(forest: Forest, runs: int | None = None) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Query, key, value of a line, keys and values of virtual tokens for so many runs, and which are valid."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, forest.tokens, 8) for heads in (6, 2, 2)] + [(runs or 0, 2, VIRTUAL, 8)] * 2
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    valid = None if runs in (None, 1) else torch.arange(VIRTUAL) < torch.tensor([4, 1, 2])[:runs, None]
    return tensors[:3], tensors[3:] if runs else [], valid


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 1.5), (5, 2.0)])
@pytest.mark.parametrize("one_for_all", [None, True, False], ids=["", "one memory", "memories"])
@pytest.mark.parametrize("forest", FORESTS.values(), ids=FORESTS)
def test_products_equal_the_dense_mask(forest, one_for_all, window, softcap):
    products_and_dense_mask_agree(forest, one_for_all, window, softcap)


LARGE_FORESTS = {
    "blocks in several tiles": Forest((60, 450, 380, 90), (-1, 0, 0, 0), (980,)),
    "groups of like length": Forest((9, 300, 2, 4, 280, 7, 5), (-1, 0, 0, -1, 3, -1, 5), (607,)),
    "runs": Forest((20, 270, 4, 30, 300), (-1, 0, 0, -1, 3), (294, 330)),
}


def test_large_forests_take_several_groups_and_tiles():
    def scores(name: str) -> list[int]:
        """L·K of each group."""
        return [
            group.tokens.shape[1] * (group.path.shape[1] + group.tokens.shape[1])
            for group in groups_of(LARGE_FORESTS[name])
        ]

    assert max(scores("blocks in several tiles")) > TILE
    assert [count > LARGE for count in scores("groups of like length")] == [False, False, True, True]
    assert LARGE < max(scores("runs")) < TILE


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (50, 2.0)])
@pytest.mark.parametrize("one_for_all", [None, True, False], ids=["", "one memory", "memories"])
@pytest.mark.parametrize("forest", LARGE_FORESTS.values(), ids=LARGE_FORESTS)
def test_products_of_large_forests_equal_the_dense_mask(forest, one_for_all, window, softcap):
    products_and_dense_mask_agree(forest, one_for_all, window, softcap)


def products_and_dense_mask_agree(
    forest: Forest, one_for_all: bool | None, window: int | None, softcap: float | None
) -> None:
    """The outputs and all gradients, without virtual tokens, or with the same for all runs or each run's own."""
    runs = None if one_for_all is None else 1 if one_for_all else len(forest.runs)
    line, virtual, valid = line_inputs(forest, runs)
    memory, plan = LayerMemory(*virtual, valid) if virtual else None, ForestPlan(forest)
    results = []
    for way in ("dense", "products"):
        output = attend_to_forest(*line, plan, Scoring(0.3, softcap=softcap, window=window), memory, way)
        results.append([output.detach(), *torch.autograd.grad(output.square().sum(), [*line, *virtual])])
    alike(*results, within=1e-9)


@pytest.mark.parametrize("way", ["products", "fused", "dense"])
def test_attention_dropout_drops_and_rescales(way):
    forest = FORESTS["three levels"]
    (query, key, value), _, _ = line_inputs(forest)
    plan, ones = ForestPlan(forest), torch.ones_like(value)
    torch.manual_seed(0)
    many = torch.stack(
        [attend_to_forest(query, key, ones, plan, Scoring(0.3, 0.5), way=way).detach() for _ in range(200)]
    )
    assert many.std(0)[:, :, 1:].min() > 0.1
    torch.testing.assert_close(many.mean(0), torch.ones_like(query), rtol=0, atol=0.35)


def test_dropout_has_the_gradient_of_what_it_kept():
    forest = Forest((2, 2, 1), (-1, 0, 0), (5,))
    line, _, _ = line_inputs(forest)
    plan = ForestPlan(forest)

    def seeded(*line: Tensor) -> Tensor:
        torch.manual_seed(0)
        return attend_to_forest(*line, plan, Scoring(0.3, 0.3, softcap=2.0))

    assert torch.autograd.gradcheck(seeded, line)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (5, 2.0)])
@pytest.mark.parametrize("runs", [None, 3])
@pytest.mark.filterwarnings("ignore")  # that it is not compiled
def test_flex_equals_the_dense_mask(runs, window, softcap):
    forest = FORESTS["several runs"]
    line, virtual, valid = line_inputs(forest, runs)
    line, virtual = ([tensor.detach() for tensor in tensors] for tensors in (line, virtual))  # forward alone, on a CPU
    memory, plan = LayerMemory(*virtual, valid) if virtual else None, ForestPlan(forest)
    ours, expected = (
        attend_to_forest(*line, plan, Scoring(0.3, softcap=softcap, window=window), memory, way)
        for way in ("flex", "dense")
    )
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("one_for_all", [None, True, False], ids=["", "one memory", "memories"])
@pytest.mark.parametrize("forest", ["three levels", "several runs", "a run without tokens"])
def test_fused_equals_the_dense_mask_and_stores_no_mask_of_all_tokens(forest, one_for_all):
    """Its call of torch's kernel is looked at: on a GPU with dropout, such as GPT-2 has, it is the way."""
    runs = None if one_for_all is None else 1 if one_for_all else len(FORESTS[forest].runs)
    line, virtual, valid = line_inputs(FORESTS[forest], runs)
    memory, plan, results = LayerMemory(*virtual, valid) if virtual else None, ForestPlan(FORESTS[forest]), []
    for way in ("dense", "fused"):
        with torch_calls() as calls:
            output = attend_to_forest(*line, plan, Scoring(0.3, window=5), memory, way)
        results.append([output.detach(), *torch.autograd.grad(output.square().sum(), [*line, *virtual])])
    alike(*results, within=1e-9)
    masks = [args[3] for args, _ in calls.of(F.scaled_dot_product_attention)]
    assert 0 < sum(mask.numel() for mask in masks) < FORESTS[forest].tokens ** 2
    assert way_of_forest("cuda", 0.1) == way_of_forest("mps") == "fused"
    assert way_of_forest("cuda", softcap=50.0) == "flex"
    assert way_of_forest("cuda", 0.1, 50.0) == way_of_forest("mps", softcap=50.0) == "products"


@pytest.mark.parametrize("way", ["products", "dense", "fused"])
def test_who_sees_whom_is_computed_once_for_all_layers(way):
    forest = FORESTS["several runs"]
    line, virtual, valid = line_inputs(forest, len(forest.runs))
    plan, counts = ForestPlan(forest), []
    for _ in range(3):
        with torch_calls() as calls:
            attend_to_forest(*line, plan, Scoring(0.3), memory=LayerMemory(*virtual, valid), way=way)
        counts.append(len(calls.of(torch.full_like)))  # of the positions of virtual tokens
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


@pytest.mark.parametrize("way", ["dense", "fused"])
def test_it_is_computed_once_for_all_layers_of_another_device_than_the_virtual_tokens(way):
    """As of a base on several GPUs; `meta` stands for the second."""
    forest = FORESTS["several runs"]
    line, virtual, valid = line_inputs(forest, len(forest.runs))
    line = [tensor.to("meta") for tensor in line]
    plan, memory, counts = ForestPlan(forest), [LayerMemory(*virtual, valid)] * 3, []
    for layer in range(3):
        module = SimpleNamespace(layer_idx=layer)
        with torch_calls() as calls:
            attend(module, *line, None, memory=memory, forest=plan, way=way)
        counts.append(len(calls.of(torch.full_like)))
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


@pytest.mark.parametrize("length", [4, 5])  # of what is shared, so that keys are odd in number, or even
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("way", ["products", "dense", "flex", "fused"])
@pytest.mark.filterwarnings("ignore")  # that it is not compiled
def test_what_is_no_number_stays_in_its_run(way, dtype, length):
    """In bfloat16 torch's products let it reach another row of the same matrix, on processors with AMX."""
    forest, lost = Forest((length, 3, 2, 6), (-1, 0, 0, -1), (own := length + 5, 6)), torch.nan
    line, virtual, _ = line_inputs(forest, 2)
    line, virtual = ([tensor.detach().to(dtype) for tensor in tensors] for tensors in (line, virtual))
    whole = attend_to_forest(*line, ForestPlan(forest), Scoring(0.3), LayerMemory(*virtual, None), way)
    for tensor in line:
        tensor[:, :, own:] = lost
    for tensor in virtual:
        tensor[1] = lost
    if way == "flex":
        found = attend_to_forest(*line, ForestPlan(forest), Scoring(0.3), LayerMemory(*virtual, None), way)
    else:
        line = [tensor.requires_grad_() for tensor in line]
        found = attend_to_forest(*line, ForestPlan(forest), Scoring(0.3), LayerMemory(*virtual, None), way)
        found.sum().backward()
        assert all(tensor.grad[:, :, :own].isfinite().all() for tensor in line)
    torch.testing.assert_close(found[:, :, :own].detach(), whole[:, :, :own])
    assert found[:, :, own:].isnan().all()


def test_flex_is_compiled_once_for_forests_of_all_sizes():
    counted = CompileCounter()
    compiled = torch.compile(attend_by_flex, dynamic=True, backend=counted)
    for length in (150, 210, 290, 500):
        forest = Forest((length, length + 40, 130), (-1, 0, 0), (2 * length + 170,))
        (query, key, value), plan = (tensor.detach() for tensor in line_inputs(forest)[0]), ForestPlan(forest)
        ours = compiled(query, key, value, block_mask(plan.visibility(None)), Scoring(0.3))
        torch.testing.assert_close(ours, attend_to_forest(query, key, value, plan, Scoring(0.3), way="dense"))
    assert counted.frame_count == 1


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("virtual", [(1, 0), (2, 200)])
def test_blocks_hold_all_that_is_seen(window, virtual):
    """Full ones are seen in full, and nothing is seen in blocks that are left out; most are left out."""
    forest = Forest((300, 300, 500, 290, 700, 600), (-1, 0, 0, -1, 3, 3), (1100, 1590))
    valid = None if virtual[0] == 1 else torch.arange(virtual[1]) < torch.tensor([[200], [20]])
    tokens = torch.zeros(virtual[0], 1, virtual[1], 1)
    visibility = ForestPlan(forest).visibility(window, LayerMemory(tokens, tokens, valid))
    mask = block_mask(visibility)
    seen = visibility.dense.float()
    rows, columns = (-(-size // BLOCK) for size in seen.shape)
    padded = torch.nn.functional.pad(seen, (0, columns * BLOCK - seen.shape[1], 0, rows * BLOCK - seen.shape[0]))
    tiles = padded.view(rows, BLOCK, columns, BLOCK).mean((1, 3))
    whole, some = torch.zeros(rows, columns), torch.zeros(rows, columns)
    for blocks, counts, numbers in (
        (some, mask.kv_num_blocks, mask.kv_indices),
        (whole, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        for row in range(rows):
            blocks[row, numbers[0, 0, row, : counts[0, 0, row]].long()] = 1
    assert (tiles[whole == 1] == 1).all()
    assert (tiles[whole + some == 0] == 0).all()
    assert (whole * some == 0).all()
    assert (whole + some).mean() < 0.5


@pytest.mark.parametrize(("window", "one_text"), [(None, True), (40, True), (39, False)])
def test_one_text_is_no_tree_for_a_gpu(window, one_text):
    """torch's fused attention takes it; `meta` stands for any device that is no CPU."""
    forest = Forest((40,), (-1,), (40,))
    query, key, value = (tensor.to("meta") for tensor in line_inputs(forest)[0])
    module, plan = SimpleNamespace(layer_idx=0, is_causal=True), ForestPlan(forest, "meta")
    assert plan.is_one_text(window) == one_text
    if one_text:
        with torch_calls() as calls:
            attend(module, query, key, value, plan.inputs["attention_mask"], forest=plan, sliding_window=window)
        ((args, _),) = calls.of(F.scaled_dot_product_attention)
        assert args[3] is None


def test_gated_tokens_are_those_of_the_run():
    forest = FORESTS["several runs"]
    base = tiny()
    generator = torch.Generator().manual_seed(5)
    keys, values = (torch.randn(3, 2, 2, 16, generator=generator) for _ in range(2))
    valid, gates = torch.tensor([[True, True], [True, False], [True, True]]), torch.tensor([0.5, 1.0, -2.0])
    ids, plan = torch.randint(3, 97, (1, forest.tokens), generator=generator), ForestPlan(forest)
    with torch.no_grad(), use_attention(base):
        gated = [None, LayerMemory(keys, values, valid, gates=gates)]
        line = base(ids, position_ids=plan.positions[None], use_cache=False, gated=gated, **plan.inputs).logits[0]
        for path, run in zip(leaf_paths(forest), leaf_runs(forest), strict=True):
            own = [tensor[run : run + 1] for tensor in (keys, values, valid, gates)]
            row = base(ids[:, path], use_cache=False, gated=[None, LayerMemory(*own[:3], gates=own[3])]).logits[0]
            torch.testing.assert_close(line[path], row, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (5, 2.0)])
def test_flex_equals_the_dense_mask_on_a_gpu(window, softcap):
    forest = Forest((300, 300, 500, 290, 700, 600), (-1, 0, 0, -1, 3, 3), (1100, 1590))
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, forest.tokens, 64) for heads in (6, 2, 2)] + [(2, 2, 20, 64)] * 2
    tensors = [torch.randn(shape, generator=generator).cuda().requires_grad_() for shape in shapes]
    valid = torch.arange(20).cuda() < torch.tensor([[20], [3]]).cuda()
    memory, plan = LayerMemory(*tensors[3:], valid), ForestPlan(forest, "cuda")
    results = []
    for way in ("dense", "flex"):
        output = attend_to_forest(*tensors[:3], plan, Scoring(0.125, softcap=softcap, window=window), memory, way)
        results.append([output.detach(), *torch.autograd.grad(output.square().sum(), tensors)])
    alike(*results, within=5e-3)  # of TF32 products
