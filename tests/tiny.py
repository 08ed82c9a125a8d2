"""Tiny random models of every supported architecture, each of its own configuration."""

from __future__ import annotations

import functools
import io
import json
import pickle
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from halka.models.kinds import KINDS

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
_MIXTURE = {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_LARGE = {**_GROUPED, "initializer_range": 0.1}  # where norms of outputs would make small ones' rounding large
_SHARED_EXPERT = {
    **{**_GROUPED, "head_dim": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    **{"n_group": 1, "topk_group": 1},
}
_ONE_WINDOW = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA3 = {**_GROUPED, "head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16}
CONFIGS = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 16},
    "mistral": {**_GROUPED, "head_dim": 16, "sliding_window": None},
    "gemma": {**_GROUPED, "head_dim": 16},
    "gemma2": {
        **_GROUPED,
        "head_dim": 16,
        "sliding_window": 64,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 0.1,  # of the size of its scores, which its own 50.0 would not change
        "final_logit_softcapping": 1.0,
    },
    "gemma3_text": _GEMMA3,
    "gemma3": {
        "text_config": _GEMMA3,
        "vision_config": {
            **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            **{"image_size": 8, "patch_size": 4},
        },
        "mm_tokens_per_image": 1,
    },
    "smollm3": {**_GROUPED, "no_rope_layer_interval": 2},
    "olmo2": _LARGE,
    "olmo3": {**_LARGE, **_ONE_WINDOW},
    "granite": {
        **_GROUPED,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.5,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "ernie4_5": {**_GROUPED, "head_dim": 16},
    "glm4": {**_LARGE, "head_dim": 16},
    "cohere2": {**_GROUPED, **_ONE_WINDOW},
    "starcoder2": {**_GROUPED, "sliding_window": None, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    "apertus": _GROUPED,
    "phi": _SMALL,
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
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {**_MIXTURE, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {**_MIXTURE, "head_dim": 16, "mlp_only_layers": [0]},
    "olmoe": {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
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
    "olmo": {**_GROUPED, "clip_qkv": 0.2},
    "seed_oss": {**_GROUPED, "head_dim": 16, "attention_dropout": 0.0, "residual_dropout": 0.0},
    "ministral": {**_GROUPED, "head_dim": 16, **_ONE_WINDOW},
    "ministral3": {
        **_GROUPED,
        "head_dim": 16,
        "sliding_window": None,
        "rope_parameters": {
            **{"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 8},
            "llama_4_scaling_beta": 0.1,  # of queries behind every 8 tokens
        },
    },
    "hunyuan_v1_dense": {**_GROUPED, "head_dim": 16},
    "glm": {**_GROUPED, "head_dim": 16},
    "exaone4": {**_LARGE, **_ONE_WINDOW},
    "arcee": _GROUPED,
    "minimax_m2": {**_GROUPED, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {**_SHARED_EXPERT, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "exaone_moe": {**_SHARED_EXPERT, **_ONE_WINDOW, "num_experts": 4, "mlp_layer_types": ["dense", "sparse"]},
    "granitemoe": {
        **{**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        **{"embedding_multiplier": 2.0, "attention_multiplier": 0.5, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    },
}


_BERT = {"initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_ROBERTA = {**_SMALL, **_BERT, "pad_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 130}
ENCODERS = {  # without dropout, as the others are, and with weights that make a difference
    "bert": {**_SMALL, **_BERT, "type_vocab_size": 2},
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "modernbert": {
        **_SMALL,
        "initializer_range": 0.1,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "classifier_pooling": "mean",
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}
_T5 = {
    "vocab_size": 97,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
SEQ2SEQ = {
    "t5": {**_T5, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    "flan-t5": {**_T5, "feed_forward_proj": "gated-gelu"},
}

_DELTA = {
    **{**_GROUPED, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
}
_DELTA_MIXTURE = {
    **{**_DELTA, "num_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 48, "shared_expert_intermediate_size": 48},
}
HYBRIDS = {  # some of their layers carry a state in place of attention
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": _DELTA_MIXTURE,
    "qwen3_next": _DELTA_MIXTURE,
    "lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}
_GEMMA4 = {
    **{**_GROUPED, "num_hidden_layers": 4, "head_dim": 8, "global_head_dim": 16, "sliding_window": 64},
    **{"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2},
    **{"vocab_size_per_layer_input": 600, "hidden_size_per_layer_input": 16, "use_double_wide_mlp": True},
    **{"final_logit_softcapping": 1.0, "initializer_range": 0.2},
}
UNEVEN = {  # their layers' keys and values have several shapes, and some attend to those of another layer
    "gemma4_text": _GEMMA4,
    "gemma4": {
        "text_config": _GEMMA4,
        "vision_config": {
            **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8, "patch_size": 4},
            **{"num_attention_heads": 2, "num_key_value_heads": 2, "position_embedding_size": 4},
        },
    },
}
LIKE_OTHERS = (
    *("olmo", "seed_oss", "ministral", "ministral3", "hunyuan_v1_dense", "glm", "exaone4", "arcee"),
    *("minimax_m2", "glm4_moe", "exaone_moe", "granitemoe"),
)
"""Whose linear layers are where another's are: tests of pairs of method and architecture leave them out."""

WINDOWED = (
    *("mistral", "gemma2", "gemma3_text", "phi3", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe"),
    *("olmo3", "cohere2", "starcoder2", "gemma3", "ministral", "ministral3", "exaone4", "exaone_moe"),
    "gemma4_text",
)
"""Those of whose layers all or some can have a window."""


WITHOUT_RESIDUALS = (
    "gemma2",
    "gemma3",
    "gemma3_text",
    "glm4",
    "granite",
    "olmo2",
    "olmo3",
    "opt",
    "exaone4",
    "granitemoe",
)
"""Those in which more than the sum stands between a sublayer's output and the residual."""


def windowed(architecture: str, window: int) -> dict[str, Any]:
    """What changes in the configuration of one of these where its layers have that window: both, or one of the two."""
    qwen = {"use_sliding_window": True, "max_window_layers": 1} if architecture.startswith("qwen") else {}
    return {"sliding_window": window, **qwen}


def tiny(
    architecture: str = "llama",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    kind: str | None = None,
    **changes,
) -> PreTrainedModel:
    """A random model with two layers of width 64, in eval mode.

    kind: one of `halka.models.kinds.KINDS`; what the architecture is mostly for if not given.
    """
    return _built(architecture, dtype, seed, kind, json.dumps(changes), torch.get_default_device()).copy()


@functools.lru_cache(100)
def _built(
    architecture: str, dtype: torch.dtype, seed: int, kind: str | None, changes: str, device: torch.device
) -> Original:
    """changes: as JSON; device: where torch makes tensors now."""
    usual = "masked-lm" if architecture in ENCODERS else "seq2seq-lm" if architecture in SEQ2SEQ else "causal-lm"
    torch.manual_seed(seed)
    own = {**CONFIGS, **ENCODERS, **SEQ2SEQ, **HYBRIDS, **UNEVEN}[architecture]
    changed = json.loads(changes)
    if "text_config" in own:  # one that reads images, too
        own, changed = {**own, "text_config": {**own["text_config"], **changed}}, {}
    config = AutoConfig.for_model(architecture.removeprefix("flan-"), **{**own, **changed})
    return Original(getattr(transformers, KINDS[kind or usual]).from_config(config, dtype=dtype).eval())


class Original:
    """A model that copies are made of, in a fraction of the time that building it takes."""

    def __init__(self, model: PreTrainedModel):
        self._tensors: list[torch.Tensor] = []
        self._drawn = torch.get_rng_state()  # as it is once the model is built
        numbers, stream = dict[int, int](), io.BytesIO()

        class Pickler(pickle.Pickler):
            def persistent_id(_, thing: Any) -> int | None:
                if not isinstance(thing, torch.Tensor):
                    return None
                if id(thing) not in numbers:
                    numbers[id(thing)] = len(self._tensors)
                    self._tensors.append(thing)
                return numbers[id(thing)]

        Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(model)
        self._rest = stream.getvalue()

    def copy(self) -> PreTrainedModel:
        """The model as it was; what is drawn next is what would be drawn had it been built."""
        copies = dict[int, torch.Tensor]()

        class Unpickler(pickle.Unpickler):
            def persistent_load(_, number: int) -> torch.Tensor:
                if number not in copies:
                    own = self._tensors[number]
                    copy = own.detach().clone()
                    copies[number] = (
                        torch.nn.Parameter(copy, own.requires_grad) if isinstance(own, torch.nn.Parameter) else copy
                    )
                return copies[number]

        model = Unpickler(io.BytesIO(self._rest)).load()
        torch.set_rng_state(self._drawn)
        return model
