"""Parts that read the residual beside a sublayer, and prefixes that take no positions."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

import halka
from contract import disturb, ids
from halka.methods.normed_bottleneck import NormedBottleneck
from halka.models import context
from tiny import CONFIGS, WITHOUT_RESIDUALS, tiny

PARALLEL = {"cohere2", "gpt_neox", "phi"}  # both sublayers beside each other: their outputs are summed


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return BertForMaskedLM(BertConfig(vocab_size=97, **sizes)).eval()


def logits(model, name=None, tokens=None):
    with torch.no_grad(), model.use(name):
        return model.base(ids() if tokens is None else tokens).logits


@pytest.mark.parametrize("architecture", [*sorted(set(CONFIGS) - set(WITHOUT_RESIDUALS)), "bert"])
@pytest.mark.parametrize("role", ["attn", "mlp"])
def test_the_residual_is_what_the_output_is_added_to(architecture, role):
    base = bert() if architecture == "bert" else tiny(architecture)
    model = halka.adapt(base)
    targets = [target for target in model.targets if target.role == f"{role}.residual"]
    seen, layers = {}, []
    model.add("a", halka.Bottleneck(width=3, targets=(role,), reads="residual"))
    for path, part in model.adapter("a").parts.items():
        part.edit_output = lambda x, y, *_, path=path: seen.setdefault(path, (x, y))[1]
    with torch.no_grad(), model.use("a"):
        states = base(ids(), output_hidden_states=True).hidden_states
    assert len(targets) == len(states) - 1 == 2
    if architecture == "bert":
        for layer, target in enumerate(targets):
            x, y = seen[target.name]
            layers.append(target.norm.forward(x + y))
            if role == "attn":
                torch.testing.assert_close(x, states[layer], rtol=0, atol=0)
            else:
                torch.testing.assert_close(layers[-1], states[layer + 1], rtol=0, atol=1e-5)
    elif role == "attn":
        assert all(torch.equal(seen[target.name][0], states[layer]) for layer, target in enumerate(targets))
    else:
        x, y = seen[targets[0].name]
        if architecture not in PARALLEL:
            torch.testing.assert_close(x + y, states[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", WITHOUT_RESIDUALS)
def test_where_more_than_the_sum_stands_between_it_is_refused(architecture):
    model = halka.adapt(tiny(architecture))
    with pytest.raises(ValueError, match=r"bottleneck wants 'mlp\.residual', which this base does not have"):
        model.add("a", halka.Bottleneck(targets=("mlp",), reads="sum"))


@pytest.mark.parametrize(
    "method",
    [
        halka.Bottleneck(width=4, reads="sum", scaling="channel"),
        NormedBottleneck(width=4, norms=("outer", "before")),
        NormedBottleneck(width=4, reads="residual", norms=("after",), keeps="read"),
        NormedBottleneck(width=4, reads="sum", norms=(), keeps="sum"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_rows_of_unlike_adapters_are_as_alone(architecture, method):
    model = halka.adapt(bert() if architecture == "bert" else tiny())
    for seed, name in enumerate("ab"):
        model.add(name, method, seed=seed)
        disturb(model, name, seed=seed, by=0.2)
    alone = [logits(model, name)[row] for row, name in enumerate(("a", None, "b"))]
    together = logits(model, ["a", None, "b"])
    assert (alone[0] - logits(model)[0]).abs().max() > 1e-3
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-5)


def test_widths_by_layer_leave_layers_out():
    model = halka.adapt(tiny())
    parts = model.add("a", halka.Bottleneck(widths=(0, 5))).parts
    assert {path: part.down.out_features for path, part in parts.items()} == {
        "model.layers.1.self_attn.o_proj": 5,
        "model.layers.1.mlp.down_proj": 5,
    }
    with pytest.raises(ValueError, match="widths has 1 layers, and this base has more"):
        model.add("b", halka.Bottleneck(widths=(3,)))
    with pytest.raises(ValueError, match="one width above 0, or widths"):
        halka.Bottleneck(width=3, widths=(3, 3))


@pytest.mark.parametrize("fields", [{"activation": "swish"}, {"reads": "norm"}, {"scaling": "root"}])
def test_values_that_there_are_not_are_refused_with_those_there_are(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f"bottleneck: {name} is one of .*, not '{fields[name]}'"):
        halka.Bottleneck(**fields)
    with pytest.raises(ValueError, match="norms takes before, after, outer, not 'around'"):
        NormedBottleneck(norms=("around",))
    with pytest.raises(ValueError, match="to keep the sum it must read the residual or the sum"):
        NormedBottleneck(keeps="sum")


def test_a_positionless_prefix_is_one_whose_text_begins_at_zero():
    model = halka.adapt(tiny())
    state = model.add("moving", halka.Prefix(length=5, start="random")).state_dict()
    model.add("still", halka.PositionlessPrefix(length=5, start="random"), state=state)
    disturb(model, "moving", by=1.0)
    model.adapter("still").load_state_dict(model.adapter("moving").state_dict())
    back = torch.arange(9)[None] - 5
    with torch.no_grad(), model.use("moving"):
        expected = model.base(ids(), position_ids=back).logits
    torch.testing.assert_close(logits(model, "still"), expected, rtol=0, atol=1e-5)
    assert (logits(model, "moving") - expected).abs().max() > 1e-4
    rows = logits(model, ["moving", "still", None])
    alone = [logits(model, name)[row] for row, name in enumerate(("moving", "still", None))]
    torch.testing.assert_close(rows, torch.stack(alone), rtol=0, atol=1e-5)


def test_the_limit_counts_positions_that_are_taken():
    model = halka.adapt(tiny())
    model.add("long", halka.PositionlessPrefix(length=100))
    model.add("short", halka.Prefix(length=20))
    assert (context(model, "long"), context(model, "short")) == (128, 108)
    assert logits(model, "long", ids(1, 128)).shape[1] == 128
    assert logits(model, ["long", "short"], ids(2, 108)).shape[1] == 108
    with pytest.raises(ValueError, match="20 virtual tokens and 109 of text exceed the base's 128 positions"):
        logits(model, ["long", "short"], ids(2, 109))
