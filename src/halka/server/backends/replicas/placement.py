"""`Placement`: which replica a request goes to: one that has its adapter in memory, as long as it has a free row."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count

from halka.server.backends.replicas.wire import State

Order = list[str | None]
"""Replicas by name, the one that is wanted most first; None stands for all that are not named."""
AVOIDED = 30.0  # seconds in which a replica whose engine failed is asked last
SILENT = 3  # looks in a row at which a replica has said nothing since the one before, and hangs
CALLS = 2  # that a replica takes for each of its rows; the others wait at the gateway


@dataclass(eq=False)
class Seen:
    """What the gateway knows of a replica.

    slot     its place among the replicas, which another has when it is gone
    holds    the adapters that it has or is about to have, by content id, and when each was used last
    calls    requests that it has replied to and goes on with
    using    answers under way, by content id; None: the bare base
    heard    when it last replied to a request by an adapter that it still has, by content id; None: the bare base
    owners   answers under way of every owner whose adapter it has or is about to have, by content id and owner
    avoided  until when others are asked first, by `time.monotonic`: its engine failed
    silent   looks in a row at which it had said nothing
    """

    slot: int
    state: State
    holds: dict[str, int] = field(default_factory=dict[str, int])
    calls: int = 0
    using: Counter[str | None] = field(default_factory=Counter[str | None])
    heard: dict[str | None, int] = field(default_factory=dict[str | None, int])
    owners: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    avoided: float = 0.0
    silent: int = 0

    @property
    def hangs(self) -> bool:
        return self.silent >= SILENT or self.state.stalled

    @property
    def busy(self) -> int:
        return self.using.total()

    def use(self, id: str | None, owner: str, answers: int, now: int, most: int | None) -> None:
        """Answers of this adapter are under way there: the replica evicts the longest unused if it has no room."""
        self.using[id] += answers
        if id is not None:
            self.holds[id] = now
            self.owners[id, owner] = self.owners.get((id, owner), 0) + answers
            idle = sorted((id for id in self.holds if not self.using[id]), key=self.holds.__getitem__)
            for other in idle[: max(0, len(self.holds) - most)] if most is not None else ():
                del self.holds[other]
        self.forget()

    def leave(self, id: str | None, owner: str, answers: int) -> None:
        """So many answers have ended there."""
        self.using[id] -= answers
        self.using += Counter[str | None]()  # without zeros
        if id is not None and (id, owner) in self.owners:
            self.owners[id, owner] -= answers
        self.forget()

    def forget(self) -> None:
        """Forget the owners of what it does not hold, and when that was heard of."""
        self.owners = {key: count for key, count in self.owners.items() if key[0] in self.holds}
        self.heard = {id: when for id, when in self.heard.items() if id is None or id in self.holds}


class Placed:
    """A request's place.

    order     the replicas, as Serve is to try them
    replica   the one that has it; None: not yet known
    answered  whether that one has replied; until then `replica` is the one that is wanted
    """

    def __init__(self, placement: Placement, id: str | None, owner: str, answers: int, order: Order):
        self.order, self.replica = order, next(filter(None, order), None)
        self.id, self.owner, self.answers, self._placement = id, owner, answers, placement
        self.seen: Seen | None = None  # where its answers are counted
        self.answered = False

    @property
    def label(self) -> str:
        """What metrics call the replica."""
        return self._placement.label(self.replica)

    def at(self, replica: str, held: bool | None = None) -> None:
        """This replica has the request, and had its adapter or not; None: that does not count."""
        self._placement.move(self, replica, held)

    def heard(self, stalled: bool) -> None:
        """Its replica has said something, perhaps that its engine makes no step."""
        seen = self._placement.seen.get(self.replica or "")  # another than `self.seen` if it was lost and seen again
        if seen is not None:
            seen.silent = 0
            if seen.state.stalled != stalled:
                seen.state = replace(seen.state, stalled=stalled)


class Placement:
    """Knows what the replicas have, by what they say and by the requests that they were sent.

    rows   answers that a replica makes at once; most: adapters that it has room for, None: any number
    slots  requests that "met" their adapter in a replica's memory, and that "missed" it, by the replica's slot:
           as many as there ever were replicas at once, so that metrics have few labels
    """

    def __init__(self, rows: int, most: int | None):
        self.rows, self.most = rows, most
        self.seen, self.slots = dict[str, Seen](), dict[int, Counter[str]]()
        self._now, self._lock = count(1), threading.Lock()

    @contextmanager
    def place(self, id: str | None, answers: int = 1, owner: str = "") -> Iterator[Placed]:
        """Within the block a request for so many answers by an owner's adapter with this content is under way."""
        with self._lock:
            placed = Placed(self, id, owner, answers, self._order(id))
            if placed.replica is not None:
                self._enter(placed, placed.replica)
        try:
            yield placed
        finally:
            with self._lock:
                self._leave(placed)

    def move(self, placed: Placed, replica: str, held: bool | None) -> None:
        """The request is at this replica, wherever it was thought to be."""
        with self._lock:
            if replica not in self.seen:
                self._see(State(replica))
            if (seen := self.seen[replica]) is not placed.seen:
                self._leave(placed)
                self._enter(placed, replica)
            seen.calls += not placed.answered
            placed.answered = True
            seen.heard[placed.id] = next(self._now)
            if placed.id is not None and held is not None:
                self.slots[seen.slot]["met" if held else "missed"] += 1

    def moment(self) -> int:
        """Now, for `update`."""
        with self._lock:
            return next(self._now)

    def update(
        self, states: Iterable[State], whole: bool = True, waited: Collection[str] = (), asked: float = math.inf
    ) -> bool:
        """These are all replicas that there are, and what they hold; not the `whole`: some did not say it in time.

        waited  the replicas whose next reply somebody waits for: these hear from one that cannot be asked
        asked   the `moment` before they were asked: what was heard of later is there, whatever they say

        Returns whether one hangs since now.
        """
        with self._lock:
            before = {name for name, seen in self.seen.items() if seen.hangs}
            by_name = {state.name: state for state in states}
            for name in self.seen.keys() - by_name.keys() if whole else ():
                if max(self.seen[name].heard.values(), default=0) < asked:
                    del self.seen[name]
            for name, state in by_name.items():
                if name not in self.seen:
                    self._see(state)
                seen = self.seen[name]
                later = {id for id, when in seen.heard.items() if when > asked}
                wanted = {*state.holds, *seen.using, *later} - {None}
                seen.state, seen.holds, seen.silent = state, {id: seen.holds.get(id, 0) for id in wanted}, 0
                seen.forget()
            for name in self.seen.keys() - by_name.keys():
                # Serve lets the question wait where a replica has all calls that it takes: then only their beats tell
                if self.seen[name].calls < CALLS * self.rows or name in waited:
                    self.seen[name].silent += 1
            return any(seen.hangs and name not in before for name, seen in self.seen.items())

    def lose(self, replica: str | None) -> None:
        """It cannot be asked: it has nothing any more, until it is seen again."""
        with self._lock:
            self.seen.pop(replica or "", None)

    def avoid(self, replica: str | None) -> None:
        """Its engine failed: others are asked first, for a while."""
        with self._lock:
            if (seen := self.seen.get(replica or "")) is not None:
                seen.avoided = time.monotonic() + AVOIDED

    @property
    def hanging(self) -> bool:
        """Whether a replica hangs."""
        with self._lock:
            return any(seen.hangs for seen in self.seen.values())

    @property
    def well(self) -> bool:
        """Whether a replica does not."""
        with self._lock:
            return any(not seen.hangs for seen in self.seen.values())

    def hangs(self, replica: str | None) -> bool:
        """Whether this one does."""
        seen = self.seen.get(replica or "")
        return seen is not None and seen.hangs

    def held(self, id: str, owner: str) -> tuple[bool, int]:
        """Whether a replica has an owner's adapter with this content in memory, and how many answers use it.

        It is in memory for the owners that have asked there: no other learns that its content is the same.
        """
        with self._lock:
            counts = [seen.owners[id, owner] for seen in self.seen.values() if (id, owner) in seen.owners]
            return bool(counts), sum(counts)

    def holds_of(self, owner: str) -> bool:
        """Whether a replica has any of an owner's adapters in memory."""
        with self._lock:
            return any(owner == other for seen in self.seen.values() for _, other in seen.owners)

    def by_slot(self) -> dict[int, tuple[Seen | None, Counter[str]]]:
        """The replica of every slot, if one has it now, and what it has met and missed."""
        with self._lock:
            seen = {one.slot: one for one in self.seen.values()}
            return {slot: (seen.get(slot), counts) for slot, counts in self.slots.items()}

    def label(self, replica: str | None) -> str:
        """What metrics call a replica."""
        seen = self.seen.get(replica or "")
        return "replica" if seen is None else f"replica-{seen.slot}"

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _order(self, id: str | None) -> Order:
        """Whoever has it and a free row; others with a free row; then the rest alike, each by what it has to do.

        Of those without it, one that has little to do comes first, one that has room for it next, then the one whose
        longest unused adapter was not used for longest: together they evict as one memory would.
        """
        now = time.monotonic()
        well = {name: seen for name, seen in self.seen.items() if seen.avoided < now and not seen.hangs}
        free = {name: seen for name, seen in well.items() if seen.busy < self.rows}
        full = {name: seen for name, seen in well.items() if name not in free}
        order: Order = []
        for group in (free, full):
            order += sorted((n for n in group if id is None or id in group[n].holds), key=lambda n: group[n].busy)
            if group is free:
                order.append(None)  # none of these has had a request
            order += sorted((n for n in group if n not in order), key=lambda name: self._cost(group[name]))
        ill = sorted((name for name in self.seen if name not in well), key=lambda name: self.seen[name].hangs)
        return [*order, *ill] if self.seen else []

    def _cost(self, seen: Seen) -> tuple[int, int]:
        """What it costs a replica to take another adapter."""
        oldest = min(seen.holds.values(), default=0)
        evicts = self.most is not None and len(seen.holds) >= self.most
        return 2 * seen.busy // self.rows, oldest if evicts else 0

    def _see(self, state: State) -> None:
        taken = {seen.slot for seen in self.seen.values()}
        slot = next(slot for slot in count() if slot not in taken)
        self.seen[state.name] = Seen(slot, state)
        self.slots.setdefault(slot, Counter())

    def _enter(self, placed: Placed, replica: str) -> None:
        placed.replica, placed.seen = replica, self.seen[replica]
        placed.seen.use(placed.id, placed.owner, placed.answers, next(self._now), self.most)

    def _leave(self, placed: Placed) -> None:
        if placed.seen is not None:
            if placed.answered:
                placed.seen.heard[placed.id] = next(self._now)
            placed.seen.leave(placed.id, placed.owner, placed.answers)
            placed.seen.calls -= placed.answered
            placed.seen, placed.answered = None, False
