"""Convert LLaMA-Adapter: `adaption_prompt` (1, P, D) and `adaption_gate` (1,) in every one of the last layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from halka.core import Method, Part, Target
from halka.methods import LlamaAdapter
from halka.storage.formats.format import base_of
from halka.storage.formats.peft.modules import PREFIX as PREFIX
from halka.storage.formats.peft.modules import split
from halka.storage.formats.peft.options import refuse_unknown
from halka.util.errors import HalkaError

PEFT_TYPE = "ADAPTION_PROMPT"
METHODS = ("llama_adapter",)
BARE = ()
NAMES = ("adaption_prompt", "adaption_gate")
ARCHITECTURES = ("llama", "mistral")  # peft also has GPT-2, without the output projection


def write(
    methods: Sequence[Method], parts: Mapping[Method, Mapping[str, Part]], targets: tuple[Target, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return options and tensors; None on bases for which peft lacks the method."""
    if base_of(targets).config.model_type not in ARCHITECTURES:
        return None
    (part,) = parts[methods[0]].values()
    prompts, gates = (part.get_parameter(name) for name in NAMES)
    places = _attentions(targets)[-len(gates) :]
    tensors = {f"{path}.adaption_prompt": prompts[number][None] for number, path in enumerate(places)}
    tensors |= {f"{path}.adaption_gate": gates[number][None] for number, path in enumerate(places)}
    config = {
        "peft_type": PEFT_TYPE,
        "adapter_len": prompts.shape[1],
        "adapter_layers": len(gates),
        "target_modules": places[0].rpartition(".")[2],
    }
    return config, tensors


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """Return the method, its state, and the tensors that are not the method's."""
    refuse_unknown(config, {"adapter_len", "adapter_layers"})
    kind = base_of(targets).config.model_type
    if kind not in ARCHITECTURES:
        raise HalkaError(f"a LLaMA-Adapter of peft can be read on {' and '.join(ARCHITECTURES)}, not on {kind}")
    by_path, others = split(tensors, NAMES)
    places = _attentions(targets)
    wanted = places[len(places) - len(by_path) :]
    if not by_path or set(by_path) != set(wanted) or any(len(named) != len(NAMES) for named in by_path.values()):
        raise HalkaError(
            f"the adapter has tokens at {', '.join(sorted(by_path)[:3]) or 'no layer'}, which are not the last of "
            f"this base's {len(places)} layers: it was made for another base, or its file is incomplete"
        )
    prompts, gates = ([by_path[path][name] for path in wanted] for name in NAMES)
    alike = all(prompt.shape == prompts[0].shape and prompt.dim() == 3 for prompt in prompts)
    if not alike or any(gate.shape != (1,) for gate in gates):
        raise HalkaError(
            f"the adapter's tokens are {tuple(prompts[0].shape)}, where the same (1, P, D) is expected in all layers, "
            "with gates (1,)"
        )
    method = LlamaAdapter(length=prompts[0].shape[1], layers=len(wanted))
    state = {"memory.gated.adaption_prompt": torch.cat(prompts), "memory.gated.adaption_gate": torch.cat(gates)}
    return [method], state, others


def _attentions(targets: tuple[Target, ...]) -> list[str]:
    """Return the paths of all layers' attentions, in order."""
    return [target.name.rpartition(".")[0] for target in targets if target.role == "attn.q"]
