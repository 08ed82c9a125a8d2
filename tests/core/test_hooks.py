"""Parts edit what a module receives and returns, whether its caller passes that by position or by name."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import halka
from contract import disturb
from halka.core import AdaptedModel, Target


class Norm(nn.LayerNorm):
    def forward(self, residual, bias=None):
        return super().forward(residual) if bias is None else super().forward(residual) + bias


class Sublayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, hidden, mask=None, *, by_name: bool):
        inner = self.up(input=hidden) if by_name else self.up(hidden)
        return self.down(input=inner.relu()) if by_name else self.down(inner.relu())


class Base(nn.Module):
    def __init__(self, by_name: bool):
        super().__init__()
        torch.manual_seed(0)
        self.by_name, self.norm, self.mlp = by_name, Norm(8), Sublayer()

    def forward(self, x):
        if not self.by_name:
            return x + self.mlp(self.norm(x, None), None, by_name=False)
        other = torch.zeros(8)  # what stands first among the names is not the input
        return x + self.mlp(mask=other, hidden=self.norm(bias=other, residual=x), by_name=True)


class NoVirtualTokens:
    def __init__(self, base: nn.Module):
        self.entries = [base]

    def using(self, parts, bare):
        return nullcontext()

    def begin(self, entry, args, kwargs, runs):
        return None

    def end(self, entry, kwargs, output):
        return None


METHODS = {
    "input": halka.IA3(targets=("mlp.down",)),
    "output": halka.LoRA(rank=2, targets=("mlp.up",)),
    "sublayer": halka.Bottleneck(width=2, targets=("mlp",), reads="input"),
    "residual": halka.Bottleneck(width=2, targets=("mlp",), reads="residual"),
}


def outputs(method: halka.Method, by_name: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What the bare base computes, and the base with the method's parts."""
    base = Base(by_name)
    up, down = base.mlp.up, base.mlp.down
    targets = [
        Target("mlp.up", "mlp.up", up, 8, 6),
        Target("mlp.down", "mlp.down", down, 6, 8),
        Target("mlp.down", "mlp", down, 8, 8, source="mlp"),
        Target("mlp.down", "mlp.residual", down, 8, 8, source="norm"),
    ]
    model = AdaptedModel(base, targets, NoVirtualTokens(base))
    model.add("a", method)
    disturb(model, "a", by=0.5)
    x = torch.linspace(-1, 1, 48).view(2, 3, 8)
    with torch.no_grad():
        bare = base(x)
        with model.use("a"):
            return bare, base(x)


@pytest.mark.parametrize("form", METHODS)
def test_modules_that_are_called_by_name_compute_as_by_position(form):
    bare, expected = outputs(METHODS[form], by_name=False)
    assert not torch.allclose(expected, bare)
    for computed, wanted in zip(outputs(METHODS[form], by_name=True), (bare, expected), strict=True):
        assert torch.equal(computed, wanted)
