"""What is estimated is what is there: counts of a base that is not there, and what autograd keeps of a real one."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import safetensors.torch
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

import halka
from halka.cli import app
from halka.core import parameter_count
from halka.data.examples import Example, Message
from halka.data.packing import pack
from halka.estimating import FAMILIES, Memory, Setup, dry_run, largest_batch
from halka.estimating.allocator import PAGE, AllocatorModel
from halka.estimating.batches import most_rows
from halka.estimating.costs import Call, Layout, Plain, Work
from halka.estimating.devices import DEVICES, Device
from halka.estimating.dry_runs import model_of, training_items
from halka.estimating.fake_tensors import DryRunMode, FakeTensor
from halka.estimating.hardware import hardware_of
from halka.estimating.lengths import length_by_bytes
from halka.estimating.measured_device import LONG, SOME, MeasuredDevice, OperationTimer, input_bytes, measure_device
from halka.methods import build_method
from halka.models import hidden_states
from halka.models.attention.forest import ForestPlan
from halka.models.attention.function import attend_to_forest, attend_to_rows, use_attention
from halka.models.attention.scoring import Scoring
from halka.models.loading import base_config
from halka.models.quantised import bytes_of
from halka.training import TrainConfig, train
from halka.util.forest import Forest
from halka.util.machine import LARGE, RETURNED
from tiny import CONFIGS, ENCODERS, SEQ2SEQ, tiny

SIZES = Setup(rows=2, length=16, dtype="float32")
HUGE = {"hidden_size": 4096, "intermediate_size": 2**16, "max_position_embeddings": 512}  # few rows fill a GPU: quick
WIDE = {"hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 384}
SHALLOW = {**WIDE, "num_hidden_layers": 1}


def config_of(architecture: str = "llama", **changes):
    own = {**CONFIGS, **ENCODERS, **SEQ2SEQ}[architecture]
    return AutoConfig.for_model(architecture.removeprefix("flan-"), **{**own, **changes})


def setup_of(architecture: str) -> Setup:
    kinds = dict.fromkeys(ENCODERS, "sequence-classification") | dict.fromkeys(SEQ2SEQ, "seq2seq-lm")
    return replace(SIZES, kind=kinds.get(architecture, "causal-lm"))


# ── exact ───────────────────────────────────────────────────────────────────────────────────────────────────────────


ARCHITECTURES = ("llama", "gpt2", "gemma2", "qwen2_moe", "bert", "t5")
LAYERS = {"gpt2": "n_layer", "t5": "num_layers"}  # what their configurations call the number


@pytest.mark.parametrize(
    ("architecture", "method", "dtype"),
    [
        *((architecture, method, "bfloat16") for architecture in ARCHITECTURES for method in FAMILIES[:-1]),
        *((architecture, "full", "float32") for architecture in ARCHITECTURES),  # else its weights have a cast copy
        *(("llama", method, "float32") for method in FAMILIES[:-1]),
    ],
)
def test_counts_are_those_of_an_adapter_that_is_there(architecture, method, dtype):
    """The adapter is in fp32 whatever its base is in, where shapes of both meet, too."""
    one_layer = {LAYERS.get(architecture, "num_hidden_layers"): 1}
    config, setup = config_of(architecture, **one_layer), replace(setup_of(architecture), dtype=dtype)
    found = dry_run(config, build_method(method, {}), setup)
    model = model_of(config, setup)
    adapter = model.add("a", build_method(method, {}))
    optimizer = torch.optim.AdamW(adapter.parameters())
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [each for state in optimizer.state.values() for key, each in state.items() if key != "step"]
    assert found.trained == adapter.count()
    assert (found.parameters, found.base_bytes) == (parameter_count(model.base), bytes_of(model.base))
    assert found.stored == sum(each.nbytes for each in adapter.state_dict().values())
    assert found.memory.weights == bytes_of(model.base) + sum(each.nbytes for each in adapter.parameters())
    assert found.memory.gradients == sum(each.grad.nbytes for each in adapter.parameters())
    assert found.memory.optimizer == sum(each.nbytes for each in moments)
    parts = ("weights", "gradients", "optimizer", "activations", "allocator")
    assert found.memory.total == sum(getattr(found.memory, part) for part in parts)


@pytest.mark.parametrize(("architecture", "cached"), [("bert", False), ("llama", True), ("t5", True)])
def test_only_what_makes_text_keeps_keys_and_values(architecture, cached):
    found = dry_run(config_of(architecture), build_method("lora", {}), setup_of(architecture))
    assert (found.cached > 0) == cached
    classifier = dry_run(config_of("llama"), halka.LoRA(), replace(SIZES, kind="sequence-classification"))
    assert classifier.cached == 0


def kept(model: halka.core.AdaptedModel) -> int:
    """Bytes of the tensors that a forward pass saves for backward, the base's and the adapter's own aside."""
    own = {id_of(p) for p in [*model.base.parameters(), *model.parameters("a")]}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[id_of(tensor)] = tensor
        return tensor

    ids = torch.randint(3, 97, (4, 64))
    with model.use("a"), use_attention(model.base), torch.autograd.graph.saved_tensors_hooks(pack, lambda it: it):
        hidden_states(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    return sum(storage_of(tensor).nbytes() for address, tensor in saved.items() if address not in own)


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage:
    return (tensor.inner if isinstance(tensor, FakeTensor) else tensor).untyped_storage()


def id_of(tensor: torch.Tensor) -> int:
    return storage_of(tensor)._cdata


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize("method", FAMILIES)
def test_a_fake_tensor_saves_what_autograd_saves(architecture, method):
    config, setup = config_of(architecture), replace(SIZES, dtype="bfloat16")
    found = []
    for fake in (False, True):
        with DryRunMode(AllocatorModel()) if fake else torch.enable_grad():
            model = model_of(config, setup)
            model.add("a", build_method(method, {}))
            found.append(kept(model))
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_few_bits_take_the_bytes_that_they_take(form):
    if form == "nf4":
        pytest.importorskip("bitsandbytes")
    config, setup = config_of(**WIDE), replace(SIZES, dtype="bfloat16", quantize=form)
    found = dry_run(config, halka.LoRA(rank=4), setup)
    model = model_of(config, setup)  # after the dry run: nothing of it is left in any cache
    assert found.base_bytes == bytes_of(model.base) < 2 * parameter_count(model.base)
    assert found.parameters == parameter_count(model.base)


def test_full_fine_tuning_holds_weights_their_copies_and_masters():
    found = dry_run(config_of(), halka.Full(), replace(SIZES, dtype="bfloat16"))
    assert found.memory.weights == (2 + 2 + 4) * found.parameters
    single = dry_run(config_of(), halka.Full(), SIZES)
    assert single.memory.weights == (4 + 4) * single.parameters
    assert (found.stored, single.stored) == (found.parameters * 2, single.parameters * 4)  # as the base is


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mixtral", "bert", "t5"])
def test_a_gpu_that_is_not_there_can_be_estimated(architecture):
    here, there = (dry_run(config_of(architecture), halka.LoRA(), setup_of(architecture), gpu=gpu) for gpu in (0, 1))
    assert there.trained == here.trained
    assert there.memory.total % (2 * 2**20) == 0  # whole segments of its allocator
    assert there.memory.weights == here.memory.weights


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "full"])
def test_what_examples_share_is_computed_once(method, gpu):
    config, batch = config_of(**WIDE, vocab_size=128), replace(SIZES, rows=8, length=40, answers=4)
    padded, packed = (
        dry_run(config, build_method(method, {}), replace(batch, shared=count), gpu=gpu) for count in (0, 32)
    )
    computed = (32 + 8 * 8) / (8 * 40)
    assert packed.flops == pytest.approx(computed * padded.flops, rel=0.3)
    assert packed.memory.activations < padded.memory.activations
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(packed.memory, part) == getattr(padded.memory, part)


@pytest.mark.parametrize("rows", [1, 2])
def test_causal_attention_of_long_texts_takes_the_same_work_padded_and_packed(rows):
    config, batch = config_of(**SHALLOW, max_position_embeddings=8192), replace(SIZES, rows=rows, length=8192)
    padded, packed = (dry_run(config, halka.LoRA(), replace(batch, shared=count), gpu=True) for count in (0, rows - 1))
    attention = 3.5 * 4 * rows * 8192**2 * config.hidden_size / 2  # a quarter of it forward: half of all pairs
    assert padded.flops == pytest.approx(packed.flops, rel=0.1)
    assert attention < padded.flops < 1.5 * attention


def test_examples_have_in_common_what_they_share_and_no_more():
    items = training_items(model_of(config_of(), SIZES), replace(SIZES, rows=60, length=12, shared=8))
    assert pack([items]).forest.tokens == 8 + 60 * (12 - 8 - 1) - 1, "one is shorter; none reads its last token"


def test_padded_batches_share_nothing():
    with pytest.raises(ValueError, match=re.escape("are padded, and compute what examples share for each")):
        dry_run(config_of("t5"), halka.LoRA(), replace(setup_of("t5"), shared=4))


# ── as it should grow ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gpu_keeps_no_scores_of_a_forest():
    forest = Forest((300, 700, 800), (-1, 0, 0), (1800,))
    with DryRunMode(AllocatorModel(), gpu=True) as mode:
        query, key, value = (torch.randn(1, heads, 1800, 64).requires_grad_() for heads in (8, 2, 2))
        plan = ForestPlan(forest, query.device)
        mode.reset()
        before = mode.live
        output = attend_to_forest(query, key, value, plan, Scoring(0.125))
        kept, flops = mode.live - before, sum(work.flops for work in mode.work)
        output.sum().backward()
    assert query.grad.shape == query.shape
    assert kept < 4 * query.numel() * query.element_size()
    assert 0.3 < flops / (4 * query.numel() * 1800) < 0.5  # half is hidden by order, some by the tree


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("flash", [False, True])
def test_no_padded_batch_takes_the_kernel_that_stores_scores(dtype, masked, flash):
    """With grouped heads torch takes it where flash attention is out of question, unless heads are repeated."""
    with DryRunMode(AllocatorModel(), gpu=True, flash=flash) as mode:
        query, key, value = (torch.randn(1, heads, 1800, 64, dtype=dtype).requires_grad_() for heads in (8, 2, 2))
        mask = torch.ones(1, 1, 1800, 1800, dtype=torch.bool) if masked else None
        mode.reset()
        before = mode.live
        output = attend_to_rows(query, key, value, mask, not masked, Scoring(0.125))
        assert mode.peak - before < 6 * query.numel() * query.element_size() < 1800 * 1800 * 8
        assert output.shape == query.shape


def test_a_gpu_without_flash_attention_repeats_heads():
    setup = replace(SIZES, dtype="bfloat16", rows=8)
    runs = [dry_run(config_of(), halka.LoRA(), replace(setup, flash=flash), gpu=True).memory for flash in (True, False)]
    assert runs[0].activations < runs[1].activations
    assert [hardware_of(name, None, "bfloat16").flash for name in ("t4", "l4")] == [False, True]


@pytest.mark.parametrize(("architecture", "times"), [("llama", 1), ("gemma2", 2)])
def test_a_base_that_float16_does_not_hold_takes_float32_where_there_is_no_bfloat16(architecture, times):
    older, newer, whole = (
        halka.estimate(config_of(architecture), "lora", batch_size=1, length=8, device=device, dtype=dtype)
        for device, dtype in (("t4", "bfloat16"), ("l4", "bfloat16"), ("t4", "float32"))
    )
    assert older.base_bytes == times * newer.base_bytes
    assert whole.base_bytes == 2 * newer.base_bytes


def test_an_unknown_processor_has_the_precision_of_this_one(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    sizes = [{}, {"device": "a100"}, {"memory": 10**10}]
    found = [halka.estimate(config_of(), "lora", batch_size=1, length=8, **where) for where in sizes]
    assert [each.setup.dtype for each in found] == ["float32", "bfloat16", "bfloat16"]


def test_more_rows_and_more_tokens_need_more():
    sizes = ((1, 16), (2, 16), (8, 16), (2, 8), (2, 64))
    found = {
        (rows, length): dry_run(config_of(**SHALLOW), halka.LoRA(), replace(SIZES, rows=rows, length=length), gpu=True)
        for rows, length in sizes
    }
    by_rows, by_length = [(1, 16), (2, 16), (8, 16)], [(2, 8), (2, 16), (2, 64)]
    for several in ([found[each] for each in by_rows], [found[each] for each in by_length]):
        totals = [each.memory.total - each.memory.allocator for each in several]
        assert totals == sorted(set(totals))
        assert [each.flops for each in several] == sorted(each.flops for each in several)


def test_checkpointing_needs_less_and_computes_more():
    config, setup = config_of(**WIDE, num_attention_heads=2), replace(SIZES, rows=8, length=64)
    whole = dry_run(config, halka.LoRA(), setup, gpu=True)
    less = dry_run(config, halka.LoRA(), replace(setup, checkpointing=True), gpu=True)
    assert less.memory.activations < 0.7 * whole.memory.activations
    assert less.flops > 1.2 * whole.flops


def test_what_needs_no_input_keeps_none():
    """Biases and vectors behind a layer keep less than what reads its input; the last layers' alone keep least."""
    config = config_of(**WIDE)
    lora, bitfit = (
        dry_run(config, build_method(name, {}), SIZES, gpu=True).memory.activations for name in ("lora", "bitfit")
    )
    assert bitfit < lora


def test_answers_alone_reach_the_head():
    config = config_of(vocab_size=4096)
    few, all_of_them = (
        dry_run(config, halka.LoRA(), replace(SIZES, rows=8, answers=answers), gpu=True) for answers in (1, None)
    )
    assert few.memory.total < all_of_them.memory.total
    assert few.flops < all_of_them.flops


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_largest_batch_is_the_largest(method, gpu):
    config = config_of(**SHALLOW)
    room = dry_run(config, build_method(method, {}), replace(SIZES, rows=12), gpu=gpu).memory.total
    rows = largest_batch(config, build_method(method, {}), SIZES, room, gpu=gpu)
    needs = [dry_run(config, build_method(method, {}), replace(SIZES, rows=each), gpu=gpu) for each in (rows, rows + 1)]
    assert rows >= 12
    assert needs[0].memory.total <= room < needs[1].memory.total
    assert largest_batch(config, build_method(method, {}), SIZES, 1_000_000, gpu=gpu) == 0


def search(room: int, tensors, held=lambda rows: 0, first: int = 2) -> tuple[int, list[int]]:
    """The most rows where two functions say what rows need beside 130 bytes; and the rows that are tried."""
    tried = []

    def needs(rows: int) -> Memory:
        tried.append(rows)
        return Memory(100, 10, 20, tensors(rows), held(rows))

    return most_rows(needs, first, room), tried


def test_a_line_takes_few_tries():
    for room in (1000, 5000, 28_003):
        rows, tried = search(room, lambda rows: 7 * rows)
        assert tried == [2, rows, rows + 1]
        assert rows == (room - 130) // 7


@pytest.mark.parametrize("slopes", [(50, 3), (3, 50), (0, 9)])
def test_a_bent_line_is_followed(slopes):
    """Logits are computed in parts: up to some rows all at once."""
    for bend, room in product((1, 5, 40, 300), (130, 150, 200, 1000, 20_000)):
        needs = lambda rows: slopes[0] * min(rows, bend) + slopes[1] * max(0, rows - bend)  # noqa: B023, E731
        rows, tried = search(room, needs)
        assert rows == max(each for each in range(4097) if 130 + needs(each) <= room)
        assert len(tried) <= 20


def test_what_a_heap_holds_does_not_lead_astray():
    """It goes up and down: rows that fit may lie beyond rows that do not."""
    held = lambda rows: 40 * (rows % 7) + 25 * (rows % 2)  # noqa: E731
    for room in range(150, 700, 9):
        rows, tried = search(room, lambda rows: 20 * rows, held)
        assert rows == max((each for each in range(64) if 130 + 20 * each + held(each) <= room and each), default=0)
        assert len(tried) <= 20
    rows, tried = search(50_000, lambda rows: 20 * rows, lambda rows: 2 * rows + held(rows))
    assert 130 + 22 * rows + held(rows) <= 50_000 < 130 + 22 * (rows + 1) + held(rows + 1)
    assert rows > 2250
    assert len(tried) <= 40


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 3])
def test_the_way_back_is_short_where_an_allocator_holds_much(share):
    rows, tried = search(28_003, lambda rows: 70 * rows, lambda rows: int(share * 70 * rows))
    assert rows == int(27_873 / (70 * (1 + share)))
    assert len(tried) <= 12


def test_labels_are_no_surprise_to_transformers(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    config = config_of("bert")
    found = halka.estimate(config, "lora", kind="sequence-classification", labels=5, batch_size=2, length=8)
    assert found.parameters > 0
    assert not caplog.records
    assert model_of(config, Setup(2, 8, kind="sequence-classification", labels=5)).base.config.num_labels == 5


def test_a_batch_of_more_than_is_tried_is_looked_at_too():
    for room, rows in ((10**6, 5000), (130 + 5000, 5000), (130 + 4990, 4990), (130 + 7, 7)):
        assert search(room, lambda rows: rows, first=5000)[0] == rows


def test_each_batch_that_is_tried_is_told():
    told = []
    halka.estimate(config_of(), "lora", batch_size=2, length=8, device="t4", progress=told.append)
    assert told[0] == "lora"
    assert told[-1] == "lora, a batch of 4,096"


def test_the_peak_is_that_of_a_run():
    """The same steps for real, watched in the same way: tensors that come and go within kernels are not seen."""
    config, setup = config_of(**WIDE), replace(SIZES, rows=3)
    with Watched(AllocatorModel()) as real:
        model = model_of(config, setup)
        model.add("a", halka.LoRA())
        real.reset()
        config_of_run = TrainConfig(batch_size=3, steps=2, batches="padded")
        for _ in train(model, "a", training_items(model, setup), config_of_run):
            pass
    memory = dry_run(config, halka.LoRA(), setup).memory
    assert memory.total - memory.allocator == pytest.approx(real.peak, rel=0.01)


class Watched(DryRunMode):
    """All is done as it is, and seen."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in torch.utils._pytree.tree_leaves(out):
            if isinstance(each, torch.Tensor):
                self._track(each)
        return out


# ── memory and time of a machine ────────────────────────────────────────────────────────────────────────────────────


def test_large_pieces_go_back_and_holes_stay():
    heap = AllocatorModel()
    large = heap.take(10**6)
    assert 10**6 <= heap.held < 10**6 + 2 * PAGE
    heap.free(large)
    assert heap.held == 0
    small = [heap.take(50_000) for _ in range(8)]
    held = heap.held
    assert held >= 8 * 50_000
    for each in small[:4]:
        heap.free(each)
    assert heap.held == held  # holes below what is in use


def test_a_hole_has_no_room_for_an_aligned_piece_of_its_own_size():
    heap = AllocatorModel(life=10**6)
    first, second, _ = (heap.take(64_000) for _ in range(3))
    heap.free(first)
    heap.free(second)
    assert heap.take(64_000) not in (first, second)  # nor are both holes one, with a small object in between
    assert heap.take(32_000) in (first + 64, second + 64, first, second)


def test_holes_become_one_when_what_is_between_them_is_gone():
    heap = AllocatorModel(life=1)
    first, second, _ = (heap.take(64_000) for _ in range(3))
    held = heap.held
    heap.free(first)
    heap.free(second)
    for _ in range(4):
        heap.free(heap.take(16))
    assert first <= heap.take(100_000) < second
    assert heap.held == held


def test_what_training_lets_go_back_goes_back():
    heap = AllocatorModel()
    with heap.returning():
        pieces = [heap.take(RETURNED) for _ in range(8)]
        assert 8 * RETURNED < heap.held <= 8 * (RETURNED + 2 * PAGE)
        for each in pieces[:4]:
            heap.free(each)
        assert heap.held <= 4 * (RETURNED + 2 * PAGE)
        assert heap.take(RETURNED // 2) >= 0
    assert heap.take(RETURNED) >= 0  # it is of the heap again
    large = heap.take(2 * LARGE)
    assert large < 0
    heap.free(large)
    assert heap.take(LARGE + PAGE) < 0  # the threshold does not follow what is freed any more


@pytest.mark.parametrize("method", ["lora", "full"])
def test_with_checkpointing_a_process_holds_little_beyond_its_tensors(method):
    config = config_of(**{**WIDE, "num_hidden_layers": 6})
    setup = replace(SIZES, rows=64, length=128)
    share = {}
    for checkpointing in (False, True):
        memory = dry_run(config, build_method(method, {}), replace(setup, checkpointing=checkpointing)).memory
        share[checkpointing] = memory.allocator / (memory.total - memory.allocator)
    assert share[True] < 0.05
    assert share[True] < share[False]


def test_time_is_of_what_takes_longest():
    device = Device("d", {"float32": 100.0}, 10.0, start=1.0, products=0.5, reading=0.5)
    assert device.seconds({Work(500, 0): 1}, "float32") == 10
    assert device.seconds({Work(0, 50): 2}, "float32") == 20
    assert device.seconds({Work(1, 1): 3}, "float32") == 3
    assert {*DEVICES} >= {"h100", "a100", "rtx4090", "l4", "t4"}
    assert all(each.source and each.memory for each in DEVICES.values())


def test_what_is_not_done_takes_its_products_or_its_memory():
    """Starting does not overlap with the rest on a processor, nor do new pages."""

    class Unused(OperationTimer):
        def seconds(self, call, fresh):
            pytest.fail("an operation was done")

    here = MeasuredDevice("here", {"float32": 100.0}, 10.0, start=1.0, fresh=0.5, timer=Unused())
    assert here.seconds({Work(0, 60): 2}, "float32") == 2 * (1 + 6)
    assert here.seconds({Work(500, 20): 1}, "float32") == 1 + 5
    assert here.seconds({Work(500, 20, fresh=40): 1}, "float32") == 1 + 5 + 20
    call = works_of(config_of(), "lora")[0].call
    assert here.seconds({Work(100 * int(LONG + 1), 0, call=call): 1}, "float32") == 1 + int(LONG + 1)
    table = Call(torch.ops.aten.clone.default, (Layout((2, 2), (2**50, 1), torch.bfloat16),), ())
    assert here.seconds({Work(0, 20, call=table): 1}, "float32") == 1 + 2  # of which little would be read


def works_of(config, method: str, **changes) -> list[Work]:
    """What of a step can be done again."""
    work = dry_run(config, build_method(method, {}), replace(SIZES, **changes)).work
    return [each for each in work if each.call is not None]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mixtral", "bert", "t5"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_operation_of_a_step_can_be_done_again(architecture, method):
    """On made-up tensors, and the numbers that are drawn afterwards are those that would have been."""
    timer, state = OperationTimer(seconds=0.0), torch.get_rng_state()
    works = works_of(config_of(architecture), method, kind=setup_of(architecture).kind, dtype="bfloat16")
    assert len(works) > 30
    assert not [each.call.func for each in works if timer.seconds(each.call, 0.0) is None]
    assert torch.equal(torch.get_rng_state(), state)


def test_made_up_tensors_have_as_many_values_as_are_told():
    many = Layout((2 * SOME + 3,), (1,), torch.bfloat16)
    strided, none = Layout((3, 2), (4, 1), torch.float32), Layout((0, 2), (2, 1), torch.float32)
    assert input_bytes((many, (Plain(int, 7), strided), none)) == 2 * (2 * SOME + 3) + 4 * 10
    seen = []
    OperationTimer(seconds=0.0).seconds(Call(lambda *given: seen.append(given), (many, strided, none), ()), 0.0)
    values = seen[0][0]
    assert torch.equal(values[:SOME], values[SOME : 2 * SOME])
    assert values[:SOME].float().std() == pytest.approx(1, abs=0.05)
    assert [each.shape for each in seen[0]] == [(2 * SOME + 3,), (3, 2), (0, 2)]


def test_an_operation_is_done_on_tensors_of_its_sizes_once_for_all_alike():
    seen = []

    def func(*args, **kwargs):
        seen.append((args, kwargs))
        return args[0]

    layout = Layout((2, 3), (1, 4), torch.bfloat16)
    counts = Layout((2,), (1,), torch.int32, (5, 9))
    call = Call(func, ((layout, layout), counts, Plain(bool, True)), ((Plain(str, "dim"), Plain(int, 1)),))
    timer = OperationTimer(seconds=0.0)
    assert timer.seconds(call, 0.0) == timer.seconds(Call(*call), 0.0)
    ((pair, numbers, flag), kwargs) = seen[0]
    assert [(each.shape, each.stride(), each.dtype) for each in pair] == [((2, 3), (1, 4), torch.bfloat16)] * 2
    assert numbers.tolist() == [5, 9]
    assert (flag, kwargs) == (True, {"dim": 1})
    done = len(seen)
    timer.seconds(call, 0.0)
    assert len(seen) == done


def test_what_refuses_made_up_values_is_told_by_its_size():
    def refusing(*_):
        raise RuntimeError("no such values")

    here = MeasuredDevice("here", {"float32": 100.0}, 10.0, start=1.0, fresh=0.0)
    assert here.seconds({Work(500, 20, call=Call(refusing, (), ())): 1}, "float32") == 1 + 5


@pytest.mark.slow
def test_this_machine_is_measured():
    here = measure_device("float32")
    assert min(here.flops["float32"], here.bandwidth) > 1e6
    assert 0 <= here.start < 1
    assert 0 <= here.fresh < 1


def work_of_one(do) -> Work:
    """What the one operation that is done costs."""
    with DryRunMode(AllocatorModel()) as mode:
        given = torch.zeros(2, 4, 16, 8), torch.zeros(50, 64)
        mode.reset()
        kept = do(*given)
        ((work, times),) = mode.work.items()
        del kept
    assert times == 1
    return work


def test_attention_of_a_processor_is_counted():
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    forward = work_of_one(lambda heads, _: attend(heads, heads, heads))
    assert forward.flops == 2 * 2 * 2 * 4 * 16 * 16 * 8
    config = config_of(**WIDE, max_position_embeddings=1024)
    works = [works_of(config, "lora", rows=1, length=length) for length in (600, 16)]
    attending = [sorted({each.flops for each in some if "attention" in str(each.call.func)}) for some in works]
    scores = 2 * 4 * 600 * 600 * 32
    assert attending == [[2 * scores, 5 * scores], []]


def test_what_is_not_touched_costs_no_bytes():
    """A table's other rows, memory that is not filled, what is written over; and another view of the same is free."""
    rows = torch.tensor([3, 4])
    assert work_of_one(lambda _, table: torch.embedding(table, rows)).bytes == 2 * 2 * 64 * 4 + rows.nbytes
    assert work_of_one(lambda _, table: table[rows]).bytes == 2 * 2 * 64 * 4 + rows.nbytes
    assert work_of_one(lambda _, table: torch.zeros_like(table)).bytes == 50 * 64 * 4
    assert work_of_one(lambda _, table: torch.empty_like(table)).bytes == 0
    assert work_of_one(lambda _, table: table[:10].copy_(table[10:20])).bytes == 2 * 10 * 64 * 4
    with DryRunMode(AllocatorModel()) as mode:
        table = torch.zeros(50, 64)
        mode.reset()
        both = [torch.ops.aten._unsafe_view(table, [64, 50]) for _ in range(2)]
        assert not mode.work
        assert mode.peak == table.numel() * 4
        del both


def test_what_the_optimiser_changes_is_read_and_written():
    """Values and both moments, and gradients read."""

    def update(_, table):
        now = torch.tensor(1.0)
        how = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0.1, "eps": 1e-8}
        several = [[table] for _ in range(4)]
        torch._fused_adamw_(*several, [], [now], **how, amsgrad=False, maximize=False)

    assert work_of_one(update).bytes == 7 * 50 * 64 * 4 + 4


def test_what_no_hole_has_room_for_is_fresh():
    assert work_of_one(lambda _, table: torch.zeros(10**6)).fresh >= 4 * 10**6
    with DryRunMode(AllocatorModel()) as mode:
        first = torch.zeros(20_000)
        later = torch.zeros(10)
        del first
        mode.reset()
        again = torch.zeros(15_000)
        (work,) = mode.work
        assert work.fresh == 0
        del later, again


def test_more_passes_do_not_let_the_optimiser_work_more():
    config = config_of(**WIDE)
    one, two, four = (dry_run(config, halka.Full(), replace(SIZES, accumulate=passes)) for passes in (1, 2, 4))
    assert two.flops == pytest.approx(2 * one.flops, rel=0.05)  # a pass of the shorter rows alone is less
    assert four.flops == pytest.approx(4 * one.flops, rel=0.05)
    update = 7 * 4 * one.trained

    def updates(found):
        return sum(times for each, times in found.work.items() if update <= each.bytes < update + 1000)

    assert [updates(each) for each in (one, two, four)] == [1, 1, 1]
    states = [each for each in one.work if each.bytes == 4 * config.vocab_size * config.hidden_size and not each.flops]
    assert sum(one.work[each] for each in states) <= 1  # the moments are made in the first step


def test_products_are_counted_forward_and_back():
    """Of a frozen layer twice its weights a token forward, as much for its input's gradient, and no weight's."""
    config = config_of(tie_word_embeddings=False, **WIDE)
    found, setup = {}, replace(SIZES, answers=1)
    for name in ("bitfit", "full"):
        found[name] = dry_run(config, build_method(name, {}), setup, gpu=True).flops
    assert 1.3 * found["bitfit"] < found["full"] < 1.6 * found["bitfit"]


# ── the public function and the command ─────────────────────────────────────────────────────────────────────────────


def test_a_folder_with_a_configuration_alone_is_enough(tmp_path):
    config_of(**HUGE).save_pretrained(tmp_path)
    found = halka.estimate(tmp_path, [halka.LoRA(rank=2), halka.Full()], batch_size=2, length=512, tasks=3, device="t4")
    lora, full = found.rows
    assert [each.method for each in found.rows] == ["lora", "full"]
    assert lora.stored == 3 * 4 * lora.trained
    assert full.served > 3 * found.base_bytes
    assert lora.served < full.served
    assert lora.fits
    assert lora.seconds > 0
    assert found.memory == DEVICES["t4"].memory
    tokens = found.cache / 512
    assert tokens == 2 * 2 * 2 * 1024 * 2  # layers, key and value, heads, width, bytes


def test_a_config_file_names_its_folder(tmp_path):
    config_of().save_pretrained(tmp_path)
    one, two = (halka.estimate(base, "lora", length=8) for base in (tmp_path, f"{tmp_path}/config.json"))
    assert replace(one, base="") == replace(two, base="")


def test_a_method_that_cannot_be_is_told_with_the_others(tmp_path):
    config_of("mixtral").save_pretrained(tmp_path)
    rows = halka.estimate(tmp_path, ["ia3", "lora"], batch_size=1, length=8).rows
    assert "mlp.down" in rows[0].refused
    assert rows[1].refused is None
    with pytest.raises(ValueError, match=re.escape("ia3 wants 'mlp.down'")):
        halka.estimate(tmp_path, ["ia3"], batch_size=1, length=8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "rtx409"}, "no device 'rtx409' in the table: did you mean rtx4090"),
        ({"kind": "masked-lm"}, "kind 'masked-lm' cannot be trained"),
        ({"dtype": "auto"}, "dtype 'auto' is none of"),
        ({"dtype": torch.int8}, "dtype 'int8' is none of"),
        ({"quantize": "int3"}, "quantize 'int3' is none of"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"length": 16.0}, r"length must be a whole number, not 16.0"),
        ({"memory": 2.5e9 + 0.5}, r"memory must be a whole number, not 2500000000.5"),
        ({"memory": -1}, "memory must be at least 1, not -1"),
        ({"length": 2}, "length must be at least 3 tokens"),
        ({"length": 100_000}, "length must be at most the base's 128 positions, not 100,000"),
        ({"shared": -1}, "shared must be at least 0 and leave two tokens or more of the 8 of an example, not -1"),
        ({"shared": 7}, "shared must be at least 0 and leave two tokens or more of the 8 of an example, not 7"),
        ({"methods": []}, "there is no method to estimate: name one or more of lora, dora"),
        (
            {"kind": "seq2seq-lm"},
            "transformers has no seq2seq-lm of the architecture 'llama': choose a kind of causal-lm",
        ),
        ({"labels": 3}, "labels are for sequence-classification and token-classification: a causal-lm has none"),
        *(({"kind": "sequence-classification", "labels": n}, "labels must be at least 2") for n in (-1, 0, 1)),
        ({"steps": 0, "device": "a100"}, "steps must be at least 1, not 0"),
        ({"steps": 5}, "steps take time by the speed of a device"),
    ],
)
def test_what_cannot_be_estimated_is_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        halka.estimate(config_of(), **{"methods": ["lora"], "length": 8, **given})


def test_a_dtype_may_be_torch_s():
    by_name, by_dtype = (
        halka.estimate(config_of(), ["lora"], batch_size=1, length=8, dtype=dtype)
        for dtype in ("float32", torch.float32)
    )
    assert by_name == by_dtype


class Broken(halka.LoRA):
    def build(self, target):
        raise ValueError("a bug")


def test_a_bug_in_a_method_is_not_taken_for_one_that_is_refused():
    with pytest.raises(ValueError, match=r"^a bug$"):
        halka.estimate(config_of(), [Broken(), halka.LoRA()], batch_size=1, length=8)


@pytest.mark.parametrize(("letter", "tokens"), [("a", 100), ("é", 200), ("আ", 300), ("包", 300)])
def test_a_letter_that_takes_more_bytes_takes_more_tokens(letter, tokens):
    assert length_by_bytes([Example((Message("user", letter * 300),))]) == tokens


def test_a_length_beside_virtual_tokens_is_that_method_s_affair():
    """Its examples are cut to what is left, as in training; too little is refused."""
    methods = ["lora", halka.Prompt(length=20), halka.Prompt(length=126)]
    lora, prompt, longest = halka.estimate(config_of(), methods, batch_size=1, length=128).rows
    (shorter,) = halka.estimate(config_of(), methods[1], batch_size=1, length=108).rows
    assert lora.refused is None
    assert prompt.memory == shorter.memory
    assert "prompt's own tokens the base has 2 positions for text, which is too few" in longest.refused
    roberta = config_of("roberta", max_position_embeddings=130)  # two of which its numbering does not use
    assert halka.estimate(roberta, "lora", kind="sequence-classification", length=130).rows[0].memory is not None


@pytest.mark.parametrize("method", [halka.Prefix(length=4, hidden=16), halka.Prefix(length=4), halka.Prompt(length=4)])
def test_storage_is_that_of_the_files_and_serving_what_an_engine_holds(method, tmp_path):
    """A prefix' network is not saved, and a prompt's keys and values stay in memory."""
    model = halka.adapt(tiny())
    model.add("a", method)
    file = halka.save(model, "a", tmp_path / "a") / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    (row,) = halka.estimate(config_of(), method, batch_size=1, length=8, dtype="float32").rows
    found = dry_run(config_of(), method, replace(SIZES, rows=1, length=8))
    assert row.stored == sum(tensor.nbytes for tensor in tensors.values())
    virtual = 4 * found.cached if isinstance(method, halka.Prompt) else 0
    assert row.served == found.base_bytes + row.stored + virtual + 8 * found.cached


@pytest.mark.parametrize("gpu", [False, True])
def test_the_scores_of_a_softcap_are_counted_where_a_batch_keeps_them(gpu):
    """A padded batch keeps those of all pairs, and the packed one of a default run does not."""
    long = replace(SIZES, rows=1, length=1024)
    config = partial(config_of, max_position_embeddings=1024, num_hidden_layers=1)
    capped, plain = (
        dry_run(config("gemma2", **changes), halka.LoRA(), long, gpu=gpu).memory.activations
        for changes in ({}, {"attn_logit_softcapping": None})
    )
    assert capped < 1.5 * plain


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: tiny(), "not a LlamaForCausalLM: give its .config"),
        (lambda: 5, "a base is a name, a folder or a transformers configuration, not a int: give one"),
        (lambda: AutoConfig.for_model("clip"), "no causal-lm of the architecture 'clip': it is no language model"),
        (lambda: config_of("bert"), "it is an encoder (bert), not a causal language model: name another kind"),
        (
            lambda: config_of("bert", architectures=["BertForMaskedLM"]),
            "kind 'masked-lm' (the configuration is of BertForMaskedLM) cannot be trained: choose one of "
            "causal-lm, sequence-classification, token-classification, seq2seq-lm, with kind (--kind)",
        ),
        (
            lambda: config_of(quantization_config={"quant_method": "gptq", "bits": 4}),
            "the base is quantised already (gptq), which cannot be estimated: name the plain base that it was "
            'made of, with quantize="nf4" (--quantize nf4)',
        ),
    ],
)
def test_what_is_no_base_to_estimate_is_refused(base, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        halka.estimate(base(), ["lora"], length=8)


def test_a_memory_may_be_a_whole_float():
    estimate = halka.estimate(config_of(), "lora", length=8, batch_size=1, memory=1e6)
    assert (type(estimate.memory), estimate.memory, estimate.rows[0].largest_batch) == (int, 10**6, 0)


def test_a_single_method_is_one():
    for one in ("lora", halka.LoRA()):
        assert [row.method for row in halka.estimate(config_of(), one, length=8, batch_size=1).rows] == ["lora"]


def test_a_folder_without_a_configuration_is_no_base(tmp_path):
    with pytest.raises(ValueError, match=re.escape("has no config.json")):
        base_config(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        base_config(tmp_path / "nothing here")


def test_the_command_shows_a_table_and_gives_json(tmp_path):
    config_of().save_pretrained(tmp_path)
    given = ["estimate", str(tmp_path), "--method", "lora", "--method", "prompt", "--length", "16", "--batch-size", "2"]
    called = CliRunner().invoke(app, [*given, "--gpu-memory", "2MB", "--tasks", "10"])
    assert called.exit_code == 0
    assert re.search(r"lora .* no +0 ", called.stdout)
    found = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    assert [row["method"] for row in found["rows"]] == ["lora", "prompt"]
    assert found["rows"][0]["memory"]["total"] > found["base_bytes"]
    assert "a batch of 2 × 16 tokens\n" in called.stdout
    shared = CliRunner().invoke(app, [*given, "--shared", "8"]).stdout
    assert "a batch of 2 × 16 tokens, the first 8 shared\n" in shared
    called = CliRunner().invoke(app, [*given, "--gpu-memory", "much"])
    assert called.exit_code == 2
    assert "--gpu-memory: 'much' is no size" in called.stderr


@pytest.fixture
def estimated(tmp_path, monkeypatch):
    """Calls `halka estimate` for a base that fits on no small GPU: all that it says on a small screen, and its end."""
    monkeypatch.setenv("COLUMNS", "80")
    config_of(**{**HUGE, "intermediate_size": 2**20}).save_pretrained(tmp_path)  # no batches are tried

    def call(*given: str, code: int = 0, method: str = "lora") -> str:
        small = ["--method", method, "--length", "512", "--batch-size", "1"]
        called = CliRunner().invoke(app, ["estimate", str(tmp_path), *small, *given])
        assert called.exit_code == code, called.output
        return called.stdout if code == 0 else called.stderr

    return call


def test_the_command_says_what_hardware_it_is_for(estimated):
    assert "on a processor; --gpu-memory, or a GPU as --device, shows what fits\n" in estimated()
    assert "on a GPU, 3.0 GB; what fits: 2.4 GB, the rest is for CUDA\n" in estimated("--gpu-memory", "3G")
    assert estimated("--gpu-memory", "3") == estimated("--gpu-memory", "3GB")
    assert "on the GPU t4, 16.0 GB; what fits: 15.4 GB" in estimated("--device", "t4")


@pytest.mark.parametrize(
    ("size", "message"),
    [("much", "'much' is no size above 0: write it as 512MB, 1.5GB\n"), ("9" * 400 + "GB", "is more than there is")],
)
def test_a_memory_has_its_unit_and_an_end(estimated, size, message):
    told = estimated("--gpu-memory", size, code=2)
    assert told.startswith("Error: --gpu-memory: ")
    assert message in told
    assert len(told) < 120


def test_the_run_s_time_is_told_with_a_device_alone(estimated):
    assert "--steps: a run's time depends on the device: give --device" in estimated("--steps", "5", code=2)
    assert "steps must be at least 1, not -5" in estimated("--steps", "-5", "--device", "t4", code=2)
    assert "the run" in estimated("--steps", "5", "--device", "t4")
    found = json.loads(estimated("--steps", "5", "--device", "t4", "--json"))
    assert found["steps"] == 5
    assert found["rows"][0]["run_seconds"] == 5 * found["rows"][0]["seconds"] > 0


def test_a_method_has_its_fields(estimated):
    assert "lora:rank=2 " in estimated(method="lora:rank=2")
    (row,) = json.loads(estimated("--json", method="lora:rank=2,targets=attn.q,attn.v,alpha=8"))["rows"]
    assert (row["fields"]["rank"], row["fields"]["targets"]) == (2, ["attn.q", "attn.v"])
    assert row["fields"]["alpha"] == 8


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("lora:ranks=2", "--method lora:ranks=2: lora has no field 'ranks'; it has rank, alpha"),
        ("lora:rank=two", "--method lora:rank=two: rank: 'two' is not a whole number"),
        ("lora:64", "--method lora:64: '64' is no field: write it as in lora:rank=64,alpha=128"),
        ("lora:rank=0", "--method lora:rank=0: "),
        ("lor:rank=2", "there is no method 'lor'"),
    ],
)
def test_a_field_that_is_none_is_refused(estimated, method, message):
    assert message in estimated(method=method, code=2)


def test_fake_tensors_stay_within_their_dry_run():
    with DryRunMode(AllocatorModel()):
        weight = torch.zeros(3, 3)
        assert isinstance(weight, FakeTensor)
        assert not isinstance(torch.arange(3), FakeTensor)
        chosen = torch.topk(weight, 2).indices
        assert chosen.tolist() == [[0, 1], [2, 0], [1, 2]]
        assert isinstance(weight[torch.tensor([True, False, True])], FakeTensor)
    with pytest.raises(RuntimeError, match="outside of its dry run"):
        _ = weight + 1
    assert not isinstance(tiny(seed=99).lm_head.weight, FakeTensor)  # which is built here: copies would be real anyhow
