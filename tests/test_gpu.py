"""What a GPU computes is what the processor computes, with few waits, and within the memory that it is to take.

Skipped where there is none (`test_placement.py` has what shows without). fp32 without TF32, so that differences are of
the order of sums alone.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import halka
from contract import logits_and_gradients, named, pairs
from engine_for_tests import alone, model_of, prompts, run
from halka.data.tokens import Tokens
from halka.estimating.dry_runs import Setup, dry_run, training_items
from halka.models import memory_of
from halka.models.attention.forest import ForestPlan
from halka.models.attention.function import attend_to_forest
from halka.models.attention.layer_stack import LayerMemory
from halka.models.attention.paged import KVBlocks
from halka.models.attention.scoring import Scoring
from halka.models.quantised import LAYERS, quantise
from halka.objectives.cross_entropy import CHUNK, LOGITS, chunk_for
from halka.util import machine
from halka.util.deterministic import WORKSPACE
from halka.util.forest import Forest
from halka.util.products import GROUPS, Grouped, Runs, linear
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # torch warns of what is meant: TF32 that is off, debug modes that are prototypes. Of FlexAttention that is not
    # compiled, which stores all scores, it warns too, and Halka where it cannot be.
    pytest.mark.filterwarnings(
        "default", "error:flex_attention called without", "error:torch cannot compile FlexAttention"
    ),
]

FAMILIES = {
    "lora": halka.LoRA(rank=4),
    "bottleneck": halka.Bottleneck(width=8),
    "prefix": halka.Prefix(length=5),
    "prompt": halka.Prompt(length=6),
}
SHORT = (300, 100, 40, 300)  # tokens of lines
WITHOUT_DROPOUT = {"gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}}  # each device draws its own


def model_on(device: str, architecture: str = "llama", **changes):
    tokenizer = chatml_tokenizer()
    changes |= WITHOUT_DROPOUT.get(architecture, {})
    model = halka.adapt(tiny(architecture, vocab_size=len(tokenizer), **changes), tokenizer)
    fill(model, FAMILIES)
    return model.to(device)


def fill(model, families) -> None:
    """Add these, with values of which none is as it starts."""
    for seed, (name, method) in enumerate(families.items()):
        model.add(name, method, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters(name):
                parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.device))


def items() -> list[Tokens]:
    begin = [5, 6, 7, 8, 9, 10, 11, 12]
    return [Tokens([*begin, *range(13, 13 + n)], [False] * 8 + [True] * n) for n in (3, 9, 5, 7, 4, 6, 8, 3)]


def long_rows() -> list[Tokens]:
    """Behind an instruction of 200 tokens: lines of blocks of 128 that are skipped, seen in full and seen in part."""
    begin = [5 + 3 * i % 80 for i in range(200)]
    own = [[5 + (7 * row + 11 * i) % 80 for i in range(count)] for row, count in enumerate((50, 400, 130, 90, 260, 75))]
    return [Tokens([*begin, *tokens], [False] * 200 + [True] * len(tokens)) for tokens in own]


def losses_and_norms(model, name: str, rows: list[Tokens], **config) -> list[float]:
    """Of three steps, or as many as the configuration says."""
    steps = halka.train(model, name, rows, halka.TrainConfig(**{"lr": 1e-2, "steps": 3, "batch_size": 4, **config}))
    return [number for step in steps for number in (step.loss, step.gradient_norm)]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("name", FAMILIES)
def test_padded_batches_take_the_losses_of_the_processor(architecture, name):
    ours, expected = (
        losses_and_norms(model_on(device, architecture), name, items(), batches="padded") for device in ("cuda", "cpu")
    )
    assert ours == pytest.approx(expected, rel=1e-3)


LONG = [*(("llama", name) for name in FAMILIES), *(("gemma2", name) for name in FAMILIES), ("gpt2", "lora")]


@pytest.mark.parametrize(("architecture", "name"), LONG)
def test_packed_lines_of_several_blocks_take_the_losses_of_the_processor(architecture, name):
    """With Gemma 2's window, of 64 tokens, and its softcap."""
    positions = {"n_positions" if architecture == "gpt2" else "max_position_embeddings": 2048}
    ours, expected = (
        losses_and_norms(model_on(device, architecture, **positions), name, long_rows()) for device in ("cuda", "cpu")
    )
    assert ours == pytest.approx(expected, rel=1e-3)


def test_packed_lines_shorter_than_a_block_take_the_losses_of_the_processor():
    """Between longer ones, with four query heads a key head, in which torch's kernel of decoding has no tiles."""
    rows = [Tokens([5 + 3 * i % 80 for i in range(count)], [False] * 8 + [True] * (count - 8)) for count in SHORT]
    sizes = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ours, expected = (
        losses_and_norms(model_on(device, **sizes), "prefix", rows, steps=4, batch_size=1) for device in ("cuda", "cpu")
    )
    assert ours == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("base", "method"), [pytest.param(*pair, id=name) for name, *pair in named(pairs())])
def test_every_method_computes_on_every_base_what_it_does_on_the_processor(base, method):
    on_cpu, on_gpu = (logits_and_gradients(base, method, device) for device in ("cpu", "cuda"))
    for one, other in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_rows_of_a_mixed_batch_on_a_gpu_are_those_of_each_adapter_alone(architecture):
    model, names = model_on("cuda", architecture), [*FAMILIES, None]
    ids = torch.arange(5, 5 + 12, device="cuda").expand(len(names), -1)
    with torch.inference_mode():
        with model.use(names):
            mixed = model.base(input_ids=ids).logits
        for row, name in enumerate(names):
            with model.use(name):
                alone = model.base(input_ids=ids[:1]).logits[0]
            torch.testing.assert_close(mixed[row], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("blocks", [7, 9, 14])
def test_a_cache_on_a_gpu_that_is_too_small_changes_no_token(blocks):
    model = model_of(families={**FAMILIES, "long": halka.Prompt(length=18)}).to("cuda")
    names = [None, *FAMILIES, "long"]
    requests = [
        halka.Request(prompt, names[n % 6], stopping=halka.Stopping(20)) for n, prompt in enumerate(prompts(20))
    ]
    each = KVBlocks.bytes_of(memory_of(model).stack.shape, torch.float32)
    with halka.Engine(model, rows=6, memory=blocks * each, prefill=24, prefill_beside=8) as engine:
        answers = [engine.submit(request)[0] for request in requests]
        run(engine)
        assert engine.schedule.preempted
        assert engine.cache.room == engine.cache.size == blocks
    assert [answer.tokens for answer in answers] == [alone(model, request) for request in requests]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_the_engine_on_a_gpu_answers_as_each_adapter_does_alone(architecture):
    model, names = model_on("cuda", architecture), [*FAMILIES, None]
    lengths = [15 + n + n % 2 * 65 for n in range(15)]  # every other longer than Gemma 2's window
    requests = [
        halka.Request([5 + i % 60 for i in range(length)], names[n % len(names)], stopping=halka.Stopping(8))
        for n, length in enumerate(lengths)
    ]
    with halka.Engine(model, rows=6, prefill=32, ends=frozenset()) as engine:
        answers = [answer for request in requests for answer in engine.submit(request)]
        while engine.step():
            pass
    for request, answer in zip(requests, answers, strict=True):
        tokens = [*request.prompt]
        with torch.inference_mode(), model.use(request.adapter):
            for _ in range(8):
                logits = model.base(input_ids=torch.tensor([tokens], device="cuda"), use_cache=False).logits[0, -1]
                tokens.append(int(logits.argmax()))
        assert answer.tokens == tokens[len(request.prompt) :]


# ── kernels and waits ───────────────────────────────────────────────────────────────────────────────────────────────

MB = 2**20
WAITS = 4  # of a step, at most
LAUNCHES = 260  # of a layer in a step
HEADS = 32  # many, so that scores take more than masks


def wide(dtype=torch.bfloat16, **changes):
    """Wide enough for kernels, with grouped heads."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}
    return tiny("llama", **{**sizes, "max_position_embeddings": 4096, **changes}).to("cuda", dtype)


def long_items(count: int, length: int) -> list[Tokens]:
    return [
        Tokens([5 + (i + n) % 80 for i in range(length - n)], [False] * 8 + [True] * (length - n - 8))
        for n in range(count)
    ]


def tensor_bytes(when: str) -> int:
    """Bytes that were asked for tensors on the GPU: "current", or at their "peak" since `settled`."""
    return torch.cuda.memory_stats()[f"requested_bytes.all.{when}"]


def settled() -> int:
    """Count peaks from now on, when cuBLAS has its workspaces, this thread's and autograd's; returns bytes of tensors.

    Each has 32 MiB on Hopper, from its first product on.
    """
    x = torch.ones(64, 64, device="cuda", requires_grad=True)
    (x @ x).sum().backward()
    del x
    gc.collect()
    torch.cuda.synchronize()
    machine.reset_peak(torch.device("cuda"))
    return tensor_bytes("current")


@contextmanager
def without_the_math_kernel():
    with torch.nn.attention.sdpa_kernel(
        [
            torch.nn.attention.SDPBackend.FLASH_ATTENTION,
            torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION,
            torch.nn.attention.SDPBackend.CUDNN_ATTENTION,
        ]
    ):
        yield


@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.bfloat16) for name in FAMILIES), ("prefix", torch.float32)])
@pytest.mark.parametrize("batches", ["packed", "padded"])
def test_training_takes_no_math_kernel_and_holds_no_scores(name, batches, dtype):
    """Twice the tokens take twice the memory. Scores would take four times as much, of which a quarter is noticed."""
    lengths = (1000, 2000, 4000)
    peaks = [_peak_of_a_step(name, batches, dtype, length) for length in (lengths[0], *lengths)]
    _, short, middle, long = peaks  # without the first, in which kernels are compiled
    scores = [2 * HEADS * length**2 * dtype.itemsize for length in lengths]
    assert (long - middle) - 2 * (middle - short) < ((scores[2] - scores[1]) - 2 * (scores[1] - scores[0])) / 4


def _peak_of_a_step(name: str, batches: str, dtype: torch.dtype, length: int) -> int:
    """Bytes of tensors, at most, in a step with two rows."""
    model = halka.adapt(wide(dtype, num_attention_heads=HEADS, num_key_value_heads=HEADS // 4))
    model.add("a", FAMILIES[name])
    before = settled()
    with without_the_math_kernel():
        for _ in halka.train(
            model, "a", long_items(2, length), halka.TrainConfig(steps=1, batch_size=2, batches=batches)
        ):
            pass
    return tensor_bytes("peak") - before


@pytest.mark.parametrize(("window", "virtual"), [(None, False), (64, True)])
def test_fused_attention_of_a_forest_computes_what_products_do(window, virtual):
    """Forward and back: what takes FlexAttention's place with dropout, or where torch cannot compile that."""
    forest = Forest((200, 50, 300, 130, 40), (-1, 0, 0, -1, 3), (550, 170))
    results = []
    for device, way, kernels in (("cuda", "fused", without_the_math_kernel()), ("cpu", "products", nullcontext())):
        generator = torch.Generator().manual_seed(0)
        sizes = [*((1, heads, forest.tokens, 16) for heads in (4, 2, 2)), *[(2, 2, 20, 16)] * 2]
        tensors = [torch.randn(size, generator=generator).to(device).requires_grad_() for size in sizes]
        memory = LayerMemory(*tensors[3:], None) if virtual else None
        plan = ForestPlan(forest, device)
        with kernels:
            output = attend_to_forest(*tensors[:3], plan, Scoring(0.25, window=window), memory, way)
            gradients = torch.autograd.grad(output.square().sum(), tensors if virtual else tensors[:3])
        results.append([tensor.cpu() for tensor in (output, *gradients)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_dropout_in_attention_takes_torch_s_fused_attention_and_trains():
    """GPT-2's own, of which no two steps of one seed's are alike; with none there would be FlexAttention."""
    model = halka.adapt(tiny("gpt2", n_positions=2048, attn_pdrop=0.1).to("cuda"))
    model.add("a", halka.LoRA(rank=4))
    calls = Counter[str]()

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls[func.__name__] += func is F.scaled_dot_product_attention and args[4] > 0
            return func(*args, **(kwargs or {}))

    with without_the_math_kernel(), Calls():
        numbers = losses_and_norms(model, "a", long_rows())
    assert calls["scaled_dot_product_attention"] >= 3 * 2
    assert all(0 < number < float("inf") for number in numbers)


def test_left_padded_decoding_takes_no_math_kernel():
    model = halka.adapt(wide())
    model.add("a", halka.Prefix(length=8))
    ids = torch.randint(5, 90, (3, 300), device="cuda")
    mask = torch.ones_like(ids)
    mask[1, :100] = 0
    with without_the_math_kernel(), torch.inference_mode(), model.use("a"):
        model.base.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False)


def test_prompts_beside_a_long_text_take_no_math_kernel():
    """In the engine, whose texts see their own blocks by a mask."""
    tokenizer = chatml_tokenizer()
    model = halka.adapt(wide(torch.float32, vocab_size=len(tokenizer)), tokenizer)
    requests = [
        halka.Request([5 + (row + n) % 60 for n in range(length)], stopping=halka.Stopping(4))
        for row, length in enumerate((3000, 40, 40, 700, 41))
    ]
    with without_the_math_kernel(), halka.Engine(model, rows=5, ends=frozenset()) as engine:
        answers = [answer for request in requests for answer in engine.submit(request)]
        run(engine)
    assert [answer.tokens for answer in answers] == [alone(model, request) for request in requests]


@contextmanager
def counting_waits():
    """Within the block the list that it has gets a warning for each time that the host waits for the GPU."""
    waits = list[warnings.WarningMessage]()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits += [it for it in seen if "called a synchronizing CUDA operation" in str(it.message)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_waits_for_the_gpu_four_times_at_most(name):
    model = model_on("cuda")
    steps = halka.train(model, name, items(), halka.TrainConfig(steps=4, batch_size=4))
    next(steps)
    next(steps)
    with counting_waits() as waits:
        next(steps)
    assert len(waits) <= WAITS


@pytest.mark.parametrize(("sampling", "waits"), [(halka.Sampling(), 1), (halka.Sampling(1.0, top_k=5), 2)])
def test_a_step_of_decoding_waits_for_its_tokens_alone(sampling, waits):
    model = model_on("cuda")
    with halka.Engine(model, rows=8, ends=frozenset()) as engine:
        for name in [*FAMILIES, None]:
            engine.submit(halka.Request([*range(5, 20)], name, sampling, halka.Stopping(8)))
        for _ in range(3):
            engine.step()
        with counting_waits() as counted:
            engine.step()
    assert len(counted) <= waits


def test_a_prompt_beside_rows_that_decode_is_read_whole_and_waits_no_more():
    model = model_on("cuda")
    with halka.Engine(model, rows=8, ends=frozenset()) as engine:
        for name in [*FAMILIES, None]:
            engine.submit(halka.Request([*range(5, 20)], name, stopping=halka.Stopping(8)))
        for _ in range(3):
            engine.step()
        (answer,) = engine.submit(halka.Request([*range(5, 85)], "lora", stopping=halka.Stopping(2)))
        with counting_waits() as counted:
            engine.step()
        assert len(answer.tokens) == 1
    assert len(counted) <= 1


def test_launches_of_a_layer_are_bounded():
    """Those of a step of eight layers without those of four, divided by four."""
    counts = []
    for layers in (4, 8):
        model = halka.adapt(wide(num_hidden_layers=layers))
        model.add("a", halka.LoRA(rank=16))
        steps = halka.train(model, "a", long_items(8, 64), halka.TrainConfig(steps=3, batch_size=4))
        next(steps)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            next(steps)
        on_gpu = [event for event in profile.key_averages() if event.device_type.name == "CUDA"]
        counts.append(sum(event.count for event in on_gpu))
    assert 0 < (counts[1] - counts[0]) / 4 < LAUNCHES


def test_checkpointed_gradients_are_those_of_all_activations():
    """They are recomputed in autograd's own thread, with the rows' own adapters."""
    norms = []
    for checkpointing in (False, True):
        model, config = model_on("cuda"), halka.TrainConfig(lr=1e-2, steps=2, batch_size=4, checkpointing=checkpointing)
        jobs = [halka.Job(name, items(), config) for name in [*FAMILIES][:2]]
        steps = [step for together in halka.train_many(model, jobs) for step in together.values()]
        norms.append([number for step in steps for number in (step.loss, step.gradient_norm)])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_experts_of_a_mixture_wait_no_more_than_other_layers():
    model = halka.adapt(tiny("qwen3_moe").to("cuda", torch.bfloat16))
    model.add("a", halka.LoRA(rank=16, targets=("experts",)))
    steps = halka.train(model, "a", items(), halka.TrainConfig(steps=4, batch_size=4))
    next(steps)
    next(steps)
    with counting_waits() as waits:
        next(steps)
    assert len(waits) <= WAITS


def test_experts_without_tokens_get_no_gradient():
    """By the kernel of torch's that asks for no sizes, where the GPU has one."""
    counts = torch.tensor([16, 0, 5, 0, 11, 0], device="cuda")
    x = torch.randn(32, 64, dtype=torch.bfloat16, device="cuda")
    weights = torch.randn(6, 48, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    torch.full((2**26,), torch.nan, device="cuda")  # what memory has that is freed
    linear(x, Grouped(weights, Runs(counts.cumsum(0)))).square().sum().backward()
    gradients = weights.grad.float().abs().amax((1, 2))
    assert torch.equal(gradients > 0, counts > 0)


def test_more_weights_of_experts_than_torch_s_kernel_takes():
    """As of 128 experts with 8 LoRAs: part by part, computing what the product of each does."""
    sizes = [n % 3 for n in range(GROUPS + 50)]
    x = torch.randn(sum(sizes), 64, dtype=torch.bfloat16)
    weights = torch.randn(len(sizes), 16, 64, dtype=torch.bfloat16)
    ends = torch.tensor(sizes).cumsum(0)
    ours = linear(x.cuda(), Grouped(weights.cuda(), Runs(ends.cuda())))
    torch.testing.assert_close(ours.cpu(), linear(x, Grouped(weights, Runs(ends))), rtol=0.02, atol=0.1)


# ── two cards ───────────────────────────────────────────────────────────────────────────────────────────────────────

two_cards = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
EVERYWHERE = {
    **FAMILIES,
    "llama_adapter": halka.LlamaAdapter(),
    "full": halka.Full(),
    "head": halka.LoRA(rank=4, targets=("head",)),
}


def model_here():
    return halka.adapt(tiny("llama", vocab_size=len(chatml_tokenizer())), chatml_tokenizer())


def model_on_two_cards():
    """As accelerate spreads a base: last layer and norm on the second one, the head with the embeddings."""
    dispatch_model = pytest.importorskip("accelerate").dispatch_model
    first = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "lm_head")
    places = dict.fromkeys(first, 0) | dict.fromkeys(("model.layers.1", "model.norm"), 1)
    tokenizer = chatml_tokenizer()
    return halka.adapt(dispatch_model(tiny("llama", vocab_size=len(tokenizer)), places), tokenizer)


@two_cards
@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_base_on_two_cards_trains_as_on_the_processor(name):
    losses = []
    for model in (model_here(), model_on_two_cards()):
        model.add("a", EVERYWHERE[name])
        steps = halka.train(model, "a", items(), halka.TrainConfig(lr=1e-2, steps=3, batch_size=4))
        losses.append([step.loss for step in steps])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@two_cards
def test_full_copies_on_two_cards_are_beside_their_weights():
    model = model_on_two_cards()
    (copies,) = model.add("a", halka.Full()).parts.values()
    devices = {name: parameter.device for name, parameter in model.base.named_parameters()}
    assert {name: copy.device for name, copy in copies.named_parameters()} == devices
    assert len({*devices.values()}) == 2


@two_cards
def test_the_engine_on_two_cards_answers_as_on_the_processor():
    requests = [halka.Request([*range(5, 20)], name, stopping=halka.Stopping(6)) for name in (*EVERYWHERE, None)]
    tokens = []
    for model in (model_here(), model_on_two_cards()):
        fill(model, EVERYWHERE)
        with halka.Engine(model, rows=8, prefill=32, ends=frozenset()) as engine:
            answers = [answer for request in requests for answer in engine.submit(request)]
            while engine.step():
                pass
        tokens.append([answer.tokens for answer in answers])
    assert tokens[0] == tokens[1]


# ── files, quantised bases, merging ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("there", ["cpu", "cuda"])
def test_what_one_device_saves_the_other_loads(there, tmp_path):
    here = "cuda" if there == "cpu" else "cpu"
    saved = model_on(here)
    halka.save(saved, "lora", tmp_path / "lora")
    loaded = halka.adapt(tiny("llama", vocab_size=len(chatml_tokenizer())), chatml_tokenizer()).to(there)
    adapter = halka.load(loaded, tmp_path / "lora")
    for key, tensor in saved.adapter("lora").state_dict().items():
        assert torch.equal(adapter.state_dict()[key].cpu(), tensor.cpu())
    assert {parameter.device.type for parameter in adapter.parameters()} == {there}


@pytest.mark.parametrize("form", LAYERS)
def test_a_quantised_base_trains_as_on_the_processor(form):
    losses = []
    for device in ("cpu", "cuda"):
        base = tiny("llama", hidden_size=128, intermediate_size=256)
        quantise(base, form)
        model = halka.adapt(base.to(device))
        model.add("a", halka.LoRA(rank=8))
        losses.append(
            [step.loss for step in halka.train(model, "a", items(), halka.TrainConfig(steps=3, batch_size=4))]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_the_product_of_four_bits_is_that_of_the_unpacked_weight(tokens):
    base = tiny("llama", hidden_size=128, intermediate_size=256).bfloat16()
    quantise(base, "nf4", torch.device("cuda"))
    layer = base.model.layers[0].mlp.up_proj
    x = torch.randn(tokens, 128, dtype=torch.bfloat16, device="cuda")
    torch.testing.assert_close(layer.packed_product(x), F.linear(x, layer.dequantize()), rtol=0.02, atol=0.05)


def test_merging_holds_one_weight_in_fp32():
    model = halka.adapt(wide(hidden_size=1024, intermediate_size=2048, num_hidden_layers=8))
    model.add("a", halka.LoRA(rank=8))
    before = settled()
    model.merge("a")
    merged = tensor_bytes("current") - before
    assert tensor_bytes("peak") - before < merged + 5 * 1024 * 2048 * 4


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_memory_that_runs_out_says_the_way_out_and_leaves_a_checkpoint(tmp_path):
    model = halka.adapt(wide())
    model.add("a", halka.LoRA(rank=8))
    config = halka.TrainConfig(steps=6, batch_size=8, batches="padded", save_every=1)
    steps = halka.train(model, "a", long_items(48, 512), config, folder=tmp_path)
    next(steps)
    gc.collect()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 4 * MB) / total)
    try:
        with pytest.raises(halka.OutOfMemoryError, match="lower batch_tokens"):
            for _ in steps:
                pass
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (tmp_path / "checkpoint.safetensors").exists()
    again = halka.train(model, "a", long_items(48, 512), config, folder=tmp_path)
    assert [step.step for step in again][-1] == 6


def test_logits_take_a_quarter_of_what_a_full_card_has_left():
    settled()
    torch.cuda.empty_cache()
    device = torch.device("cuda")
    filled = torch.empty(machine.available(device) - machine.held(device) - 512 * MB, dtype=torch.uint8, device=device)
    try:
        chunk = chunk_for(device, 1000)
    finally:
        del filled
        torch.cuda.empty_cache()
    assert CHUNK < chunk <= LOGITS // 8 // 1000


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_peak_is_what_the_estimate_says(name, checkpointing):
    how = Setup(rows=8, length=512, checkpointing=checkpointing)
    before = settled()
    base = wide(num_hidden_layers=4)
    expected = dry_run(base.config, FAMILIES[name], how, gpu=True).memory
    model = halka.adapt(base)
    model.add("a", FAMILIES[name])
    config = halka.TrainConfig(batch_size=8, steps=2, checkpointing=checkpointing, batches="padded", save_every=None)
    for _ in halka.train(model, "a", training_items(model, how), config):
        pass
    assert tensor_bytes("peak") - before == pytest.approx(expected.total - expected.allocator, rel=0.2)


def test_deterministic_kernels_give_the_same_bits_in_two_runs():
    for name, (one, other) in json.loads(printed_by("print_losses_of_two_runs")).items():
        assert one == other, name


def test_deterministic_kernels_are_refused_once_the_gpu_has_computed():
    assert "start the process with CUBLAS_WORKSPACE_CONFIG" in printed_by("print_refusal")


def printed_by(function: str) -> str:
    """The last line of a function's output in a process of its own: cuBLAS reads its setting at the first product."""
    command = [sys.executable, "-c", f"import test_gpu; test_gpu.{function}()"]
    inherited = {name: value for name, value in os.environ.items() if name != WORKSPACE}
    paths = [str(Path(__file__).parent), *filter(None, [inherited.get("PYTHONPATH")])]
    environment = {**inherited, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def print_losses_of_two_runs() -> None:
    """Of each family's training within `deterministic`, as JSON."""
    config = halka.TrainConfig(steps=3, batch_size=4)
    with halka.deterministic():
        losses = {
            name: [[step.loss for step in halka.train(model_on("cuda"), name, items(), config)] for _ in range(2)]
            for name in FAMILIES
        }
    print(json.dumps(losses))


def print_refusal() -> None:
    """Of `deterministic` after a product."""
    settled()
    try:
        with halka.deterministic():
            print("nothing is refused")
    except halka.HalkaError as error:
        print(error)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    whole, halved = model_on("cuda"), model_on("cuda")
    config = halka.TrainConfig(lr=1e-2, steps=4, batch_size=4, save_every=1)
    expected = [step.loss for step in halka.train(whole, "lora", items(), config)]
    steps = halka.train(halved, "lora", items(), config, folder=tmp_path)
    first = [next(steps).loss, next(steps).loss]
    steps.close()
    rest = [step.loss for step in halka.train(halved, "lora", items(), config, folder=tmp_path)]
    assert [*first, *rest] == pytest.approx(expected, rel=1e-3)
