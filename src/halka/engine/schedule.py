"""`Schedule`: which texts compute how many tokens in the next step, and which of them have a row."""

from __future__ import annotations

import math
from collections.abc import Iterable

from halka.engine.cache import BlockCache
from halka.engine.text import Text
from halka.engine.waiting import Waiting
from halka.models.attention.paged import SIZE

PAST = 4  # tokens per width of the base to which a token's attention takes as long as its linear layers
HURRY = 3  # times as much is read beside answers if a tenant has had fewer tokens than each of theirs

Work = list[tuple[Text, list[int]]]
"""The texts that a step computes, with a slot in the cache for each of their next tokens."""


class Schedule:
    """Gives rows to texts that wait, takes them from texts whose blocks or rows others need, and plans each step.

    running    texts that have a row
    waiting    texts that wait for one
    preempted  how often a text has lost its row
    """

    def __init__(self, cache: BlockCache, rows: int, read: int, read_beside: int, width: int):
        """
        rows         texts that run at a time
        read         tokens of prompts a step
        read_beside  the same beside answers, if they stand at the beginning of a text
        width        of the base's states: it says behind how many others a token costs twice as much
        """
        self.running, self.waiting, self.preempted = list[Text](), Waiting(), 0
        self._cache, self._rows = cache, rows
        self._read, self._read_beside, self._past = read, read_beside, PAST * width
        self._company = ""  # that the last step computed

    # ── texts come and go ───────────────────────────────────────────────────────────────────────────────────────

    def enter(self, text: Text) -> None:
        """A new text waits for a row."""
        self.waiting.enter(text)

    def leave(self, text: Text) -> None:
        """A text is finished or given up: its row and blocks are free."""
        text.drop(self._cache)
        if text in self.running:
            self.running.remove(text)
        self.waiting.leave(text)

    def start_over(self, texts: Iterable[Text]) -> None:
        """Keep nothing that was computed: all texts wait, also one that an error caught between waiting and running."""
        self.running.clear()
        self._cache.reset()
        waiting = {*self.waiting}
        for text in sorted(texts, key=_age, reverse=True):
            text.forget()
            if text not in waiting:
                self.waiting.put_back(text)

    # ── a step ──────────────────────────────────────────────────────────────────────────────────────────────────

    def next(self) -> Work:
        """What the next step computes: a token of each text that decodes, then chunks of those that are read."""
        self._make_way()
        work: Work = []
        company = self._next_company()
        for text in [text for text in company if text.left == 1]:
            if text in self.running and self._has_block(text):
                work.append((text, [*text.extend(self._cache, 1)]))
        least = min((self.waiting.served(text) for text, _ in work), default=math.inf)
        past, most = (self._past, self._beside(len(work))) if work else (math.inf, self._read)
        spent, hurried = 0.0, max(most, min(HURRY * most, self._read))
        reading = sorted((t for t in company if t.left > 1 and t in self.running), key=self.waiting.served)
        while (text := self._next_reader(reading)) is not None:
            if company and text.version.company != company[0].version.company:
                continue  # it has a row; its turn comes
            company.append(text)
            budget = (hurried if self.waiting.served(text) < least else most) - spent
            if budget < 1:
                break
            spent += self._read_on(text, budget, past, work)
        if not work and self.running:  # those that read hold all blocks: the oldest goes on next time
            self._preempt(max(self.running, key=_age))
        return work

    def _beside(self, decoding: int) -> float:
        """What may be read beside so many texts: more if rows stand empty, or wait to be read."""
        rows = min(self._rows, len(self.running) + len(self.waiting))
        return min(self._read, self._read_beside * rows / decoding)

    def _next_reader(self, reading: list[Text]) -> Text | None:
        """Which text reads next, of those that have a row or can get one: the tenant with the fewest tokens first."""
        first = next(filter(_ready, self.waiting.firsts()), None)
        if reading and (first is None or self.waiting.served(reading[0]) <= self.waiting.served(first)):
            return reading.pop(0)
        text = self._admit()
        return reading.pop(0) if text is None and reading else text

    def _next_company(self) -> list[Text]:
        """The running texts that this step computes, the oldest first; companies take turns."""
        companies = sorted({text.version.company for text in self.running})
        if companies:
            self._company = next((company for company in companies if company > self._company), companies[0])
        return sorted((text for text in self.running if text.version.company == self._company), key=_age)

    def _has_block(self, text: Text) -> bool:
        """Let there be a block for the next token; the youngest texts give up theirs, if need be this one."""
        while text.needs(1) > self._cache.room:
            youngest = max(self.running, key=_age)
            self._preempt(youngest)
            if youngest is text:
                return False
        return True

    def _read_on(self, text: Text, budget: float, past: float, work: Work) -> float:
        """Let a text read on, for so much at most; returns what its tokens cost."""
        text.share(self._cache)
        price = 1 + text.done / past
        tokens = min(text.left, max(1, int(budget / price)), text.spare + SIZE * self._cache.room)
        if tokens > 0:
            work.append((text, [*text.extend(self._cache, tokens)]))
        return tokens * price

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _admit(self) -> Text | None:
        """Give a row to the next text whose adapter is there; None if there is none, or no room."""
        if len(self.running) >= self._rows or (text := self.waiting.take(_ready)) is None:
            return None
        if not text.begin(self._cache):
            self.waiting.put_back(text)
            return None
        self.running.append(text)
        return text

    def _make_way(self) -> None:
        """Where all rows are taken, a tenant that has more than its share gives one to one that has less."""
        if len(self.running) < self._rows or not len(self.waiting):
            return
        share = math.ceil(self._rows / self.waiting.tenants)
        rows = dict[str, int]()
        for text in self.running:
            tenant = text.answer.request.tenant
            rows[tenant] = rows.get(tenant, 0) + 1
        next_ = next(filter(_ready, self.waiting.firsts()), None)
        most = max(rows, key=lambda tenant: rows[tenant])
        if next_ is not None and rows.get(next_.answer.request.tenant, 0) < share < rows[most]:
            self._preempt(max((t for t in self.running if t.answer.request.tenant == most), key=_age))

    def _preempt(self, text: Text) -> None:
        """Take a text's row; what it has computed is kept while there is room."""
        text.drop(self._cache)
        self.running.remove(text)
        self.waiting.put_back(text)
        self.preempted += 1


def _ready(text: Text) -> bool:
    """Whether its adapter is there, and stays."""
    return text.version.here and (text.begun or not text.version.leaving)


def _age(text: Text) -> int:
    """Low numbers are old."""
    return text.number
