"""`Request`: what is asked of the engine. `Answer`: what comes of it, token by token."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from operator import index
from typing import Any, Literal

from halka.data.prompts import Prompt, as_prompt
from halka.data.tokens import encode_prompt
from halka.engine.checked import checked
from halka.engine.constraint import Constraint
from halka.engine.logprobs import TokenLogprob
from halka.engine.sampling import Sampling
from halka.engine.stopping import Stopping
from halka.util.errors import HalkaError

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Request:
    """A prompt to be answered.

    prompt      token ids
    adapter     its name; None: the bare base
    sampling    how tokens are chosen; greedily by default
    stopping    where the answer ends, besides the base's own end tokens
    constraint  what the answer must be; None: any text
    tenant      whose request it is: tenants share nothing that is cached, and have equal shares of the rows
    logprobs    how many of the likeliest tokens come with each token of the answer; 0: the log probability of its own
                alone; None: nothing
    chat        whether the answer is a turn of a conversation: what the chat template itself begins answers with, such
                as an empty thought, is no part of its text

    Raises HalkaError for a prompt that is no token ids, and for `logprobs` that is no whole number.
    """

    prompt: Sequence[int]
    adapter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stopping: Stopping = field(default_factory=Stopping)
    constraint: Constraint | None = None
    tenant: str = ""
    logprobs: int | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "prompt", (*map(index, self.prompt),))
        except TypeError as error:
            raise HalkaError(f"a prompt is token ids ({error}): `Request.of` takes a text or a conversation") from None
        if self.logprobs is not None:
            own = checked("logprobs", self.logprobs, Integral, 0, math.inf, "a number of tokens, 0 or above, or None")
            object.__setattr__(self, "logprobs", own)

    @classmethod
    def of(cls, prompt: Prompt, tokenizer: Any, **fields: Any) -> Request:
        """A request in the base's chat template, of a text or a conversation.

        Raises DataError for what is no prompt, and where the template refuses it.
        """
        return cls(encode_prompt(as_prompt(prompt, "the prompt"), tokenizer), chat=True, **fields)


@dataclass
class Times:
    """When it happened, by `time.monotonic`; None: not yet.

    submitted  the request came
    begun      the answer had a row
    first      its first token was there
    last       its last token so far was there
    """

    submitted: float
    begun: float | None = None
    first: float | None = None
    last: float | None = None


@dataclass(eq=False)
class Answer:
    """An answer under way, or finished.

    number       which of its request's answers it is, from 0
    adapter_id   the content id of the adapter that makes it; None: the bare base makes it, or nobody yet
    tokens       its token ids so far, with the one that ended it
    text         its text so far, without what may still become a stop string
    logprobs     of each of its tokens, if the request asks for them
    cached       tokens of the prompt that the cache had: nobody computed them for this answer
    finish       why it ended; None while it has not
    error        why it failed
    times        when it came and was written
    backend      who makes it, where others than an engine in this process may; empty: the engine
    """

    request: Request
    number: int = 0
    adapter_id: str | None = None
    tokens: list[int] = field(default_factory=list[int])
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    cached: int = 0
    finish: Finish | None = None
    error: Exception | None = None
    times: Times = field(default_factory=lambda: Times(time.monotonic()))
    backend: str = ""
