"""Check the configuration's keys: refuse those that Halka does not read and that change what the adapter computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halka.util.errors import HalkaError

# Keys about an adapter's origin or training, which do not change what it computes.
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
    "ensure_weight_tying",  # of trained tensors, which are saved as they are
    *("init_lora_weights", "init_ia3_weights", "init_weights", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "megatron_config", "megatron_core", "qalora_group_size", "runtime_config", "velora_config"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("encoder_hidden_size", "num_attention_heads", "num_layers", "token_dim", "fan_in_fan_out"),
}
# Keys that select modules; `modules.check_places` checks that the tensors are those of exactly these modules.
SELECTING = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "trainable_token_indices"),
}
NEUTRAL: tuple[Any, ...] = (None, False, "none", {}, [])
WAYS_OUT = {
    "layer_replication": "merge the adapter into its base with peft, and load that as a base",
    "use_qalora": "train it without",
    "alora_invocation_tokens": "it acts only after these tokens; train it without",
    "arrow_config": "it routes among other adapters; load these one by one",
}


def refuse_unknown(config: Mapping[str, Any], read: set[str]) -> None:
    """Raise HalkaError for a key that Halka does not read and whose value may change what the adapter computes."""
    for key, value in config.items():
        if key not in read | SELECTING | HARMLESS and not any(value == neutral for neutral in NEUTRAL):
            way_out = WAYS_OUT.get(key, "merge the adapter with peft, or train it without")
            raise HalkaError(
                f"adapter_config.json: {key} = {value!r} changes what the adapter computes, and Halka does not have "
                f"it: {way_out}"
            )
