"""The configuration's keys: which are read, which change nothing, and which are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Keys that say how an adapter came to be or where it is from, and do not change its numbers.
HARMLESS = {
    *(
        "peft_type",
        "peft_version",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "auto_mapping",
    ),
    *("init_lora_weights", "init_ia3_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("megatron_config", "megatron_core", "qalora_group_size", "runtime_config", "lora_dropout", "bdlora_config"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("encoder_hidden_size", "num_transformer_submodules", "num_attention_heads", "num_layers", "token_dim"),
    *("exclude_modules", "fan_in_fan_out", "arrow_config", "ensure_weight_tying", "velora_config"),
}
NEUTRAL = (None, False, "none", {}, [])


def refuse_unknown(config: Mapping[str, Any], read: set[str]) -> None:
    """Raises ValueError for a key that is not understood and holds something that would change the numbers."""
    for key, value in config.items():
        if key not in read and key not in HARMLESS and not any(value == neutral for neutral in NEUTRAL):
            raise ValueError(
                f"adapter_config.json: {key} = {value!r} changes what the adapter computes, and Halka does not have it"
            )
