"""The general pass keeps what a mixed line computes with, while rows join and leave."""

from __future__ import annotations

import pytest
import torch

import halka
from contract import disturb
from halka.core import AdaptedModel
from halka.engine.forward import TransformersForward
from halka.engine.line import Line
from lines_for_tests import Lines
from tiny import tiny
from torch_calls import torch_calls

CASES = {
    "lora": ("llama", halka.LoRA(rank=4)),
    "bottleneck": ("llama", halka.Bottleneck(width=4)),
    "gated": ("llama", halka.LlamaAdapter(length=3)),
    "experts": ("mixtral", halka.LoRA(rank=4, targets=("experts", "attn.q"))),
}


class Forgetful(TransformersForward):
    """Makes everything anew for every line."""

    def __call__(self, line: Line) -> torch.Tensor:
        self.forget()
        return super().__call__(line)


def steps(model: AdaptedModel, forward: TransformersForward) -> list[torch.Tensor]:
    """A prompt of each adapter and one of the base; then some of the rows, and a chunk beside others."""
    lines = Lines(model, forward)
    base, a, b, c = all_texts = [lines.text(name) for name in (None, "a", "b", "c")]
    return [
        lines(dict(zip(all_texts, (3, 2, 4, 2), strict=True))),
        lines({a: 1, c: 1}),
        lines(dict.fromkeys(all_texts, 1)),
        lines({base: 2, a: 1, b: 20, c: 1}),
        lines({b: 1, c: 30}),
        lines(dict.fromkeys(all_texts, 1)),
    ]


@pytest.mark.parametrize("case", CASES)
def test_what_is_kept_computes_what_is_made_anew(case):
    base, method = CASES[case]
    model = halka.adapt(tiny(base))
    for seed, name in enumerate("abc"):
        model.add(name, method, seed=seed)
        disturb(model, name, seed=seed, by=0.1)
    forward = TransformersForward(model)
    steps(model, forward)
    with torch_calls() as calls:
        kept = steps(model, forward)
    assert not calls.of(torch.stack) or case == "gated"  # virtual tokens are stacked for every pass
    for one, other in zip(kept, steps(model, Forgetful(model)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
