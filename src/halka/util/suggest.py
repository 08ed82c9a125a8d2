"""Which name was meant by one that does not exist: another library's name for it, a close spelling, or no name here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OTHERS = {
    # training: transformers, trl, torchtune, litgpt, axolotl, LLaMA-Factory
    "lr": "learning_rate",
    "epochs": "num_train_epochs num_epochs max_epochs n_epochs",
    "steps": "max_steps num_steps train_steps max_iters",
    "batch_size": "per_device_train_batch_size per_device_eval_batch_size train_batch_size eval_batch_size "
    "micro_batch_size bs",
    "accumulate": "gradient_accumulation_steps gradient_accumulation grad_accum accumulation_steps",
    "max_length": "max_seq_length max_seq_len sequence_len seq_len cutoff_len model_max_length max_len block_size "
    "context_length",
    "schedule": "lr_scheduler_type lr_scheduler scheduler",
    "warmup": "warmup_ratio",
    "warmup_steps": "lr_warmup_steps num_warmup_steps",
    "weight_decay": "wd",
    "clip": "max_grad_norm gradient_clipping gradient_clip_val grad_clip",
    "checkpointing": "gradient_checkpointing activation_checkpointing",
    "evaluate_every": "eval_steps eval_every eval_interval",
    "save_every": "save_steps save_interval",
    "patience": "early_stopping_patience early_stopping",
    "seed": "random_seed random_state",
    "overwrite": "overwrite_output_dir",
    "start_from": "from lora_model_dir adapter_name_or_path pretrained_lora_model_path",
    # methods: peft, adapters
    "method": "peft_type peft_method finetuning_type adapter_type",
    "rank": "r lora_r lora_rank init_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules lora_target lora_target_modules",
    "length": "num_virtual_tokens prefix_length prompt_length seq_length adapter_len",
    "width": "bottleneck_size bottleneck_dim",
    "hidden": "encoder_hidden_size bottleneck_size",
    "activation": "non_linearity",
    "scale": "scaling_factor",
    "start": "prompt_tuning_init",
    "tokens": "token_indices",
    "layers": "adapter_layers",
    "feedforward": "feedforward_modules",
    # bases, adapters, data
    "base": "model model_id model_name model_name_or_path base_model pretrained",
    "dtype": "torch_dtype precision bf16 fp16",
    "quantize": "quantization load_in_4bit load_in_8bit bits",
    "device": "gpu cuda",
    "gpu_memory": "vram gpu_mem memory",
    "adapter": "lora lora_path adapter_path adapter_name_or_path peft_model",
    "data": "dataset datasets dataset_name dataset_path data_path train_file train_data input",
    "validation": "validation_file val_file eval_file val_split validation_split val_set_size val_size test_size",
    "out": "output output_dir out_dir output_file output_path save_dir o",
    "into": "output output_dir out out_dir o",
    # answers and retrieval
    "max_new_tokens": "max_tokens max_completion_tokens n_predict num_predict",
    "temperature": "temp",
    "system": "system_prompt",
    "limit": "max_samples num_samples",
    "metrics": "metric",
    "metric": "metrics",
    "count": "k top_k n num_results",
    "passages": "k top_k n num_results",
    "embedder": "embedding_model embed_model model",
    "rerank": "reranker rerank_model",
    "as": "user",
}
"""Our names, and those that other libraries have for the same, as in Python; flags write `-` for `_`."""

INSTEAD = {
    # training: transformers, trl, axolotl, LLaMA-Factory, unsloth
    "the base's own chat template is used; `halka base template` makes a base with another": (
        "template chat_template chat_template_kwargs enable_thinking"
    ),
    "batches are packed already (batches), and no text sees another": (
        "packing sample_packing pack_sequences neat_packing"
    ),
    "the optimiser is AdamW": "optim optimizer optimiser",
    "a run writes each step into metrics.jsonl; other logs are written by --tensorboard, or by on_step of halka.fit": (
        "report_to logging_steps logging_dir use_wandb wandb_project wandb_name run_name"
    ),
    "Halka does not have it; docs/coming-from-others.md says why": ("neftune_noise_alpha pissa_init loraplus_lr_ratio"),
    "--devices starts processes that train together, and --shard gives each a part of the base": (
        "deepspeed deepspeed_config fsdp fsdp_config"
    ),
    "`hf upload` takes the adapter's folder": "push_to_hub hub_model_id hub_token",
    "a run keeps its last checkpoint and its best weights, and at the end the adapter": "save_total_limit",
    "the same command goes on": "resume_from_checkpoint auto_resume_from_checkpoints",
    "with validation examples the weights of the best evaluation are kept": "load_best_model_at_end",
    "loss is on answers alone, and not on those in a `prompt` that is a list of messages": (
        "mask_history train_on_prompt train_on_inputs completion_only_loss assistant_only_loss"
    ),
    "halka train learns answers; TRL's DPO and KTO train halka.view (docs/tools.md)": "stage rl",
    "no code that comes with a base is run: bases are of transformers' own architectures": "trust_remote_code",
    # methods: peft, adapters, LLaMA-Factory, axolotl
    'scaling="root"': "use_rslora peft_use_rslora",
    "the method halka.DoRA": "use_dora peft_use_dora",
    "the method halka.LoRABias": "lora_bias",
    "--join bitfit (halka.Joint in Python)": "bias",
    "--join 'method: modules, targets: […]' (halka.Joint in Python)": (
        "modules_to_save lora_modules_to_save additional_target"
    ),
    "--join 'method: tokens, tokens: […]' (halka.Joint in Python)": "trainable_token_indices",
    "width, the hidden width divided by it": "reduction_factor",
    "not needed: the base's class tells it": "task_type",
    "not needed": "inference_mode",
}
"""What there is in place of other libraries' settings that have no name here."""


def instead(name: str) -> str | None:
    """What there is in place of another library's setting, None if that is not one of `INSTEAD`."""
    return next((ours for ours, others in INSTEAD.items() if _plain(name) in others.split()), None)


def suggest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` likely means, None if none is close.

    A dash counts as an underscore, and dashes in front as nothing: flags, fields and keys are all such names.
    """
    by_plain_name = {_plain(candidate): candidate for candidate in names}
    wanted = _plain(name)
    for ours, others in OTHERS.items():
        if ours in by_plain_name and wanted in others.split():
            return by_plain_name[ours]
    close = difflib.get_close_matches(wanted, by_plain_name, n=1, cutoff=0.7)
    return by_plain_name[close[0]] if close else None


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
