"""peft's configurations as our methods: as many trained parameters as peft itself makes of them."""

from __future__ import annotations

import copy

import peft
import pytest

import halka
from tiny import tiny
from tokenizers_for_tests import llama3_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # peft reads what transformers renamed
LORA = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 12}
CONFIGS = {
    "lora": (peft.LoraConfig(**LORA, target_modules=["q_proj", "v_proj"]), "llama"),
    "all linear": (peft.LoraConfig(**LORA, target_modules="all-linear", use_rslora=True, lora_dropout=0.1), "llama"),
    "one layer": (peft.LoraConfig(**LORA, target_modules=["q_proj"], layers_to_transform=[1]), "llama"),
    "ranks": (peft.LoraConfig(**LORA, target_modules=["q_proj", "o_proj"], rank_pattern={"o_proj": 2}), "llama"),
    "conv1d": (peft.LoraConfig(**LORA, target_modules=["c_attn"], fan_in_fan_out=True), "gpt2"),
    "embedding": (peft.LoraConfig(**LORA, target_modules=["embed_tokens"]), "llama"),
    "dora": (peft.LoraConfig(**LORA, target_modules=["q_proj"], use_dora=True), "llama"),
    "norms too": (peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["input_layernorm"]), "llama"),
    "a module that is called head": (
        peft.LoraConfig(r=4, target_modules=["Wqkv"], modules_to_save=["head"]),
        "modernbert",
    ),
    "a layer without a role": (peft.LoraConfig(r=4, target_modules=["query", "dense"]), "bert"),
    "all linear of an encoder": (peft.LoraConfig(r=4, target_modules="all-linear"), "roberta"),
    "ia3": (
        peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "llama",
    ),
    "prompt": (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5), "llama"),
    "prefix": (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5), "llama"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_gives_as_many_parameters_as_with_peft(name):
    config, architecture = CONFIGS[name]
    model = halka.adapt(tiny(architecture))
    method = halka.method_from_peft(config, model)
    adapter = model.add("a", method)
    theirs = peft.get_peft_model(tiny(architecture), copy.deepcopy(config))
    trained = sum(parameter.numel() for parameter in theirs.parameters() if parameter.requires_grad)
    assert adapter.count() == trained


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("mixtral", {"target_modules": "all-linear"}),
        ("qwen3_moe", {"target_modules": "all-linear"}),
        ("qwen3_moe", {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}),
        ("olmoe", {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}),
        ("mixtral", {"target_modules": ["q_proj", "w1", "w2", "w3"]}),
    ],
)
def test_names_that_are_experts_in_peft_are_refused(architecture, options):
    names = "target_modules names (?:[a-z_0-9, ]+, )?experts' modules, which peft would train, too"
    with pytest.raises(ValueError, match=names):
        halka.method_from_peft(peft.LoraConfig(**LORA, **options), halka.adapt(tiny(architecture)))


def test_values_are_taken_over():
    model = halka.adapt(tiny())
    assert halka.method_from_peft(CONFIGS["all linear"][0], model) == halka.LoRA(
        4, 12.0, 0.1, ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"), "root"
    )
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["o_proj"]}
    assert halka.method_from_peft(fields, model) == halka.LoRA(2, 2.0, 0.0, ("attn.o",))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.LoraConfig(**LORA), "target_modules is left out, and peft then chooses by the architecture"),
        (
            peft.LoraConfig(**LORA, target_modules=["q_proj"], layers_to_transform=[9]),
            "target_modules, within layers_to_transform, names no module of this base",
        ),
        (peft.LoraConfig(**LORA, target_modules=["k"]), "target_modules names k, and this base has no such layer"),
        (peft.LoraConfig(**LORA, target_modules=["q_proj"], bias="all"), "use halka.Joint with halka.BitFit"),
        (peft.LoraConfig(**LORA, target_modules=["q_proj"], init_lora_weights="pissa"), "init_lora_weights"),
        (
            peft.LoraConfig(**LORA, target_modules=["q_proj"], init_lora_weights="gaussian"),
            "init_lora_weights='gaussian'",
        ),
        (peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["score"]), r"modules_to_save=\['score'\]"),
        (
            peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True),
            "ensure_weight_tying cannot be translated",
        ),
        (peft.IA3Config(target_modules=["k_proj"]), r"feedforward_modules is left out.* or \[\] for none"),
        (
            peft.PromptTuningConfig(
                **{"num_virtual_tokens": 3, "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a"},
                tokenizer_name_or_path="x",
            ),
            r"by the base's tokenizer: halka.adapt\(base, tokenizer\)",
        ),
        (peft.LoHaConfig(target_modules=["q_proj"]), "LOHA.* cannot be translated: Halka knows LORA, IA3"),
        ({"peft_type": "LORA", "target_modules": ["q_proj"], "r": "4"}, "r is '4', where a whole number is expected"),
        (
            {"peft_type": "LORA", "target_modules": ["q_proj"], "rank_pattern": {"q_proj": "4"}},
            "r is '4', where a whole number is expected",
        ),
        ({"peft_type": "PREFIX_TUNING"}, "the configuration has no num_virtual_tokens"),
        ({"peft_type": "PROMPT_TUNING"}, "the configuration has no num_virtual_tokens"),
        (
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "prompt_tuning_init": "TEXT"},
            "the configuration has no prompt_tuning_init_text",
        ),
    ],
)
def test_what_halka_does_not_have_is_refused(config, message):
    with pytest.raises(halka.HalkaError, match=message):
        halka.method_from_peft(config, halka.adapt(tiny()))


def test_what_fields_leave_out_is_as_pefts_default():
    fields = {"peft_type": "LORA", "target_modules": ["q_proj"]}
    expected = halka.method_from_peft(peft.LoraConfig(target_modules=["q_proj"]), halka.adapt(tiny()))
    assert halka.method_from_peft(fields, halka.adapt(tiny())) == expected


def test_a_prompt_starts_as_the_text_does_with_what_begins_texts():
    tokenizer = llama3_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    fields = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "prompt_tuning_init": "TEXT"}
    method = halka.method_from_peft({**fields, "prompt_tuning_init_text": "Say it"}, model)
    assert method.length == 3
    assert list(method.tokens) == tokenizer("Say it")["input_ids"]


def test_a_prefixs_network_is_as_wide_as_pefts():
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, task_type="CAUSAL_LM")
    method = halka.method_from_peft(config, halka.adapt(tiny()))
    theirs = peft.get_peft_model(tiny(), config)
    assert method == halka.Prefix(3, start="random", hidden=theirs.peft_config["default"].encoder_hidden_size)
    assert halka.method_from_peft(theirs.peft_config["default"], halka.adapt(tiny())) == method


def test_add_names_the_way():
    with pytest.raises(halka.HalkaError, match=r"halka.method_from_peft\(config, model\) translates"):
        halka.adapt(tiny()).add("a", peft.LoraConfig(**LORA, target_modules=["q_proj"]))
