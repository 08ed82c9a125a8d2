"""What a GPU computes is what the processor computes, with few waits, and within the memory that it is to take.

Skipped where there is none (`test_placement.py` has what shows without). fp32 without TF32, so that differences are of
the order of sums alone.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

import halka
from contract import logits_and_gradients, named, pairs
from engine_for_tests import alone, model_of, prompts, run
from halka.data.tokens import Tokens
from halka.estimating.dry_runs import Setup, dry_run, training_items
from halka.models import memory_of
from halka.models.attention.paged import KVBlocks
from halka.models.quantised import LAYERS, quantise
from halka.util import machine
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FAMILIES = {
    "lora": halka.LoRA(rank=4),
    "bottleneck": halka.Bottleneck(width=8),
    "prefix": halka.Prefix(length=5),
    "prompt": halka.Prompt(length=6),
}


def model_on(device: str, architecture: str = "llama"):
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(architecture, vocab_size=len(tokenizer)), tokenizer)
    for seed, (name, method) in enumerate(FAMILIES.items()):
        model.add(name, method, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters(name):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.to(device)


def items() -> list[Tokens]:
    begin = [5, 6, 7, 8, 9, 10, 11, 12]
    return [Tokens([*begin, *range(13, 13 + n)], [False] * 8 + [True] * n) for n in (3, 9, 5, 7, 4, 6, 8, 3)]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("batches", ["packed", "padded"])
def test_training_on_a_gpu_takes_the_losses_of_the_processor(architecture, name, batches):
    config = halka.TrainConfig(lr=1e-2, steps=3, batch_size=4, batches=batches)
    losses = []
    for device in ("cpu", "cuda"):
        model = model_on(device, architecture)
        losses.append([step.loss for step in halka.train(model, name, items(), config)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


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
    with halka.Engine(model, rows=6, memory=blocks * each, read=24, read_beside=8) as engine:
        answers = [engine.submit(request)[0] for request in requests]
        run(engine)
        assert engine.schedule.preempted
        assert engine.cache.room == engine.cache.size == blocks
    assert [answer.tokens for answer in answers] == [alone(model, request) for request in requests]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_the_engine_on_a_gpu_answers_as_each_adapter_does_alone(architecture):
    model, names = model_on("cuda", architecture), [*FAMILIES, None]
    requests = [
        halka.Request([*range(5, 20 + n)], names[n % len(names)], stopping=halka.Stopping(8)) for n in range(15)
    ]
    with halka.Engine(model, rows=6, read=32, ends=frozenset()) as engine:
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


def wide(dtype=torch.bfloat16, **changes):
    """Wide enough for kernels, with grouped heads."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}
    return tiny("llama", **{**sizes, "max_position_embeddings": 4096, **changes}).to("cuda", dtype)


def long_items(count: int, length: int) -> list[Tokens]:
    return [
        Tokens([5 + (i + n) % 80 for i in range(length - n)], [False] * 8 + [True] * (length - n - 8))
        for n in range(count)
    ]


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batches", ["packed", "padded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_training_takes_no_math_kernel_and_holds_no_scores(name, batches, dtype):
    """A row of 2048 tokens has 8 × 2048 × 2048 scores: 64 MB in bf16."""
    model = halka.adapt(wide(dtype))
    model.add("a", FAMILIES[name])
    config = halka.TrainConfig(steps=1, batch_size=2, batches=batches)
    before = torch.cuda.memory_allocated()
    machine.reset_peak(torch.device("cuda"))
    with without_the_math_kernel():
        for _ in halka.train(model, "a", long_items(2, 2048), config):
            pass
    activations = 2 * 2 * 2048 * (24 * 512 + 6 * 1024) * dtype.itemsize  # of two layers, generously
    assert torch.cuda.max_memory_allocated() - before < activations + 32 * MB


def test_left_padded_decoding_takes_no_math_kernel():
    model = halka.adapt(wide())
    model.add("a", halka.Prefix(length=8))
    ids = torch.randint(5, 90, (3, 300), device="cuda")
    mask = torch.ones_like(ids)
    mask[1, :100] = 0
    with without_the_math_kernel(), torch.inference_mode(), model.use("a"):
        model.base.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False)


def waits_in(steps) -> int:
    """How often the host waits for the GPU in the next step."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len([it for it in seen if "synchron" in str(it.message)])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_waits_for_the_gpu_four_times_at_most(name):
    model = model_on("cuda")
    steps = halka.train(model, name, items(), halka.TrainConfig(steps=4, batch_size=4))
    next(steps)
    next(steps)
    assert waits_in(steps) <= 4


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
        counts.append(sum(event.count for event in profile.key_averages()))
    assert (counts[1] - counts[0]) / 4 < 260


def test_checkpointed_gradients_are_those_of_all_activations():
    """They are recomputed in autograd's own thread, with the rows' own adapters."""
    gradients = []
    for checkpointing in (False, True):
        model = model_on("cuda")
        names = [*FAMILIES][:2]
        jobs = [
            halka.Job(name, items(), halka.TrainConfig(lr=1e-2, steps=2, batch_size=4, checkpointing=checkpointing))
            for name in names
        ]
        for _ in halka.train_many(model, jobs):
            pass
        gradients.append([parameter.detach().clone() for name in names for parameter in model.parameters(name)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_grouped_products_of_experts_wait_for_nothing():
    model = halka.adapt(tiny("qwen3_moe").to("cuda", torch.bfloat16))
    model.add("a", halka.LoRA(rank=16, targets=("experts",)))
    steps = halka.train(model, "a", items(), halka.TrainConfig(steps=4, batch_size=4))
    next(steps)
    assert waits_in(steps) <= 8


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
    before = torch.cuda.memory_allocated()
    machine.reset_peak(torch.device("cuda"))
    model.merge("a")
    merged = torch.cuda.memory_allocated() - before
    assert torch.cuda.max_memory_allocated() - before < merged + 5 * 1024 * 2048 * 4


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_memory_that_runs_out_says_the_way_out_and_leaves_a_checkpoint(tmp_path):
    model = halka.adapt(wide())
    model.add("a", halka.LoRA(rank=8))
    config = halka.TrainConfig(steps=6, batch_size=8, batches="padded", save_every=1)
    steps = halka.train(model, "a", long_items(48, 64), config, folder=tmp_path)
    next(steps)
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
    again = halka.train(model, "a", long_items(48, 64), config, folder=tmp_path)
    assert [step.step for step in again][-1] == 6


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_peak_is_what_the_estimate_says(name, checkpointing):
    base = wide(num_hidden_layers=4)
    how = Setup(rows=8, length=512, checkpointing=checkpointing)
    expected = dry_run(base.config, FAMILIES[name], how, gpu=True).memory
    model = halka.adapt(base)
    model.add("a", FAMILIES[name])
    torch.cuda.empty_cache()
    machine.reset_peak(torch.device("cuda"))
    config = halka.TrainConfig(batch_size=8, steps=2, checkpointing=checkpointing, batches="padded", save_every=None)
    for _ in halka.train(model, "a", training_items(model, how), config):
        pass
    assert torch.cuda.max_memory_allocated() == pytest.approx(expected.total - expected.allocator, rel=0.15)


@pytest.mark.parametrize("name", FAMILIES)
def test_deterministic_kernels_give_the_same_bits_in_two_runs(name):
    with halka.deterministic():
        runs = [
            [
                step.loss
                for step in halka.train(model_on("cuda"), name, items(), halka.TrainConfig(steps=3, batch_size=4))
            ]
            for _ in range(2)
        ]
    assert runs[0] == runs[1]


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    whole, halved = model_on("cuda"), model_on("cuda")
    config = halka.TrainConfig(lr=1e-2, steps=4, batch_size=4, save_every=1)
    expected = [step.loss for step in halka.train(whole, "lora", items(), config)]
    steps = halka.train(halved, "lora", items(), config, folder=tmp_path)
    first = [next(steps).loss, next(steps).loss]
    steps.close()
    rest = [step.loss for step in halka.train(halved, "lora", items(), config, folder=tmp_path)]
    assert [*first, *rest] == pytest.approx(expected, rel=1e-5)
