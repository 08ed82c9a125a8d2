"""`Engine`: requests in, tokens out. Texts join and leave at every step, each with its adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from halka.core import AdaptedModel
from halka.engine.adapters import BUDGET, Adapters
from halka.engine.cache import BlockCache
from halka.engine.constraint import Constraints
from halka.engine.line import Line
from halka.engine.llama.forward import forward_of
from halka.engine.request import Answer, Finish, Request
from halka.engine.sampling import SEEDS, choose, new_seed
from halka.engine.stopping import StoppedText, end_tokens
from halka.engine.text import Text
from halka.engine.version import Version
from halka.engine.waiting import WRITTEN, Waiting
from halka.models import memory_of
from halka.models.attention.paged import SIZE, KVBlocks, PagedPlan
from halka.models.layouts import layout_of
from halka.storage.adapter_store import AdapterStore
from halka.storage.pool import AdapterPool
from halka.storage.save_load import Allowed
from halka.util import machine
from halka.util.errors import HalkaError

POSITIONS = 4096  # of a text, to size the cache of a base without a limit
SHARE = 0.25  # of the machine's memory that the cache takes at most, unless another is set


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
        store: AdapterStore | None = None,
        *,
        rows: int = 32,
        memory: int | None = None,
        adapter_memory: int = BUDGET,
        read: int = 512,
        read_beside: int = 64,
        ends: frozenset[int] | None = None,
        allowed: Allowed | None = None,
    ):
        """
        store           where adapters come from that the model does not have; its pool's if there is one
        rows            answers that are made at the same time
        memory          bytes for keys and values; by default what the rows can need, up to a quarter of what is free
        adapter_memory  bytes for adapters that are loaded from the store or were `put`
        read            tokens of prompts that are read in a step
        read_beside     the same while others wait for their next token: what they wait for it
        ends            tokens that end every answer; those of the base's generation config if not given
        allowed         what `halka.load` may accept of folders: other bases, other templates, pickles

        Raises HalkaError for a base that is no decoder, one without tokenizer, and numbers below 1.
        """
        if not layout_of(model.base).causal or layout_of(model.base).encoder is not None:
            raise HalkaError(f"{type(model.base).__name__} is no decoder: an engine makes texts token by token")
        if model.tokenizer is None:
            raise HalkaError("an engine makes text: it needs the tokenizer, `halka.adapt(base, tokenizer)`")
        for name, value in {"rows": rows, "read": read, "read_beside": read_beside}.items():
            if value < 1:
                raise HalkaError(f"{name} is 1 or more, not {value}")
        self.model, self.rows, self.read, self.read_beside = model, rows, read, read_beside
        self.ends = end_tokens(model) if ends is None else ends
        if store is None and isinstance(pool := model.pool, AdapterPool):
            store, adapter_memory, allowed = pool.store, pool.budget, pool.allowed
        self.adapters = Adapters(model, store, adapter_memory, allowed)
        self.cache = BlockCache(self._blocks(memory))
        self.steps = self.preempted = 0
        self._forward = forward_of(model)
        self._vocabulary = next(target.d_in for target in model.targets if target.role == "embedding")
        self._constraints = Constraints(model.tokenizer, self.ends)
        self._texts = dict[Answer, Text]()  # of all answers that are not finished
        self._waiting, self._running = Waiting(), list[Text]()
        self._numbers, self._company, self._merged, self._closed = count(), "", model.merged, False
        self._lock = model.lock  # one for both: whoever has the model may use the engine, and nobody waits in a circle

    def _blocks(self, memory: int | None) -> KVBlocks:
        base: Any = self.model.base
        stack = memory_of(self.model).stack
        shape = stack.shape
        size = KVBlocks.bytes_of(shape, base.dtype)
        if memory is None:
            memory = int(SHARE * machine.available(base.device))
        limit = stack.limit or POSITIONS
        most = -(-max(limit, self.rows * min(limit, POSITIONS)) // SIZE) + 1  # virtual tokens end in a block of theirs
        if memory < 2 * size:
            raise HalkaError(f"memory holds at least two blocks of keys and values, {2 * size:,} bytes, not {memory:,}")
        return KVBlocks(min(memory // size, most), shape, base.dtype, base.device)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, request: Request, n: int = 1) -> list[Answer]:
        """Queue a request to be answered `n` times, with seeds that follow each other. The prompt is read once.

        Raises UnknownAdapterError for an adapter that nobody has, HalkaError for an empty prompt, tokens that the base
        does not have, a prompt that leaves no room for the answer, an answer that the cache cannot hold, and an engine
        that is closed.
        """
        if not len(request.prompt):
            raise HalkaError("the prompt has no tokens")
        if unknown := [token for token in request.prompt if not 0 <= token < self._vocabulary]:
            raise HalkaError(f"the prompt has token {unknown[0]}: this base has those from 0 to {self._vocabulary - 1}")
        if n < 1:
            raise HalkaError(f"n is 1 or more, not {n}")
        seed = new_seed() if request.sampling.seed is None else request.sampling.seed
        with self._lock:
            if self._closed:
                raise HalkaError("the engine is closed")
            version = self.adapters.version(request.adapter)
            self._check_room(request, version)
            answers = [Answer(request) for _ in range(n)]
            constraint, texts = request.constraint, list[Text]()
            for number, answer in enumerate(answers):
                stopped = StoppedText(self.model.tokenizer, request.stopping, self.ends)
                matcher = None if constraint is None else self._constraints.matcher(constraint)
                texts.append(Text(answer, version, next(self._numbers), (seed + number) % SEEDS, stopped, matcher))
            for text in texts:
                version.users += 1
                self._texts[text.answer] = text
                self._waiting.enter(text)
        return answers

    def cancel(self, answer: Answer) -> None:
        """Give an answer up; its row and blocks are free at once."""
        with self._lock:
            if (text := self._texts.get(answer)) is not None:
                self._finish(text, "cancelled")

    def fail(self, error: Exception) -> None:
        """Give up all answers that are not finished, because of this."""
        with self._lock:
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
        """Whether some answer is not finished."""
        return bool(self._texts)

    def _check_room(self, request: Request, version: Version) -> None:
        tokens = len(request.prompt) + request.stopping.max_new_tokens
        if version.room is not None and tokens > version.room:
            raise HalkaError(
                f"a prompt of {len(request.prompt)} tokens and {request.stopping.max_new_tokens} new ones are "
                f"{tokens - version.room} more than the {version.room} positions for text that this base has"
            )
        virtual = 0 if version.virtual is None else version.virtual.shape[0]
        blocks = -(-tokens // SIZE) + -(-virtual // SIZE)
        if blocks > self.cache.size:
            raise HalkaError(
                f"a prompt of {len(request.prompt)} tokens and {request.stopping.max_new_tokens} new ones are "
                f"{(blocks - self.cache.size) * SIZE} more than the cache's {self.cache.size * SIZE}: give the engine "
                "more memory, or lower max_new_tokens"
            )

    # ── a step ──────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> bool:
        """Compute the next tokens of as many answers as there are rows. Returns whether some answer goes on.

        After an error, which is raised, every answer that is not finished begins anew, without a changed token.
        """
        with self._lock:
            self._follow()
            reading = self.adapters.prepare(text.version for text in self._waiting.firsts())
            try:
                work = self._schedule()
                if work:
                    line = self._line(work)
                    self._hand_out(work, self._forward(line))
                    self.steps += 1
            except BaseException:
                self._start_over()
                raise
            idle = not self._running
        if idle and reading is not None:
            wait([reading])
        return self.busy

    def _follow(self) -> None:
        """See what changed in the model and among the adapters; requests whose adapter cannot be used fail."""
        self.adapters.check()
        if self._merged != self.model.merged:
            self._merged = self.model.merged
            self._start_over()
        firsts = [text.version for text in (*self._running, *self._waiting.firsts())]
        errors = {version: error for version in firsts if (error := self.adapters.error(version)) is not None}
        for text in [text for text in self._texts.values() if text.version in errors] if errors else ():
            self._finish(text, "error", errors[text.version])

    def _schedule(self) -> list[tuple[Text, list[int]]]:
        """Which texts compute how many tokens: a slot for each. Those that decode first, then those that read."""
        self._make_way()
        work: list[tuple[Text, list[int]]] = []
        company = self._next_company()
        for text in [text for text in company if text.left == 1]:
            if text in self._running and self._has_block(text):
                work.append((text, [*text.extend(self.cache, 1)]))
        budget = self.read_beside if work else self.read
        for text in [text for text in company if text.left > 1 and text in self._running]:
            budget -= self._read(text, budget, work)
        while budget > 0 and (text := self._admit()) is not None:
            if company and text.version.company != company[0].version.company:
                break  # it has a row; its turn comes
            company.append(text)
            budget -= self._read(text, budget, work)
        if not work and self._running:  # those that read hold all blocks: the oldest goes on next time
            self._preempt(max(self._running, key=_age))
        if self.adapters.changed:
            self.adapters.changed = False
            self._forward.forget()
        return work

    def _read(self, text: Text, budget: int, work: list[tuple[Text, list[int]]]) -> int:
        """Let a text read on, by so many tokens at most; returns how many they are."""
        text.share(self.cache)
        tokens = min(text.left, budget, text.spare + SIZE * self.cache.room)
        if tokens > 0:
            work.append((text, [*text.extend(self.cache, tokens)]))
        return tokens

    def _has_block(self, text: Text) -> bool:
        """Let there be a block for the next token; the youngest texts give up theirs, if need be this one."""
        while text.needs(1) > self.cache.room:
            youngest = max(self._running, key=_age)
            self._preempt(youngest)
            if youngest is text:
                return False
        return True

    def _next_company(self) -> list[Text]:
        """The running texts that this step computes, the oldest first; companies take turns."""
        companies = sorted({text.version.company for text in self._running})
        if companies:
            self._company = next((company for company in companies if company > self._company), companies[0])
        return sorted((text for text in self._running if text.version.company == self._company), key=_age)

    def _admit(self) -> Text | None:
        """Give a row to the next text whose adapter is there; None if there is none, or no room."""
        while len(self._running) < self.rows and (text := self._waiting.take(_ready)) is not None:
            try:
                self._check_room(text.answer.request, text.version)
            except HalkaError as too_long:  # which was not known before its adapter was loaded
                self._finish(text, "error", too_long)
                continue
            if not text.begin(self.cache):
                self._waiting.put_back(text)
                return None
            if not text.begun:
                text.begun, text.answer.adapter_id = True, text.version.id
                text.version.begun += 1
                self.adapters.used(text.version)
            self._running.append(text)
            return text
        return None

    def _make_way(self) -> None:
        """Where all rows are taken, a tenant that has more than its share gives one to one that has less."""
        if len(self._running) < self.rows or not len(self._waiting):
            return
        share = math.ceil(self.rows / self._waiting.tenants)
        rows = dict[str, int]()
        for text in self._running:
            tenant = text.answer.request.tenant
            rows[tenant] = rows.get(tenant, 0) + 1
        next_ = next(filter(_ready, self._waiting.firsts()), None)
        most = max(rows, key=lambda tenant: rows[tenant])
        if next_ is not None and rows.get(next_.answer.request.tenant, 0) < share < rows[most]:
            self._preempt(max((t for t in self._running if t.answer.request.tenant == most), key=_age))

    def _preempt(self, text: Text) -> None:
        """Take a text's row; what it has computed is kept while there is room."""
        text.drop(self.cache)
        self._running.remove(text)
        self._waiting.put_back(text)
        self.preempted += 1

    def _start_over(self) -> None:
        """Keep nothing that was computed: every text begins anew."""
        self._running.clear()
        self.cache.reset()
        self._forward.forget()
        waiting = {*self._waiting}
        for text in sorted(self._texts.values(), key=_age, reverse=True):
            text.forget()
            if text.answer.finish is not None:  # it was interrupted at its end
                self._finish(text, text.answer.finish)
            elif text not in waiting:
                self._waiting.put_back(text)

    def _line(self, work: list[tuple[Text, list[int]]]) -> Line:
        """One line of all that is computed; texts of one adapter stand side by side."""
        work.sort(key=lambda pair: pair[0].version.key or "")
        counts = [len(slots) for _, slots in work]
        keys = [text.version.key for text, _ in work]
        if len({*keys}) > 1 and len({*counts}) == 1:  # a rectangle: adapters act on rows
            runs, names = counts, keys
        else:
            runs, names = [], list[str | None]()
            for key, tokens in zip(keys, counts, strict=True):
                if names and names[-1] == key:
                    runs[-1] += tokens
                else:
                    names.append(key)
                    runs.append(tokens)
        tokens, positions, texts, last = list[int](), list[int](), [], list[int]()
        for text, slots in work:
            end = text.done + len(slots)
            tokens += text.tokens[text.done : end]
            positions += range(text.version.shift + text.done, text.version.shift + end)
            texts.append(text.paged(len(slots)))
            if end == len(text.tokens):
                last.append(len(tokens) - 1)
        slots = [slot for _, own in work for slot in own]
        return Line(tokens, PagedPlan(self.cache.kv, texts, positions, slots, runs), tuple(names), last)

    def _hand_out(self, work: list[tuple[Text, list[int]]], logits: Tensor) -> None:
        """Every text that has read all of its tokens gets the next one. What is wrong with one is its own error."""
        for text, slots in work:
            text.done += len(slots)
            self._waiting.charge(text, len(slots))
        texts = [text for text, _ in work if text.left == 0]
        chosen = list[int]()  # rows of the logits
        allowed: list[Tensor | None] = []
        for row, (text, highest) in enumerate(zip(texts, logits.amax(-1).tolist(), strict=True)):
            try:
                if not math.isfinite(highest):
                    raise HalkaError(
                        f"adapter {text.version.name!r} makes logits that are no numbers: are its weights?"
                    )
                allowed.append(text.allowed(logits.shape[-1]))
                chosen.append(row)
            except Exception as error:
                self._finish(text, "error", error)
        texts = [texts[row] for row in chosen]
        logits = logits if len(chosen) == len(logits) else logits[chosen]
        for text, token in zip(texts, choose(logits, [text.draw for text in texts], allowed), strict=True):
            self._waiting.charge(text, WRITTEN - 1)
            try:
                text.take(token)
            except BaseException as error:  # its text is not whole
                self._finish(text, "error", error if isinstance(error, Exception) else HalkaError("interrupted"))
                if not isinstance(error, Exception):
                    raise
            if text.answer.finish is not None:
                self._finish(text, text.answer.finish, text.answer.error)

    def _finish(self, text: Text, finish: Finish, error: Exception | None = None) -> None:
        if self._texts.pop(text.answer, None) is None:
            return
        text.answer.finish, text.answer.error = finish, error
        text.drop(self.cache)
        if text in self._running:
            self._running.remove(text)
        self._waiting.leave(text)
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
            self.adapters.close()
            self._forward.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


OPTIONS = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "min_length",
    "min_new_tokens",
    "exponential_decay_length_penalty",
    "stop_strings",
    "guidance_scale",
    "num_beams",
)
"""What a generation config may ask of `generate` that the engine has not."""


def engine_answers(model: AdaptedModel) -> bool:
    """Whether an engine makes the same greedy answers as the base's own `generate`, by its generation config."""
    layout, config = layout_of(model.base), getattr(model.base, "generation_config", None)
    if not layout.causal or layout.encoder is not None or model.labels:
        return False
    neutral = (None, 0, 1, 1.0, [], {})
    return all(getattr(config, option, None) in neutral for option in OPTIONS)


def _ready(text: Text) -> bool:
    """Whether its adapter is there, and stays."""
    return text.version.here and (text.begun or not text.version.leaving)


def _age(text: Text) -> int:
    """Low numbers are old."""
    return text.number
