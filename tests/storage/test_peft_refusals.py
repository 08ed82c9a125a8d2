"""What a peft folder may say that is not to be had here: refused by name, and soon; what is at rest is passed over."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import halka
from contract import disturb, ids
from halka.models.quantised import quantise
from tiny import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def written(folder, config, architecture="llama", **changes):
    """A folder by peft, with keys of its configuration changed."""
    theirs = peft.get_peft_model(tiny(architecture), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each in (p for p in theirs.parameters() if p.requires_grad):
            each.add_(torch.randn(each.shape, generator=generator) * 0.1)
    theirs.save_pretrained(folder)
    return changed(folder, **changes)


def changed(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def lora(modules=("q_proj", "v_proj"), **options):
    return peft.LoraConfig(r=4, target_modules=list(modules), task_type="CAUSAL_LM", **options)


def refused(folder, message, architecture="llama"):
    model = halka.adapt(tiny(architecture))
    started = time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        halka.load(model, folder)
    assert str(folder) in str(error.value)
    assert time.monotonic() - started < 10
    assert not model.adapters


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer_replication", [[0, 2], [1, 2]], "layer_replication.*merge the adapter into its base with peft"),
        ("target_parameters", ["mlp.experts.gate_up_proj"], "target_parameters names .* no weight of experts of"),
        ("use_qalora", True, "use_qalora.*train it without"),
        ("alora_invocation_tokens", [3, 4], "alora_invocation_tokens.*acts only after these tokens"),
        ("arrow_config", {"top_k": 3}, "arrow_config.*routes among other adapters"),
        ("kasa_config", {"beta": 1}, "kasa_config = .*Halka does not have it"),
        ("monteclora_config", {"k": 1}, "monteclora_config = .*Halka does not have it"),
        ("use_bdlora", {"nblocks": 2}, "use_bdlora = .*Halka does not have it"),
        ("something_new", 3, "something_new = 3 changes what the adapter computes"),
        ("init_lora_weights", "pissa", "subtracted the initial LoRA from the base's weights.*path_initial_model"),
        ("bias", "everything", "bias is 'everything', where one of none, lora_only, all is expected"),
        pytest.param("r", 10**400, "r is 1000.*, where a number is expected", id="huge"),
        ("r", "four", "r is 'four', where a number is expected"),
        ("r", 1.5, "r is 1.5, where a whole number is expected"),
        ("lora_alpha", None, "lora_alpha is None, where a number is expected"),
        ("lora_dropout", [], r"weights|number|fit"),
        ("rank_pattern", ["q_proj"], "rank_pattern is .*names with their values"),
        ("rank_pattern", {"q_proj": 3}, "do not fit"),
        ("alpha_pattern", {"(": 3}, r"alpha_pattern holds .*no regular expression"),
        ("target_modules", "(q_proj", "target_modules holds .*no regular expression"),
        ("target_modules", ["q_proj", 3], "target_modules is .*list of names"),
        ("target_modules", ["q_proj"], "tensors of 2 modules that its target_modules do not name"),
        ("target_modules", ["q_proj", "v_proj", "o_proj"], "leaves out 2 modules that its target_modules name"),
        ("target_modules", ["q_proj", "v_proj", "nowhere"], "names nowhere, and this base has no such layer"),
        ("layers_to_transform", [1], "tensors of 2 modules that its target_modules do not name"),
        ("modules_to_save", "lm_head", "modules_to_save is 'lm_head', where a list of names"),
        ("modules_to_save", ["lm_head"], r"the weights lack lm_head\.weight, which modules_to_save names"),
        ("trainable_token_indices", [3], "the weights lack the trained tokens' rows"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(key, value, message, tmp_path):
    folder = written(tmp_path / "a", lora(), **{key: value})
    if (key, value) == ("lora_dropout", []):
        halka.load(halka.adapt(tiny()), folder)  # nothing is no dropout
    else:
        refused(folder, message)


@pytest.mark.parametrize("trap", ["(.*)*(.*)*(.*)*(.*)*(.*)*!", "((a|_|.)+)+(.|..)+!", "(.|.|.)*(.|.)*(..|.)*!"])
@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "alpha_pattern"])
def test_an_expression_that_takes_for_ever_is_given_up(key, trap, tmp_path):
    value = {trap: 3} if key == "alpha_pattern" else trap
    folder = written(tmp_path / "a", lora(), **{key: value})
    model = halka.adapt(tiny())
    started = time.monotonic()
    try:
        halka.load(model, folder)
    except ValueError as error:
        assert key in str(error) or "do not name" in str(error)  # noqa: PT017
    assert time.monotonic() - started < 10


def test_keys_at_rest_are_passed_over(tmp_path):
    rest = {"something_new": None, "else_new": False, "more_new": [], "and_new": {}, "bias_new": "none"}
    folder = written(tmp_path / "a", lora(), **rest)
    assert halka.load(halka.adapt(tiny()), folder).count() > 0


def test_whole_modules_that_the_base_lacks_are_passed_over_as_peft_does(tmp_path):
    folder = written(tmp_path / "a", lora(), modules_to_save=["classifier", "score"])
    adapter = halka.load(halka.adapt(tiny()), folder)
    assert adapter.method.name == "lora"


def test_a_dora_with_what_it_cannot_hold_is_refused(tmp_path):
    config = lora(["c_attn"], use_dora=True, bias="lora_only", fan_in_fan_out=True)
    refused(written(tmp_path / "a", config, "gpt2"), "Halka does not have a DoRA with trained biases", "gpt2")
    config = lora(["embed_tokens", "q_proj"], use_dora=True)
    refused(written(tmp_path / "b", config), "dora on the embedding model.embed_tokens")


def test_modules_within_layers_beside_a_prompt_are_refused(tmp_path):
    config = peft.PromptTuningConfig(num_virtual_tokens=3, modules_to_save=["input_layernorm"], task_type="CAUSAL_LM")
    refused(written(tmp_path / "a", config), r"trains model\.layers\.0\.input_layernorm whole beside a prompt")


def test_a_whole_embedding_beside_a_prompt_is_refused(tmp_path):
    config = peft.PromptTuningConfig(num_virtual_tokens=3, modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    refused(written(tmp_path / "a", config), "trains the embedding whole beside a prompt, and peft reads texts by the")


def test_ranks_of_each_module_are_read_however_many_there_are(tmp_path):
    """As EVA allocates them: a name for every module, more pairs than a regular expression each has time for."""
    base = tiny(num_hidden_layers=40)
    paths = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
    ranks = {path: 1 + number % 3 for number, path in enumerate(paths)}
    theirs = peft.get_peft_model(base, lora([path.rpartition(".")[2] for path in paths], rank_pattern=ranks))
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path)
    model = halka.adapt(tiny(num_hidden_layers=40))
    halka.load(model, tmp_path, name="a")
    with torch.no_grad(), model.use("a"):
        torch.testing.assert_close(model.base(ids()).logits, theirs(ids()).logits, rtol=0, atol=1e-4)


def test_a_vera_without_its_projections_is_refused(tmp_path):
    config = peft.VeraConfig(r=8, target_modules=["q_proj"], save_projection=False, task_type="CAUSAL_LM")
    refused(written(tmp_path / "a", config), "save_projection=True")


def test_another_embedding_beside_its_lora_is_refused(tmp_path):
    folder = written(tmp_path / "a", lora(["embed_tokens"]))
    tensors = load_file(folder / WEIGHTS)
    key = next(each for each in tensors if each.endswith("base_layer.weight"))
    save_file({**tensors, key: tensors[key] + 1}, folder / WEIGHTS)
    refused(folder, r"another model\.embed_tokens than this base")
    save_file({**tensors, key: torch.zeros(99, 64)}, folder / WEIGHTS)
    refused(folder, "vocabulary was resized, so call base.resize_token_embeddings and then halka.adapt again")


@pytest.mark.parametrize("key", ["lm_head.base_layer.weight", "q_proj.base_layer.weight"])
def test_another_weight_beside_any_lora_is_refused(key, tmp_path):
    theirs = peft.get_peft_model(tiny(), lora(["lm_head", "q_proj"]))
    theirs.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    own = {name: each for name, each in theirs.state_dict().items() if name.endswith(key)}
    save_file({**own, **tensors}, tmp_path / "a" / WEIGHTS)
    halka.load(halka.adapt(tiny()), tmp_path / "a")
    name = next(iter(own))
    save_file({**own, **tensors, name: own[name] + 1}, tmp_path / "a" / WEIGHTS)
    refused(tmp_path / "a", f"another .*{key.partition('.')[0]} than this base")


def test_a_whole_weight_is_not_held_against_a_packed_one(tmp_path):
    folder = written(tmp_path / "a", lora(["q_proj"]))
    tensors, name = load_file(folder / WEIGHTS), "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    save_file({**tensors, name: torch.zeros(64, 64)}, folder / WEIGHTS)
    base = tiny()
    quantise(base, "int8")
    with pytest.raises(ValueError, match=r"holds all of model\.layers\.0\.self_attn\.q_proj, .* it is quantised"):
        halka.load(halka.adapt(base), folder)


@pytest.mark.parametrize("method", [halka.LoRA(rank=2, targets=("head",)), halka.DoRA(rank=2, targets=("head",))])
def test_a_head_that_peft_saves_with_its_own_bias_has_the_bias_of_the_base(method, tmp_path):
    model = halka.adapt(tiny("phi"))
    model.add("a", method)
    halka.save(model, "a", tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tiny("phi"), str(tmp_path / "a"))
    theirs.save_pretrained(str(tmp_path / "b"), save_embedding_layers=True)
    assert any(key.endswith("base_layer.bias") for key in load_file(tmp_path / "b" / WEIGHTS))
    again = halka.load(halka.adapt(tiny("phi")), tmp_path / "b", name="a").method
    assert (type(again), again.roles()) == (type(method), method.roles())


def test_a_prefix_on_an_encoder_has_no_form_in_peft(tmp_path):
    model = halka.adapt(tiny("bert", kind="sequence-classification"))
    model.add("a", halka.Prefix(length=2))
    with pytest.raises(ValueError, match="peft"):
        halka.export(model, "a", tmp_path / "a", format="peft")


def test_what_peft_has_no_form_for_is_written_in_our_own(tmp_path):
    for number, method in enumerate(
        [
            halka.Joint((halka.Prompt(length=3), halka.Modules(("model.layers.0.mlp",)))),
            halka.Joint((halka.Prompt(length=3), halka.Modules(("embedding",)))),  # peft leaves it out there
            halka.Joint((halka.LoRA(rank=2, targets=("attn.q",)), halka.DoRA(rank=2, targets=("attn.v",)))),
            halka.Joint((halka.IA3(), halka.Tokens((5,)))),
            halka.Modules(),
        ]
    ):
        model = halka.adapt(tiny())
        model.add("a", method)
        disturb(model, "a")
        folder = halka.save(model, "a", tmp_path / str(number))
        assert "fields" in json.loads((folder / CONFIG).read_text())
        again = halka.adapt(tiny())
        assert halka.load(again, folder, name="a").method == method
        with torch.no_grad(), model.use("a"), again.use("a"):
            torch.testing.assert_close(again.base(ids()).logits, model.base(ids()).logits, rtol=0, atol=1e-6)


def test_a_single_layer_is_named_as_short_as_it_can_be(tmp_path):
    model = halka.adapt(tiny())
    model.add("a", halka.LoRA(rank=2, targets=("attn.q", "model.layers.1.mlp.up_proj")))
    config = json.loads((halka.save(model, "a", tmp_path / "a") / CONFIG).read_text())
    queries = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    assert config["target_modules"] == sorted([*queries, "model.layers.1.mlp.up_proj"])
    model.add("b", halka.LoRA(rank=2, targets=("attn.q", "mlp.linear")))
    config = json.loads((halka.save(model, "b", tmp_path / "b") / CONFIG).read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj", "q_proj", "up_proj"]
