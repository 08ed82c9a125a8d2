"""What requests for answers have in common: OpenAI's fields, and what they mean to the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from halka.engine import Sampling, Stopping
from halka.engine.sampling import SEEDS
from halka.server.requests import ANY, Body

BIASES = 1024  # tokens

Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _few(biases: object) -> object:
    """Before they are looked at: a dict's errors are all of them."""
    if isinstance(biases, dict) and len(biases) > BIASES:
        raise PydanticCustomError("too_many", "at most {most} tokens have a bias", {"most": BIASES})
    return biases


Biases = Annotated[dict[Annotated[int, Field(ge=0)], Bias], Field(max_length=BIASES), BeforeValidator(_few)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]

NEUTRAL = {
    "user": ANY,
    "metadata": ANY,
    "safety_identifier": ANY,
    "prompt_cache_key": ANY,
    "prompt_cache_retention": ANY,
    "service_tier": ("auto", "default"),
}


class StreamOptions(Body):
    neutral: ClassVar[dict[str, Any]] = {"include_obfuscation": (False,)}
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(Body):
    """The fields of chat and of completions."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Field(ge=-SEEDS, lt=SEEDS)] | None = None
    ignore_eos: bool | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: Biases | None = None

    @property
    def usage_at_end(self) -> bool:
        """Whether the stream's last chunk is to hold the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def usage_so_far(self, usage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a chunk before the last says of the usage: nothing, null where the last has it, or what it is by now."""
        if self.stream_options is None or not self.usage_at_end:
            return {}
        return {"usage": usage() if self.stream_options.continuous_usage_stats else None}

    def sampling(self, usual_temperature: float) -> Sampling:
        """How the engine chooses tokens; `usual_temperature` is that of a request without one."""
        return Sampling(
            temperature=usual_temperature if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=None if self.seed is None else self.seed % SEEDS,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            bias=self.logit_bias or {},
        )

    def stopping(self, tokens: int) -> Stopping:
        """Where the engine ends a text that may have so many tokens."""
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return Stopping(tokens, tuple(strings), ignore_ends=bool(self.ignore_eos))
