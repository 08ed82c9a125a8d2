"""What a GPU computes is what the processor computes: training on packed batches, mixed batches, the engine.

Skipped where there is none. fp32 without TF32, so that differences are of the order of sums alone.
"""

from __future__ import annotations

import pytest
import torch

import halka
from engine_for_tests import alone, model_of, prompts, run
from halka.data.tokens import Tokens
from halka.models import memory_of
from halka.models.attention.paged import KVBlocks
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
