"""Where tensors are put, and what the host waits for, on fake GPUs; `test_placement.py` runs it in another process.

Autograd counts devices once, at a process's first backward pass: fake ones must be there before it.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from dataclasses import replace
from functools import partial, update_wrapper
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fake_gpu
import halka
from contract import BASES, RELATED, logits_and_gradients, named, pairs
from engine_for_tests import Tokenizer
from halka.core import StackedParts
from halka.data.batches import collate
from halka.data.packing import pack
from halka.data.tokens import Tokens
from halka.engine.kept import kept_of
from halka.models.fingerprint import own_fingerprint
from halka.objectives.classification import Labelled
from halka.objectives.sequence_to_sequence import Pair
from halka.training import Step
from halka.training.checkpoint import Progress
from halka.training.job import EncodedJob
from halka.training.ranks import Ranks
from halka.training.run import Run
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

FAMILIES = {
    "lora": halka.LoRA(rank=4),
    "bottleneck": halka.Bottleneck(width=8),
    "prefix": halka.Prefix(length=5),
    "prompt": halka.Prompt(length=6),
    "llama_adapter": halka.LlamaAdapter(),
    "full": halka.Full(),
}
AT_HEAD = {
    "at its output": halka.LoRA(rank=4, targets=("head",)),
    "at its input": halka.IA3(targets=("head",), feedforward=("head",)),
}
WAITS = 3  # a training step, at most
CPU, FIRST, SECOND = "cpu", "gpu:0", "gpu:1"
LIKELIEST = halka.Sampling()


@pytest.fixture(autouse=True, scope="module")
def gpus():
    with fake_gpu.present():
        yield


def first_forms() -> list[tuple]:
    """Each method on Llama, and the first one on every other kind of base."""
    others = [pairs(name)[0] for name in (*BASES, *RELATED) if name != "llama"]
    return named([*pairs("llama"), *others])


def base_on(*devices: str, architecture: str = "llama", dtype=torch.float32, **config):
    """A tiny base on a device, or with its last layer and norm on a second one, as accelerate puts them."""
    base: Any = tiny(architecture, **config)
    base.to(dtype).to(devices[0])
    base.tie_weights()
    if len(devices) > 1:
        for block, device in (
            *((base.model.layers[1], devices[1]), (base.model.norm, devices[1]), (base.lm_head, devices[0])),
        ):
            block.to(device)
            for module in block.modules():
                module.forward = update_wrapper(partial(moved, module.forward, device), module.forward)
    return base


def moved(forward, device: str, *args, **kwargs):
    """What `forward` returns of its arguments on the device: hooks see them, and what it returns, where they are."""

    def there(value):
        if isinstance(value, tuple | list):
            return type(value)(map(there, value))
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return forward(*there(args), **{key: there(value) for key, value in kwargs.items()})


def items() -> list[Tokens]:
    begin = [5, 6, 7, 8, 9, 10, 11, 12]
    return [Tokens([*begin, *range(13, 13 + n)], [False] * 8 + [True] * n) for n in (3, 9, 5, 7, 4, 6, 8, 3)]


def pairs_of_texts() -> list[Pair]:
    return [Pair([*range(5, 9 + n), 2], [*range(30, 32 + n), 2]) for n in (3, 5, 4, 2)]


def labelled() -> list[Labelled]:
    return [Labelled([*range(5, 9 + n)], n % 2, [0] * (4 + n)) for n in (3, 5, 4, 2)]


def losses(base, method, seen=None, of=items, **config) -> list[float]:
    """The losses of three steps; `seen` receives what the fake GPUs were asked in the second."""
    model = halka.adapt(base)
    model.add("a", method)
    steps = halka.train(model, "a", of(), halka.TrainConfig(lr=1e-2, steps=3, batch_size=4, **config))
    first = next(steps).loss
    with fake_gpu.watching() as watched:
        second = next(steps).loss
    if seen is not None:
        seen.append(watched)
    return [first, second, *(step.loss for step in steps)]


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "architecture"), [*((name, "llama") for name in FAMILIES), ("lora", "gemma2"), ("prompt", "gemma2")]
)
def test_a_step_on_a_gpu_takes_the_losses_of_the_processor_and_few_waits(name, architecture):
    seen = []
    there = losses(base_on(FIRST, architecture=architecture), FAMILIES[name], seen)
    assert there == pytest.approx(losses(base_on(CPU, architecture=architecture), FAMILIES[name]), rel=1e-5)
    assert sum(seen[0].waits.values()) <= WAITS, seen[0].waits
    assert [device for device, _ in seen[0].seeds] == [0]


def test_a_line_that_is_longer_than_the_bases_positions_waits_no_more_often():
    """To know whether its longest text and virtual tokens exceed them."""

    def unlike_ends() -> list[Tokens]:
        return [
            Tokens([*item.ids[:8], *(9 * number + token for token in item.ids[8:])], item.loss)
            for number, item in enumerate(items())
        ]

    waits = []
    for positions in (22, 128):
        seen = []
        losses(base_on(FIRST, max_position_embeddings=positions), FAMILIES["prefix"], seen, unlike_ends)
        waits.append(seen[0].waits)
    assert waits[0] == waits[1]


@pytest.mark.parametrize(
    ("architecture", "kind", "of"),
    [("t5", "seq2seq-lm", pairs_of_texts), ("bert", "sequence-classification", labelled)],
)
def test_a_padded_step_of_other_kinds_waits_no_more_often(architecture, kind, of):
    seen = []
    there = losses(base_on(FIRST, architecture=architecture, kind=kind), halka.LoRA(rank=4), seen, of)
    assert there == pytest.approx(losses(base_on(CPU, architecture=architecture, kind=kind), halka.LoRA(rank=4), of=of))
    assert sum(seen[0].waits.values()) <= WAITS, seen[0].waits


def test_experts_wait_once_a_layer_where_torch_has_no_kernel_for_them():
    """For how many tokens each expert has; on GPUs that have the kernel, never."""
    seen, method = [], halka.LoRA(rank=4, targets=("experts",))
    there = losses(base_on(FIRST, architecture="mixtral"), method, seen)
    assert there == pytest.approx(losses(base_on(CPU, architecture="mixtral"), method), rel=1e-5)
    assert seen[0].waits["tolist"] == 2  # layers
    assert sum(seen[0].waits.values()) <= WAITS + 2, seen[0].waits


def test_the_seconds_of_a_step_hold_all_that_the_host_waits_for(monkeypatch):
    """By a clock that goes on by a second whenever it waits."""
    model = halka.adapt(base_on(FIRST))
    model.add("a", halka.LoRA(rank=4))
    steps = halka.train(model, "a", items(), halka.TrainConfig(steps=3, batch_size=4))
    before = next(steps).seconds
    with fake_gpu.watching() as seen:
        monkeypatch.setattr("time.perf_counter", lambda: float(seen.waits.total()))
        step = next(steps)
    assert step.seconds - before == pytest.approx(seen.waits.total()) == 1  # the loss with the gradients' norm


@pytest.mark.parametrize("device", [CPU, FIRST])
def test_rows_matrices_lie_by_input_on_the_processor_alone(device):
    model = halka.adapt(base_on(device))
    adapters = [model.add(name, halka.LoRA(rank=4), seed=seed) for seed, name in enumerate(["a", "b"])]
    parts: Any = [adapter.parts["model.layers.0.self_attn.q_proj"] for adapter in adapters]
    with torch.no_grad():
        stack = StackedParts([0, 1], parts)
        first = stack.joined(stack.by_row, torch.zeros(2, 1, 64, device=device))[0]
    assert first.mT.is_contiguous() == (device == CPU)
    assert first.is_contiguous() == (device != CPU)


@pytest.mark.parametrize(("base", "method"), [pytest.param(*pair, id=name) for name, *pair in first_forms()])
def test_every_method_computes_on_a_gpu_what_it_does_on_the_processor(base, method):
    for one, other in zip(*(logits_and_gradients(base, method, device) for device in (CPU, FIRST)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("devices", "name", "config"),
    [
        *(((FIRST, CPU), name, {}) for name in (*FAMILIES, *AT_HEAD)),
        *(((CPU, FIRST), name, {}) for name in (*FAMILIES, *AT_HEAD)),
        *(((FIRST, CPU), name, {"batches": "padded"}) for name in ("prompt", "llama_adapter")),
        ((FIRST, CPU), "lora", {"checkpointing": True}),
    ],
)
def test_a_base_on_two_devices_trains(devices, name, config):
    """Where its head is with the embeddings, and reads what the second device computed. Autograd has one fake GPU."""
    method = AT_HEAD.get(name) or FAMILIES[name]
    spread = losses(base_on(*devices), method, **config)
    assert spread == pytest.approx(losses(base_on(CPU), method, **config), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_done_to_all_parts_at_once_is_done_device_by_device(dtype):
    """Casts, their factors, and in fp16 the loss's: torch takes tensors of several devices one by one."""
    spread, whole = (losses(base_on(*devices, dtype=dtype), halka.LoRA(rank=4)) for devices in ((FIRST, CPU), (CPU,)))
    assert spread == pytest.approx(whole, rel=1e-2)


def test_parts_are_where_their_targets_compute():
    model = halka.adapt(base_on(FIRST, SECOND))
    adapter = model.add("a", halka.LoRA(rank=4))
    at = {target.layer: str(next(adapter.parts[path].parameters()).device) for path, target in adapter.targets.items()}
    assert at == {0: FIRST, 1: SECOND}
    masters = dict(next(iter(model.add("full", halka.Full()).parts.values())).named_parameters())
    for name, parameter in model.base.named_parameters():
        assert masters[name].device == parameter.device


def test_best_weights_wait_on_the_processor():
    model = halka.adapt(base_on(FIRST))
    model.add("a", halka.LoRA(rank=4))
    run = Run(model, EncodedJob("a", [*items()], halka.TrainConfig(steps=1), [*items()]))
    run.resume(Ranks())
    run.progress = Progress(step=1)
    run.validated(Step(1, 1, 1.0, 1e-3, 0.1, 1, 1.0, 1.0, 0), loss=1.0)
    assert {tensor.device.type for tensor in (run.best or {}).values()} == {CPU}


def test_a_merge_leaves_the_own_weights_on_the_processor():
    model = halka.adapt(base_on(FIRST))
    disturbed(model, "lora", seed=1)
    before = {name: parameter.cpu().clone() for name, parameter in model.base.named_parameters()}
    layer = model.base.model.layers[0].mlp.up_proj
    own = weakref.ref(layer.weight)
    model.merge("lora")
    gc.collect()
    assert own() is None  # the GPU needs room for one of both
    assert str(layer.weight.device) == FIRST
    assert not torch.equal(layer.weight.cpu(), before["model.layers.0.mlp.up_proj.weight"])
    model.unmerge()
    assert not layer.weight.requires_grad
    for name, parameter in model.base.named_parameters():
        assert str(parameter.device) == FIRST
        assert torch.equal(parameter.cpu(), before[name])


class Moved(TorchDispatchMode):
    """The shapes of what is copied to the fake GPUs."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "gpu":
            self.shapes += [value.shape for value in args if isinstance(value, torch.Tensor)]
        return func(*args, **kwargs)


def test_while_merged_saving_loading_and_fingerprints_move_no_weights(tmp_path):
    model = halka.adapt(base_on(FIRST), Tokenizer())
    disturbed(model, "lora", seed=1)
    disturbed(model, "lora 2", seed=2)
    before, weight = own_fingerprint(model), model.base.model.layers[0].mlp.up_proj.weight
    model.merge("lora")
    with Moved() as moved:
        assert own_fingerprint(model) == before
        halka.save(model, "lora 2", tmp_path / "a")
        loaded = halka.load(model, tmp_path / "a")
    assert moved.shapes
    assert weight.shape not in moved.shapes
    assert {str(parameter.device) for parameter in loaded.parameters()} == {FIRST}
    with Moved() as moved:
        model.add("b", halka.LoRA(rank=4))
    assert weight.shape in moved.shapes
    model.unmerge()


def test_the_engine_after_a_merge_moves_no_weights():
    model = halka.adapt(base_on(FIRST), Tokenizer())
    disturbed(model, "lora", seed=1)
    model.merge("lora")
    with kept_of(model) as first:
        pass
    with fake_gpu.watching() as seen, kept_of(model) as second:
        pass
    assert second is first
    assert not seen.operations


@pytest.mark.parametrize(("format", "file"), [("safetensors", "merged"), ("gguf", "merged.gguf")])
def test_what_is_exported_from_a_gpu_is_what_is_exported_from_the_processor(format, file, tmp_path):
    exported = []
    for device in (CPU, FIRST):
        tokenizer = chatml_tokenizer()
        model = halka.adapt(base_on(device, vocab_size=len(tokenizer)), tokenizer)
        disturbed(model, "lora", seed=1)
        (folder := tmp_path / device.partition(":")[0]).mkdir()
        path = halka.export(model, "lora", folder / file, format=format)
        exported.append((path / "model.safetensors" if path.is_dir() else path).read_bytes())
    assert exported[0] == exported[1]


# ── a default device ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*FAMILIES][:5])
def test_a_default_device_changes_no_seed_and_no_batch(name):
    expected = losses(base_on(CPU), FAMILIES[name])
    base = base_on(CPU)
    with torch.device("meta"):
        batch, padded = pack([items()]), collate(items(), 0)
        model = halka.adapt(base)
        adapter = model.add("a", FAMILIES[name])
    assert {str(it.device) for it in (batch.input_ids, batch.position_ids, padded.input_ids)} == {CPU}
    twin = halka.adapt(base_on(CPU)).add("a", FAMILIES[name])
    for key, tensor in twin.state_dict().items():
        assert torch.equal(adapter.state_dict()[key], tensor)
    base = base_on(CPU)
    with torch.device("gpu:1"):
        assert losses(base, FAMILIES[name]) == expected


# ── loading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, tokenizer = tmp_path_factory.mktemp("base"), chatml_tokenizer()
    tiny("llama", vocab_size=len(tokenizer)).bfloat16().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_each_weight_is_read_to_the_device_it_is_for(folder, quantize):
    with fake_gpu.watching() as seen:
        base, _ = halka.load_base(folder, device="gpu:1", quantize=quantize)
    assert {str(tensor.device) for tensor in (*base.parameters(), *base.buffers())} == {SECOND}
    linears = 14 if quantize else 0
    assert seen.operations["aten.amax.default"] == linears  # each layer was quantised there


def test_a_base_that_does_not_fit_says_what_would(folder, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("transformers.LlamaForCausalLM.from_pretrained", full)
    with pytest.raises(halka.OutOfMemoryError, match="does not fit in the memory of gpu:1: use quantize=nf4"):
        halka.load_base(folder, device="gpu:1")


def test_experts_that_do_not_fit_say_so_although_transformers_does_not(tmp_path, monkeypatch):
    """It joins the weights of a layer's experts, and hides what goes wrong there behind words of its own."""
    tokenizer = chatml_tokenizer()
    tiny("qwen3_moe", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("transformers.core_model_loading.MergeModulelist.convert", full)
    with pytest.raises(halka.OutOfMemoryError, match="joined on gpu:1, most likely because its memory is full: use q"):
        halka.load_base(tmp_path, device="gpu:1")
    with pytest.raises(halka.HalkaError, match="cannot be loaded as a causal language model"):
        halka.load_base(tmp_path, device="cpu")


# ── how many operations ─────────────────────────────────────────────────────────────────────────────────────────────


def a_layer_more(operations) -> float:
    """What a layer adds to the operations that are launched, views aside: of bases of four layers and of two."""
    few, more = (operations(base_on(FIRST, num_hidden_layers=layers, dtype=torch.bfloat16)) for layers in (2, 4))
    return (more - few) / 2


def operations_of_a_step(base) -> int:
    seen = []
    losses(base, halka.LoRA(rank=16), seen)
    return seen[0].launches


def operations_of_mixed_rows(base, prompt: int = 0) -> int:
    """Of a token more for rows with three LoRAs, a bottleneck, a prefix and no adapter, beside so many of a prompt."""
    model = halka.adapt(base, Tokenizer())
    for seed, name in enumerate(names := ["lora", "lora 2", "lora 3", "bottleneck", "prefix"]):
        disturbed(model, name, seed)
    with halka.Engine(model, rows=7, prefill=512, ends=frozenset()) as engine:
        for name in [*names, None]:
            engine.submit(halka.Request([*range(5, 20)], name, stopping=halka.Stopping(9)))
        for _ in range(4):
            engine.step()
        if prompt:
            engine.submit(halka.Request([5 + n % 60 for n in range(prompt)], "lora 2", stopping=halka.Stopping(1)))
        with fake_gpu.watching() as seen:
            engine.step()
        assert len(engine.schedule.running) == 6  # the prompt is read whole
    return seen.launches


def operations_beside_a_prompt(base) -> int:
    return operations_of_mixed_rows(base, prompt=100)


@pytest.mark.parametrize(
    ("operations", "most"),
    [(operations_of_a_step, 230), (operations_of_mixed_rows, 120), (operations_beside_a_prompt, 200)],
)
def test_a_layer_launches_few_operations(operations, most):
    assert 0 < a_layer_more(operations) <= most


# ── the engine ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("architecture", "sampling", "logprobs", "waits"),
    [
        ("llama", halka.Sampling(), None, 1),
        ("gemma2", halka.Sampling(), None, 1),
        ("llama", halka.Sampling(), 2, 3),
        ("llama", halka.Sampling(1.0, top_k=20, top_p=0.9, min_p=0.01), 2, 3),
    ],
)
def test_the_engine_on_a_gpu_answers_as_on_the_processor_with_few_waits_a_step(architecture, sampling, logprobs, waits):
    """For the likeliest tokens; for those that are drawn, of all rows in one go; for log probabilities."""
    how = {"architecture": architecture, "sampling": sampling, "logprobs": logprobs}
    assert answers((FIRST,), [*FAMILIES][:4], waits, **how) == answers((CPU,), [*FAMILIES][:4], 0, **how)


@pytest.mark.parametrize("second", [SECOND, CPU])
def test_the_engine_on_two_devices_answers_as_on_the_processor(second):
    assert answers((FIRST, second), [*FAMILIES][:5], None) == answers((CPU,), [*FAMILIES][:5], None)


def answers(devices, names, waits, sampling=LIKELIEST, logprobs=None, architecture="llama") -> list[list[int]]:
    """The tokens of twelve answers, by each adapter in turn and by none, with so many waits a step at most."""
    tokenizer = chatml_tokenizer()
    model = halka.adapt(base_on(*devices, architecture=architecture, vocab_size=len(tokenizer)), tokenizer)
    for seed, name in enumerate(names):
        disturbed(model, name, seed)
    requests = [
        halka.Request([*range(5, 20 + n)], name, replace(sampling, seed=n), halka.Stopping(6), logprobs=logprobs)
        for n, name in zip(range(12), itertools.cycle([*names, None]), strict=False)
    ]
    with halka.Engine(model, rows=6, prefill=32, ends=frozenset()) as engine:
        own = [answer for request in requests for answer in engine.submit(request)]
        more = True
        while more:
            with fake_gpu.watching() as seen:
                more = engine.step()
            assert waits is None or sum(seen.waits.values()) <= waits, seen.waits
            assert not sampling.greedy or not seen.in_float64, seen.in_float64
    assert not any(answer.error for answer in own)
    return [answer.tokens for answer in own]


def test_the_blocks_of_a_prompt_are_cleared_in_one_go():
    model = halka.adapt(base_on(FIRST), Tokenizer())
    with halka.Engine(model, ends=frozenset()) as engine:
        for _ in range(3):
            engine.submit(halka.Request([*range(5, 65)], stopping=halka.Stopping(1)))
        with fake_gpu.watching() as seen:
            engine.step()
    assert seen.operations["aten.index_fill_.int_Scalar"] == 1
    assert not seen.operations["aten.zero_.default"]


def test_an_adapter_counts_twice_on_a_gpu(tmp_path):
    """It is there in fp32, and in the base's precision, for itself and for the rows that it has."""
    model, store = halka.adapt(base_on(FIRST), Tokenizer()), halka.AdapterStore(tmp_path)
    disturbed(model, "lora", seed=1)
    store.save(model, "lora")
    model.remove("lora")
    with halka.Engine(model, store) as engine:
        engine.submit(halka.Request([5, 6, 7], "lora", stopping=halka.Stopping(2)))
        while engine.step():
            pass
        (version,) = engine.adapters.residents.versions
    assert version.bytes == 2 * store.get("lora").open().memory


def disturbed(model, name: str, seed: int) -> None:
    model.add(name, FAMILIES[name.partition(" ")[0]], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters(name):
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.device))


@pytest.mark.parametrize("waiting", [0, 20], ids=["decoding", "beside a prompt"])
def test_a_layer_launches_no_more_for_more_adapters(waiting):
    """Of whose rows some have two, where all are decoded and where a prompt is read beside them."""

    def operations(base, adapters: int) -> int:
        model = halka.adapt(base, Tokenizer())
        for seed, name in enumerate(names := [f"lora {number}" for number in range(adapters)]):
            disturbed(model, name, seed)
        with halka.Engine(model, rows=adapters + 2, prefill=64, ends=frozenset()) as engine:
            for name in [*names, names[-1]]:
                engine.submit(halka.Request([*range(5, 20)], name, stopping=halka.Stopping(9)))
            for _ in range(4):
                engine.step()
            if waiting:
                engine.submit(halka.Request([*range(5, 5 + waiting)], None, stopping=halka.Stopping(2)))
            with fake_gpu.watching() as seen:
                engine.step()
        return seen.launches

    few, more = (a_layer_more(partial(operations, adapters=adapters)) for adapters in (3, 6))
    assert 0 < few == more
