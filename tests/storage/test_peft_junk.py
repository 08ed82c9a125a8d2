"""Whatever a peft configuration's keys hold, the folder is read or refused in words."""

from __future__ import annotations

import json

import pytest

import halka
from contract import disturb
from halka.storage.formats.peft.selection import MOST, by_pattern, selected
from halka.util.errors import HalkaError
from tiny import tiny

JUNK = [
    *(None, True, False, -1, 0, 7, 1.5, 1e308, float("nan"), "", "x", "*", "all", [], [1], [None], ["x"], [["x"]]),
    *({}, {"a": 1}, {"": {}}, {"q_proj": "x"}, {"q_proj": None}, {"*": 2}, {"a": [1]}, {"embed_tokens": [5]}),
]
METHODS = {
    "lora": halka.Joint((halka.LoRA(rank=2, targets=("attn.q",)), halka.LoRA(rank=3, targets=("attn.v",)))),
    "beside": halka.Joint(
        (halka.LoRABias(rank=2, targets=("attn.q",)), halka.Modules(), halka.Tokens((5,), ("embedding",)))
    ),
    "ia3": halka.IA3(),
    "prefix": halka.Prefix(length=2),
    "prompt": halka.Prompt(length=2),
    "tokens": halka.Tokens((5, 6), ("embedding",)),
    "llama_adapter": halka.LlamaAdapter(length=2),
    "own": halka.BitFit(targets=("attn.o",)),  # few parts: nearly every folder of its kind is read
}
KEYS = {
    *("peft_type", "target_modules", "exclude_modules", "modules_to_save", "trainable_token_indices", "token_indices"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "bias", "use_dora", "lora_bias"),
    *("feedforward_modules", "num_virtual_tokens", "num_layers", "adapter_len", "adapter_layers", "init_r", "fields"),
    *("lora_alpha", "r", "lora_dropout", "use_rslora", "fan_in_fan_out", "init_lora_weights", "target_parameters"),
    "prefix_projection",
}


@pytest.mark.parametrize("kind", METHODS)
def test_junk_in_a_configuration_is_read_or_refused_in_words(kind, tmp_path):
    model = halka.adapt(tiny())
    model.add("a", METHODS[kind])
    disturb(model, "a")
    folder = halka.save(model, "a", tmp_path / "a")
    model.remove("a")
    (folder / "halka.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    for key in sorted(KEYS | config.keys()):
        for junk in JUNK:
            changes = {key: junk, **({"layers_to_transform": [0, 1]} if key == "layers_pattern" else {})}
            (folder / "adapter_config.json").write_text(json.dumps(config | changes))
            try:
                halka.load(model, folder, name="b")
                model.remove("b")
            except ValueError as error:
                assert str(folder) in str(error), (key, junk)  # noqa: PT017
            except Exception as error:
                raise AssertionError((key, junk)) from error
            assert not model.adapters


def test_all_expressions_of_a_selection_have_one_deadline():
    """Each matches within its time, and all together do not: whoever loads the adapter would hold the engine."""
    base = tiny()
    patterns = [r"(.*)(.*)(.*)(.*)\1\2[A-Z]"] * MOST
    config = {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": patterns}
    with pytest.raises(HalkaError, match=r"layers_pattern holds .* takes too long to match"):
        selected(config, base, [])


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "layers_pattern", "modules_to_save"])
def test_a_list_of_names_is_bounded(key):
    config = {"target_modules": ["q_proj"], "layers_to_transform": [0], key: ["q_proj"] * (MOST + 1)}
    with pytest.raises(HalkaError, match=f"{key} has 10,001 entries, and at most 10,000"):
        selected(config, tiny(), [])


def test_the_expressions_of_a_pattern_are_bounded():
    with pytest.raises(HalkaError, match="rank_pattern has 10,001 entries"):
        by_pattern({"rank_pattern": {f"x{number}": 2 for number in range(MOST + 1)}}, "rank_pattern", ["x"], 4)
