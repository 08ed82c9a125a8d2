"""`Engine`: requests in, tokens out. Texts join and leave at every step, each with its adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from itertools import count
from pathlib import Path

from torch import Tensor

from halka.core import AdaptedModel
from halka.data.answers import end_tokens, opening
from halka.engine.adapters import Source
from halka.engine.cache import cache_for
from halka.engine.constraint import Matcher
from halka.engine.kept import Kept
from halka.engine.line import line_of
from halka.engine.next_tokens import next_tokens
from halka.engine.request import Answer, Finish, Request
from halka.engine.sampling import SEEDS, new_seed
from halka.engine.schedule import Schedule, Work
from halka.engine.stopping import StoppedText
from halka.engine.text import Text
from halka.engine.version import Version
from halka.engine.waiting import WRITTEN
from halka.models.attention.paged import SIZE
from halka.models.kinds import kind_of
from halka.models.layouts import layout_of
from halka.models.rotary import longrope_start
from halka.storage.save_load import Allowed
from halka.util.core_share import give_cores_back, take_cores
from halka.util.errors import ContextLengthError, HalkaError
from halka.util.machine import memory_named
from halka.util.mode import in_mode

READING = 2.0  # seconds that a step waits for an adapter's files: others may call meanwhile
PREFILL, PREFILL_ON_GPU = 512, 2048  # tokens of prompts a step: fewer leave a GPU waiting for its next operations
FULL = (
    "out of memory in a step of the engine: lower rows, prefill (tokens of prompts in a step), memory (for keys and "
    "values) or adapter_memory, choose a smaller or quantised base, or end other programs that hold memory there"
)
PREFILL_BESIDE = 28  # tokens of prompts beside answers on a CPU, where each takes as long as one more row


class Engine:
    """Answers requests with a frozen base, each by its own adapter, as many at a time as there are rows.

    engine = Engine(model)
    [answer] = engine.submit(Request(prompt, adapter="support"))
    while engine.step():
        print(answer.text)

    One thread calls `step`; `submit` and `cancel` may be called by any. The model may be used by others between steps.
    """

    def __init__(
        self,
        model: AdaptedModel,
        store: Source | None = None,
        *,
        rows: int = 32,
        memory: int | None = None,
        adapter_memory: int | None = None,
        most_adapters: int | None = None,
        prefill: int | None = None,
        prefill_beside: int | None = None,
        ends: Collection[int] | None = None,
        allowed: Allowed | None = None,
        kept: Kept | None = None,
    ):
        """
        store           where adapters come from that the model does not have; its pool's if there is one
        rows            answers that are made at the same time
        memory          bytes for keys and values; by default what the rows can need, up to a quarter of the device's
                        memory and half of what is free there
        adapter_memory  bytes for adapters that are loaded from the store or were `put`, with the copies for kernels; by
                        default what the pool has, if its store is used, else 2 GB
        most_adapters   how many of these there may be; None: as many as fit
        prefill         tokens of prompts that are computed in a step; by default 512 on a CPU, and 2,048 on a GPU
        prefill_beside  tokens of prompts a step while other rows decode; more of them delay those rows' tokens. Fewer
                        are taken after a long prefix, whose attention costs more; up to eight times as many where few
                        rows decode; from 16 on a few more, which fill up what is computed at once. By default 28 on a
                        CPU, and as `prefill` on a GPU, whose step takes little longer for them
        ends            tokens that end every answer; those of the base's generation config if not given
        allowed         what `halka.load` may accept of folders: other bases, other templates, pickles
        kept            what an engine before this one left, with its store; `close` leaves it there

        Raises HalkaError for a base that is no decoder, one without tokenizer, and numbers below 1.
        """
        if not layout_of(model.base).generates or kind_of(model.base) != "causal-lm":
            raise HalkaError(f"{type(model.base).__name__} is no decoder: an engine makes texts token by token")
        if (layers := layout_of(model.base).obstacle) is not None:
            raise HalkaError(
                f"{type(model.base).__name__} has {layers}, which an engine does not keep: `halka.generate` and "
                "`evaluate` answer by transformers' own `generate`"
            )
        if model.tokenizer is None:
            raise HalkaError("an engine makes text: it needs the tokenizer, `halka.adapt(base, tokenizer)`")
        numbers = {"rows": rows, "prefill": prefill, "prefill_beside": prefill_beside, "most_adapters": most_adapters}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise HalkaError(f"{name} is 1 or more, not {value}")
        self.model = model
        config = getattr(model.base, "generation_config", None)
        self.ends = end_tokens(config, model.tokenizer) if ends is None else frozenset(ends)
        self.opening = opening(model.tokenizer)
        own = Kept(model, store, adapter_memory, allowed, most_adapters) if kept is None else kept
        self._kept, self._borrowed = own, kept is not None
        self.adapters, self._forward = self._kept.adapters, self._kept.forward
        try:
            self.cache = cache_for(model, rows, memory)
        except BaseException:
            if kept is None:
                own.close()
            raise
        embedding = next(target for target in model.targets if target.role == "embedding")
        on_cpu = self.cache.kv.data.device.type == "cpu"
        if prefill is None:
            prefill = PREFILL if on_cpu else PREFILL_ON_GPU
        if prefill_beside is None:
            prefill_beside = PREFILL_BESIDE if on_cpu else prefill
        self.schedule = Schedule(self.cache, rows, prefill, prefill_beside, embedding.d_out)
        self.steps = 0
        self._vocabulary, self._longrope_start = embedding.d_in, longrope_start(model.base)
        self.constraints = own.constraints(self.ends)
        self._texts = dict[Answer, Text]()  # of all answers that are not finished
        self._numbers, self._merged, self._closed = count(), model.merged, False
        self._lock = model.lock  # one for both: whoever has the model may use the engine, and nobody waits in a circle

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        request: Request,
        n: int = 1,
        matcher: Matcher | None = None,
        written: Sequence[Sequence[int]] = (),
    ) -> list[Answer]:
        """Queue a request to be answered `n` times, with seeds that follow each other. The prompt is read once.

        matcher  of the request's constraint, which is compiled here if it is not given
        written  the tokens that each answer has already, of an engine that is no more: it goes on behind them, as
                 after a preemption

        Raises UnknownAdapterError for an adapter that nobody has, ContextLengthError for a prompt that leaves no room
        for the answer, and an answer that the cache cannot hold, HalkaError as `check` does, and for an engine that is
        closed.
        """
        self.check(request, n)
        request = self.completed(request)
        seed = new_seed() if request.sampling.seed is None else request.sampling.seed
        if matcher is None and request.constraint is not None:
            matcher = self.constraints.matcher(request.constraint)
        with self._lock:
            if self._closed:
                raise HalkaError("the engine is closed")
            version = self.adapters.version(request.adapter)
            self._check_room(request, version)
            answers = [Answer(request, number) for number in range(n)]
            texts = list[Text]()
            for answer in answers:
                stopped = self.text_of(request)
                own = None if matcher is None else matcher.copy()
                number, draws = next(self._numbers), (seed + answer.number) % SEEDS
                texts.append(Text(answer, version, number, draws, stopped, own, self._longrope_start))
            for text, tokens in zip(texts, written, strict=False):
                for token in tokens:
                    text.take(token, None)
            for text in texts:
                version.users += 1
                self._texts[text.answer] = text
                self.schedule.enter(text)
                if text.reason is not None:
                    self._finish(text, text.reason)
        return answers

    def completed(self, request: Request) -> Request:
        """The request with what the base's generation config says where it says nothing itself."""
        config = getattr(self.model.base, "generation_config", None)
        penalty = getattr(config, "repetition_penalty", None)
        if penalty is None or request.sampling.repetition_penalty is not None:
            return request
        return replace(request, sampling=replace(request.sampling, repetition_penalty=penalty))

    def text_of(self, request: Request) -> StoppedText:
        """What the tokens of an answer to this request become, whoever makes them."""
        begin = self.opening if request.chat else ""
        return StoppedText(self.model.tokenizer, request.stopping, self.ends, begin)

    def check(self, request: Request, n: int = 1) -> None:
        """Raises HalkaError for what no engine of this base answers: an empty prompt, tokens that the base lacks."""
        if not request.prompt:
            raise HalkaError("the prompt has no tokens")
        if unknown := [token for token in request.prompt if not 0 <= token < self._vocabulary]:
            raise HalkaError(f"the prompt has token {unknown[0]}: this base has those from 0 to {self._vocabulary - 1}")
        if unknown := [token for token in request.sampling.bias if token >= self._vocabulary]:
            raise HalkaError(f"bias has token {unknown[0]}: this base has those from 0 to {self._vocabulary - 1}")
        if request.logprobs is not None and request.logprobs > self._vocabulary:
            raise HalkaError(f"logprobs is a number of tokens from 0 to {self._vocabulary}, not {request.logprobs}")
        if request.constraint is not None and request.stopping.ignore_ends:
            raise HalkaError("a constrained answer ends where its constraint does: it cannot ignore end tokens")
        if n < 1:
            raise HalkaError(f"n is 1 or more, not {n}")

    def cancel(self, answer: Answer) -> None:
        """Give an answer up; its row and blocks are free at once."""
        with self._lock:
            if (text := self._texts.get(answer)) is not None:
                self._finish(text, "cancelled")

    def fail(self, error: Exception) -> None:
        """Give up all answers that are not finished, and all adapters that are to be loaded, because of this."""
        with self._lock:
            self.adapters.fail(error)
            for text in [*self._texts.values()]:
                self._finish(text, "error", error)

    def room(self, name: str | None) -> int | None:
        """Positions for the text of a request of this adapter; None: without end, or not known before it is loaded.

        Raises UnknownAdapterError for an adapter that nobody has.
        """
        with self._lock:
            return self.adapters.version(name).room

    @property
    def busy(self) -> bool:
        """Whether some answer is not finished, or some adapter is to be loaded."""
        return bool(self._texts or self.adapters.loading)

    @property
    def waiting(self) -> int:
        """Answers that wait for a row, at a glance."""
        return max(0, len(self._texts) - len(self.schedule.running))

    def _check_room(self, request: Request, version: Version) -> None:
        tokens = len(request.prompt) + request.stopping.max_new_tokens
        if version.room is not None and tokens > version.room:
            raise ContextLengthError(
                f"a prompt of {len(request.prompt)} tokens and {request.stopping.max_new_tokens} new ones are "
                f"{tokens - version.room} more than the {version.room} positions for text that this base has: "
                "shorten the prompt, or ask for fewer new ones"
            )
        virtual = 0 if version.virtual is None else version.virtual.shape[0]
        blocks = -(-tokens // SIZE) + -(-virtual // SIZE)
        if blocks > self.cache.size:
            raise ContextLengthError(
                f"a prompt of {len(request.prompt)} tokens and {request.stopping.max_new_tokens} new ones are "
                f"{(blocks - self.cache.size) * SIZE} more than the cache's {self.cache.size * SIZE}: give the engine "
                "more memory, or ask for fewer new ones"
            )

    # ── a step ──────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> bool:
        """Compute the next tokens of as many answers as there are rows. Returns whether some answer goes on.

        Where all of them wait for adapters' files, wait for these for a moment. Raises what `advance` raises.
        """
        if (reading := self.advance()) is not None:
            wait([reading], READING)
        return self.busy

    def advance(self) -> Future[None] | None:
        """As `step`, without waiting: returns the reading of an adapter's files that all answers wait for, if they do.

        After an error, which is raised, every answer that is not finished begins anew, without a changed token. Raises
        OutOfMemoryError where the pass does not fit in memory.
        """
        with self._lock:
            take_cores(self.cache.kv.data.device)
            self._follow()
            try:
                firsts = [text.version for text in self.schedule.waiting.firsts()]
                loaded, reading = self.adapters.prepare(firsts)
                if loaded is not None:
                    self._fail_too_long(loaded)
                if self.adapters.stale():
                    self._forward.forget()
                if work := self.schedule.next():
                    with memory_named(FULL), in_mode(False, self.model.base):  # no dropout
                        self.cache.clear_new()
                        self._hand_out(work, self._forward(line_of(work, self.cache.kv)))
                    self.steps += 1
            except BaseException:
                self._start_over()
                raise
            idle = not self.schedule.running
        if idle:
            give_cores_back()
        return reading if idle and not work else None

    def _follow(self) -> None:
        """See what changed in the model and among the adapters; requests whose adapter cannot be used fail."""
        self.adapters.check()
        if self._merged != self.model.merged:
            self._merged = self.model.merged
            self._start_over()
        firsts = [text.version for text in (*self.schedule.running, *self.schedule.waiting.firsts())]
        errors = {version: error for version in firsts if (error := self.adapters.error(version)) is not None}
        for text in [text for text in self._texts.values() if text.version in errors] if errors else ():
            self._finish(text, "error", errors[text.version])

    def _fail_too_long(self, *versions: Version) -> None:
        """Fail the requests that are too long, which was not known before their adapter was loaded."""
        for text in [text for text in self._texts.values() if text.version in versions]:
            try:
                self._check_room(text.answer.request, text.version)
            except ContextLengthError as too_long:
                self._finish(text, "error", too_long)

    def _start_over(self) -> None:
        """Keep nothing that was computed: every text begins anew."""
        self._forward.forget()
        self.schedule.start_over(self._texts.values())
        for text in [*self._texts.values()]:
            if text.reason is not None:  # it was interrupted at its end
                self._finish(text, text.reason)
        self._fail_too_long(*{text.version for text in self._texts.values()})

    def _hand_out(self, work: Work, logits: Tensor) -> None:
        """Every text that has read all of its tokens gets the next one. What is wrong with one is its own error."""
        for text, slots in work:
            text.done += len(slots)
            self.schedule.waiting.charge(text, len(slots))
        for text, token, logprob in next_tokens([text for text, _ in work if text.left == 0], logits):
            if isinstance(token, Exception):
                self._finish(text, "error", token)
                continue
            self.schedule.waiting.charge(text, WRITTEN - 1)
            try:
                text.take(token, logprob)
            except BaseException as error:  # its text is not whole
                self._finish(text, "error", error if isinstance(error, Exception) else HalkaError("interrupted"))
                if not isinstance(error, Exception):
                    raise
            if text.reason is not None:
                self._finish(text, text.reason)

    def _finish(self, text: Text, finish: Finish, error: Exception | None = None) -> None:
        if self._texts.pop(text.answer, None) is None:
            return
        if error is None and text.begun:  # what changed since the last look has perhaps had a part in it
            self.adapters.look(text.version)
            error = text.version.error
        text.answer.error, text.answer.finish = error, finish if error is None else "error"  # others look meanwhile
        self.schedule.leave(text)
        if text.begun:
            self.adapters.residents.used(text.version)
        text.version.users -= 1
        text.version.begun -= text.begun

    # ── all at once ─────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Answer all of these; each answer as soon as it is finished."""
        under_way = list[Answer]()
        try:
            for request in requests:
                under_way += self.submit(request)
            while under_way:
                self.step()
                finished = [answer for answer in under_way if answer.finish is not None]
                under_way = [answer for answer in under_way if answer.finish is None]
                yield from finished
        finally:  # whoever stops early wants none of the rest
            for answer in under_way:
                self.cancel(answer)

    def put(self, name: str, source: str | Path) -> None:
        """From now on `name` means this adapter folder; requests under way finish with what it meant before."""
        with self._lock:
            self.adapters.put(name, source)

    def drop(self, name: str) -> None:
        """Take a name back that was `put`; requests under way finish. Raises UnknownAdapterError for any other."""
        with self._lock:
            self.adapters.drop(name)

    def close(self) -> None:
        """Give everything back: rows, blocks, adapters that were loaded, the base as it was."""
        with self._lock:
            self._closed = True
            for text in [*self._texts.values()]:
                self._finish(text, "cancelled")
            if not self._borrowed:
                self._kept.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
