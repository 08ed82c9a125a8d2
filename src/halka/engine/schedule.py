"""`Schedule`: which texts compute how many tokens in the next step, and which of them have a row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from halka.engine.cache import BlockCache
from halka.engine.text import Text
from halka.engine.waiting import Waiting
from halka.models.attention.paged import SIZE

PAST = 2  # tokens per width of the base behind which a token is taken to cost twice as much as at the beginning
TOGETHER = 16  # tokens that a processor multiplies a weight with at once: a line is filled up to whole ones
MOST = 8  # times as much is prefilled beside answers where so many rows have nothing to decode

Work = list[tuple[Text, list[int]]]
"""The texts that a step computes, with a slot in the cache for each of their next tokens."""


class Schedule:
    """Gives rows to texts that wait, takes them from texts whose blocks or rows others need, and plans each step.

    running    texts that have a row
    waiting    texts that wait for one
    preempted  how often a text has lost its row
    """

    def __init__(self, cache: BlockCache, rows: int, prefill: int, prefill_beside: int, width: int):
        """
        rows            texts that run at a time
        prefill         tokens of prompts a step
        prefill_beside  the same beside answers, if they begin a text; TOGETHER or more are filled up
        width           of the base's states: it says behind how many others a token costs twice as much
        """
        self.running, self.waiting, self.preempted = list[Text](), Waiting(), 0
        self._cache, self._rows = cache, rows
        self._prefill, self._prefill_beside, self._past = prefill, prefill_beside, PAST * width
        self._company = ("", False)  # that the last step computed
        self._alone = False  # whether that was one tenant's alone

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
        """What the next step computes: a token of each text that decodes, then chunks of prompts."""
        for text in [text for text in self.running if text.crossed_longrope_start]:
            self._preempt(text)
        self._make_way()
        before, company = self._company, self._next_company()
        tenant = self._tenant_alone(company)
        work = [] if tenant is None else self._plan([text for text in company if text.tenant == tenant], tenant)
        self._alone = bool(work)
        if work:
            self._company = before  # the turn of this one's other texts is still to come
        return work or self._plan(company)

    def _plan(self, company: list[Text], tenant: str | None = None) -> Work:
        """What these compute in a step; with a tenant, it is for no other."""
        work: Work = []
        for text in [text for text in company if text.left == 1]:
            if text in self.running and self._has_block(text):
                work.append((text, [*text.extend(self._cache, 1)]))
        most, past, spent = self._prefill, math.inf, 0.0
        if tenant is not None:
            most = max(1.0, self._prefill / 2)
        elif work:
            most, past = self._beside(), self._past
        prefilling = sorted((t for t in company if t.left > 1 and t in self.running), key=self._turn)
        while most - spent >= 1 and (text := self._next_to_prefill(prefilling, tenant)) is not None:
            if company and text.company != company[0].company:
                continue  # it has a row; its turn comes
            company.append(text)
            spent += self._prefill_on(text, most - spent, past, work)
        if not work and self.running and tenant is None:  # who prefills holds all blocks: the oldest goes on next time
            self._preempt(max(self.running, key=_age))
        return work

    def _tenant_alone(self, company: list[Text]) -> str | None:
        """Who prefills in a step of its own, every other one: it asks for no more than its share, and another for more
        than that and than half of the rows.

        So a flood of one tenant's requests does not delay another's first token by its own steps' length.
        """
        greedy, share = self.waiting.greediest, self._share
        if self._alone or greedy is None or self.waiting.demand(greedy) <= max(share, self._rows // 2):
            return None
        prefilling = [text for text in company if text.left > 1 and text.spare + SIZE * self._cache.room > 0]
        first = self._first_waiting() if len(self.running) < self._rows else None
        if first is not None and first.needs(first.left) <= self._cache.room:
            prefilling.append(first)
        least = min(prefilling, key=self._turn, default=None)
        if least is None or self.waiting.demand(least.tenant) > share:
            return None
        return least.tenant if self._turn(least) <= self.waiting.turn(greedy) else None

    def _turn(self, text: Text) -> tuple[float, int]:
        return self.waiting.turn(text.tenant)

    def _beside(self) -> float:
        """What may be prefilled beside texts that decode: more where more than one row has nothing to decode."""
        decoding = sum(text.left == 1 for text in self.running)
        others = min(self._rows, len(self.running) + len(self.waiting)) - decoding
        tokens = self._prefill_beside * max(1, min(others, MOST))
        if self._prefill_beside >= TOGETHER:
            tokens = math.ceil((decoding + tokens) / TOGETHER) * TOGETHER - decoding
        return min(self._prefill, tokens)

    def _next_to_prefill(self, prefilling: list[Text], tenant: str | None) -> Text | None:
        """Which text is prefilled next, of those with a row or room for one: of the tenant with the fewest tokens."""
        first = self._first_waiting()
        if first is not None and tenant not in (None, first.tenant):
            first = None
        if prefilling and (first is None or self._turn(prefilling[0]) <= self._turn(first)):
            return prefilling.pop(0)
        text = None if first is None else self._admit()
        return prefilling.pop(0) if text is None and prefilling else text

    def _next_company(self) -> list[Text]:
        """The running texts that this step computes, the oldest first; companies take turns."""
        companies = sorted({text.company for text in self.running})
        if companies:
            self._company = next((company for company in companies if company > self._company), companies[0])
        return sorted((text for text in self.running if text.company == self._company), key=_age)

    def _has_block(self, text: Text) -> bool:
        """Let there be a block for the next token; the youngest texts give up theirs, if need be this one."""
        while text.needs(1) > self._cache.room:
            youngest = max(self.running, key=_age)
            self._preempt(youngest)
            if youngest is text:
                return False
        return True

    def _prefill_on(self, text: Text, budget: float, past: float, work: Work) -> float:
        """Prefill a text further, for so much at most; returns what its tokens cost."""
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
        """Where all rows are taken, preempt the newest text of the tenant with the most rows, for a waiting text of a
        tenant below its share that has been served no more: else the other would have the row again at once.
        """
        if len(self.running) < self._rows or (first := self._first_waiting()) is None:
            return
        rows = Counter(text.tenant for text in self.running)
        most = max(rows, key=lambda tenant: rows[tenant])
        if rows[first.tenant] < self._share < rows[most] and self._turn(first) <= self.waiting.turn(most):
            self._preempt(max((text for text in self.running if text.tenant == most), key=_age))
            self._admit()

    @property
    def _share(self) -> int:
        """Rows of each tenant that has texts."""
        return math.ceil(self._rows / max(1, self.waiting.tenants))

    def _first_waiting(self) -> Text | None:
        """Who is next to get a row."""
        return next(filter(_ready, self.waiting.firsts()), None)

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
