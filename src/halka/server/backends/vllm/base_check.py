"""Is the base of a vLLM process ours? Its names prove nothing, so its tokens and its numbers are compared.

A text's tokens must be the same, and the log probabilities of these, on average, as near as roundings leave them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import torch

from halka.core import AdaptedModel, quantization_of
from halka.models import context
from halka.util.errors import HalkaError

TEXT = """Dear Farid,

your parcel left Dhaka (ঢাকা) on 12 May at 09:30; it weighs 3.5 kg. This is what our program prints:

for n in range(1, 4):
    print(n, n**2)

The capital of France is Paris, and 7 times 8 is 56."""

NEAR = 0.1  # mean distance of log probabilities: SmolLM2-135M in bf16 is 0.034 from fp32
NEAR_QUANTISED = 1.0  # in nf4 it is 0.55 from fp32: this tells another model alone, not another tuning of it
LONGEST = 300  # letters of an error
NOWHERE = "/nonexistent/halka"


@dataclass(frozen=True)
class Probe:
    """A text as our base reads it.

    logprobs  of every token but the first
    near      how far from them those of the same base may be, on average
    context   the positions that the base has; None: no end
    """

    tokens: list[int]
    logprobs: list[float]
    near: float
    context: int | None

    @classmethod
    def of(cls, model: AdaptedModel) -> Probe:
        """Read it with the bare base."""
        tokenizer: Any = model.tokenizer
        tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"][: context(model)]
        base: Any = model.base
        with torch.inference_mode(), model.use(None):
            logits = base(input_ids=torch.tensor([tokens], device=base.device), use_cache=False).logits[0, :-1]
        next_tokens = torch.tensor(tokens[1:], device=logits.device)[:, None]
        logprobs = logits.float().log_softmax(-1).gather(1, next_tokens)[:, 0].tolist()
        return cls(tokens, logprobs, NEAR if quantization_of(model.base) is None else NEAR_QUANTISED, context(model))


@dataclass(frozen=True)
class Served:
    """What a vLLM process serves.

    base      what it calls the base
    longest   the most tokens of a prompt and its answer
    adapters  the LoRAs that it has, with their folders
    """

    base: str
    longest: int
    adapters: dict[str, str]


class OtherBase(HalkaError):
    """A vLLM process whose base is not ours, or that cannot answer for it."""


def check_base(client: httpx.Client, probe: Probe) -> Served:
    """What it serves. Raises OtherBase with what differs, httpx.HTTPError where it does not answer as vLLM does."""
    models = _answer(client.get("/v1/models"))["data"]
    bases = [model for model in models if not model.get("parent")]
    adapters = {str(model["id"]): str(model["root"]) for model in models if model.get("parent")}
    served = Served(str(bases[0]["id"]), int(bases[0]["max_model_len"]), adapters)
    if probe.context is not None and served.longest > probe.context:
        raise OtherBase(f"it reads {served.longest} tokens, and this base {probe.context}: it serves another base")
    text = {"model": served.base, "prompt": TEXT, "add_special_tokens": False}
    if _answer(client.post("/tokenize", json=text))["tokens"][: len(probe.tokens)] != probe.tokens:
        raise OtherBase("its tokenizer makes other tokens of a text: it serves another base")
    tokens = probe.tokens[: served.longest - 1]
    asked = {"model": served.base, "prompt": tokens, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 0}
    (choice,) = _answer(client.post("/v1/completions", json=asked))["choices"]
    theirs = choice["logprobs"]["token_logprobs"][1 : len(tokens)]
    distance = sum(
        abs(one - other) for one, other in zip(theirs, probe.logprobs[: len(tokens) - 1], strict=True)
    ) / len(theirs)
    if not distance <= probe.near:
        raise OtherBase(
            f"its log probabilities of a text are {distance:.3f} from this base's on average, more than {probe.near}: "
            "it serves another base, or the same with other roundings (quantised)"
        )
    _check_loading(client)
    return served


def _check_loading(client: httpx.Client) -> None:
    """Raises OtherBase where it takes no LoRA while it runs, as the attempt with a folder that is not there shows."""
    response = client.post("/v1/load_lora_adapter", json={"lora_name": "halka-probe", "lora_path": NOWHERE})
    message = message_of(response)
    if response.status_code == 404 and message == "Not Found":
        raise OtherBase("it loads no LoRA while it runs: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")
    if "not enabled" in message:
        raise OtherBase("it serves no LoRA: start it with --enable-lora")


def _answer(response: httpx.Response) -> dict[str, Any]:
    response.raise_for_status()
    return response.json()


def message_of(response: httpx.Response) -> str:
    """The beginning of what an error of vLLM's says; of the whole body where it is none of its."""
    try:
        body = response.json()
        return str(body["error"]["message"] if "error" in body else body["detail"])[:LONGEST]
    except (ValueError, KeyError, TypeError):
        return response.text[:LONGEST]
