"""Tiny random models of every supported architecture, each of its own configuration."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
CONFIGS = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 16},
    "mistral": {**_GROUPED, "head_dim": 16, "sliding_window": None},
    "gemma": {**_GROUPED, "head_dim": 16},
    "gemma2": {**_GROUPED, "head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_GROUPED, "head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16},
    "phi3": _GROUPED,
    "gpt2": {
        "vocab_size": 97,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "gpt_neox": _SMALL,
    "opt": {
        "vocab_size": 97,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 96,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}


def tiny(architecture: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes) -> PreTrainedModel:
    """A random model with two layers of width 64, in eval mode."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **{**CONFIGS[architecture], **changes})
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
