"""`Residents`: the adapters that an engine loads into the model, within a budget, and evicts by use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halka.core import AdaptedModel, Adapter
from halka.engine.version import Version, describe, opened, removed, state_of_files
from halka.storage.save_load import Allowed, load
from halka.util.errors import HalkaError, PinnedFullError
from halka.util.machine import memory_named

BUDGET = 2 * 10**9  # bytes of adapters that were loaded for requests
AHEAD = 4  # adapters whose files are read at a time, so that one that comes late need not wait for all that came early
TENSORS = 16  # the most of an adapter for each module of the base
COPIES = 2  # of an adapter's bytes on a GPU: beside its fp32 parameters what is computed with, and that stacked by row
WAIT_STEPS = 32  # steps that an adapter waits for room before one that is in the way takes no more requests
LESS = "lower adapter_memory, or memory (for keys and values), or choose a smaller or quantised base"


BytesOf = Callable[[Adapter], int]
"""What a pass keeps of an adapter, beside what the model has."""

Fits = Callable[[Version], bool]
"""Whether a version may be pinned in the place of the one before."""


@dataclass(frozen=True)
class Held:
    """What memory has of an adapter: whether any version, whether one is pinned, and how many requests use them."""

    loaded: bool = False
    pinned: bool = False
    requests: int = 0


@dataclass
class _Room:
    """How many bytes, and how many adapters, memory has room for."""

    bytes: int
    count: float

    def fits(self, version: Version) -> bool:
        """Whether there is room for it."""
        return version.bytes <= self.bytes and self.count >= 1

    def add(self, version: Version) -> None:
        """There is also what this one takes."""
        self.bytes += version.bytes
        self.count += 1


class Residents:
    """Versions of adapters in the model.

    versions   the longest unused first
    budget     bytes that they may take; most: how many they may be, None: as many as fit
    loads      how many were loaded, and evictions how many left for others
    changed    one has come or gone, since somebody set it to False
    pins       for each pinned name the version that it means, which stays once it is loaded, if it fits
    """

    def __init__(
        self,
        model: AdaptedModel,
        budget: int,
        allowed: Allowed,
        most: int | None = None,
        of_pass: BytesOf = lambda _: 0,
    ):
        self.model, self.budget, self.most, self._allowed = model, budget, most, allowed
        self.versions: list[Version] = []
        self.loads, self.evictions, self.changed = 0, 0, False
        self._of_pass = of_pass
        self.pins: dict[str | None, tuple[Version, Fits]] = {}
        self._reader = _reader()
        base: Any = model.base
        self._copies = 1 if base.device.type == "cpu" else COPIES
        self._tensors = TENSORS * len([*base.modules()])

    def prepare(self, wanted: Iterable[Version]) -> tuple[Version | None, Future[None] | None]:
        """Load what is wanted, in this order, one a call: files are read in the background, then the model takes them.

        Returns the version that was loaded, and a reading that is under way, if nothing else is to be done before it.
        """
        for version in self.versions:
            version.leaving = False
        missing = [version for version in dict.fromkeys(wanted) if not version.here and version.error is None]
        ready = [version for version in missing if version.reading is not None and version.reading.done()]
        reading = [future for version in missing if (future := version.reading) is not None and not future.done()]
        for version in missing:
            if version.reading is None and len(reading) < AHEAD:
                version.reading = self._reader.submit(_read, version, self._copies, self._tensors)
                reading.append(version.reading)
        loaded = self._load_next(ready)
        nothing_done = all(version.reading is not None and not version.here for version in ready)
        return loaded, reading[0] if reading and nothing_done else None

    def used(self, version: Version) -> None:
        """An answer that it made has ended: it is the last that is evicted."""
        if version in self.versions:
            self.versions.remove(version)
            self.versions.append(version)

    def pin(self, version: Version, fits: Fits = lambda _: True) -> None:
        """From now on this version stays once it is loaded, alone of its name; one that does not fit ends that."""
        self.pins[version.name] = version, fits
        self._mark(version.name)

    def follow(self, version: Version) -> None:
        """Its name means this version now: where the name is pinned, so is this version instead of the one before."""
        if version.name in self.pins and self.pins[version.name][0] is not version:
            self.pin(version, self.pins[version.name][1])

    def unpin(self, name: str | None) -> None:
        """It is evicted by use again."""
        self.pins.pop(name, None)
        for version in self._of(name):
            version.pinned = False

    def unload(self, name: str) -> None:
        """Evict all versions under this name, pinned ones too. Raises HalkaError while requests use one."""
        if users := sum(version.users for version in self._of(name)):
            raise HalkaError(f"{users} requests use adapter {name!r}: wait until they are finished")
        self.unpin(name)
        for version in self._of(name):
            self._evict(version)

    def evict_removed(self, name: str) -> None:
        """Evict the versions under this name whose folders are removed; those that requests have by use."""
        for version in self._of(name):
            if version.folder is not None and _gone(version.folder.path):
                version.pinned = False
                if not version.users:
                    self._evict(version)

    def forget(self, version: Version) -> None:
        """It is in the model no more."""
        self.versions.remove(version)
        version.here, version.reading, version.virtual, version.adapter = False, None, None, None
        version.pinned, self.changed = False, True

    def held(self, name: str) -> Held:
        """What is here under a name, at a glance."""
        own = self._of(name)
        return Held(bool(own), any(version.pinned for version in own), sum(version.users for version in own))

    def close(self) -> None:
        """Take all out of the model; they are loaded again when they are wanted again."""
        self._reader.shutdown(cancel_futures=True)
        self._reader = _reader()
        for version in [*self.versions]:
            self._evict(version)

    def _of(self, name: str | None) -> list[Version]:
        return [version for version in self.versions if version.name == name]

    def _mark(self, name: str | None) -> None:
        """Pin what a pinned name means, in place of the version before, once it is loaded."""
        if name not in self.pins or self.pins[name][0] not in self.versions:
            return
        version, fits = self.pins[name]
        if not fits(version):
            self.unpin(name)
        else:
            for other in self._of(name):
                other.pinned = other is version

    # ── loading ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _load_next(self, ready: Sequence[Version]) -> Version | None:
        """Let the model take the first of these, or one that fits where that has no room.

        Once the first has waited for long, only one that fits beside it, too.
        """
        if not ready or self._load(ready[0]):
            return ready[0] if ready else None
        first, *others = ready
        if first.reading is None or first.error is not None:
            return None  # it does not wait for room
        now = self._room_beside(other for other in self.versions if other.users or other.pinned)
        then = now
        if first.waited > WAIT_STEPS:
            then = self._room_beside([first, *(other for other in self.versions if not other.leaving)])
        fits = next((version for version in others if now.fits(version) and then.fits(version)), None)
        return None if fits is None or not self._load(fits) else fits

    def _load(self, version: Version) -> bool:
        """Let the model take it, if there is room. Returns whether the model has it; why not is its error."""
        assert version.reading is not None
        assert version.folder is not None
        try:
            version.reading.result()
            if not self._make_room(version):
                return False
            version.key = _free_name(version, self.model)
            with memory_named(f"out of memory while adapter {version.name!r} was loaded: {LESS}"):
                adapter = load(self.model, version.folder, name=version.key, **self._allowed)
                try:
                    if state_of_files(version.folder) != version.state:
                        raise HalkaError(f"{version.folder} is replaced again and again")
                    describe(version, self.model, adapter)
                    if version.virtual is not None:  # of a prompt, keys and values of every layer
                        version.bytes = max(version.bytes, version.folder.memory + version.virtual.nbytes)
                    version.bytes += self._of_pass(adapter)
                except BaseException:
                    self.model.remove(version.key)
                    raise
        except Exception as error:  # whatever is wrong with it, it is wrong with nothing else
            version.reading = None
            if not self._reopen(version):
                version.error = removed(version.name) if _gone(version.folder.path) else error
            return False
        self.loads += 1
        version.here, version.waited, self.changed = True, 0, True
        self.versions.append(version)
        self._mark(version.name)
        return True

    def _reopen(self, version: Version) -> bool:
        """Take what is in its folder now, if that was replaced: nobody has begun with what was there before."""
        assert version.folder is not None
        try:
            now = opened(version.name or "", version.folder.path, self._allowed)
        except (HalkaError, OSError):
            return False
        replaced = now.state != version.state
        version.folder, version.state = now.folder, now.state
        return replaced

    def _make_room(self, version: Version) -> bool:
        """Evict what no request needs, the longest unused first. Returns whether there is room.

        What has waited for long also takes the room of those that others wait for: what has a row finishes first.
        Raises HalkaError for more than the whole budget, PinnedFullError for more than the pinned leave of it.
        """
        kept = {other for other in self.versions if other.pinned and other.name != version.name}
        pinned = sum(other.bytes for other in kept)
        if self.most is not None and len(kept) >= self.most:
            raise PinnedFullError(
                f"adapter {version.name!r} has no room: all {self.most} in memory are pinned: unpin some"
            )
        over = f"adapter {version.name!r} takes {version.bytes:,} bytes, over the engine's budget for adapters of "
        if version.bytes > self.budget:
            raise HalkaError(f"{over}{self.budget:,}")
        if version.bytes + pinned > self.budget:
            raise PinnedFullError(f"{over}{self.budget:,}, of which pinned adapters take {pinned:,}: unpin some")
        version.waited += 1
        urgent = version.waited > WAIT_STEPS
        room, going = self._room_beside(self.versions), list[Version]()
        movable = [other for other in self.versions if other not in kept]
        for other in sorted(movable, key=lambda other: (bool(other.users), bool(other.begun))):
            if room.fits(version):
                break
            room.add(other)
            going.append(other)
        if any(other.begun or (other.users and not urgent) for other in going):
            for other in going:
                other.leaving = urgent
            return False
        for other in going:
            self._evict(other)
            self.evictions += 1
        return True

    def _room_beside(self, versions: Iterable[Version]) -> _Room:
        """What the budget leaves beside these."""
        beside = [*versions]
        count = math.inf if self.most is None else self.most - len(beside)
        return _Room(self.budget - sum(version.bytes for version in beside), count)

    def _evict(self, version: Version) -> None:
        if version.key in self.model.adapters:
            self.model.remove(version.key)
        self.forget(version)


def _reader() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "halka-adapters")


def _read(version: Version, copies: int, most: int) -> None:
    """Read an adapter's files once, so that taking them over is quick, and check them.

    Raises HalkaError for more tensors than `most`, since taking them over would hold the engine.
    """
    assert version.folder is not None
    sizes = version.folder.sizes
    if len(sizes) > most:
        raise HalkaError(
            f"{version.folder} holds {len(sizes):,} tensors, and an adapter of this base has at most {most:,}: it is "
            "for another base, or damaged"
        )
    version.bytes = copies * sum(sizes)
    version.id = version.folder.id


def _gone(path: Path) -> bool:
    """Whether nothing is there; of what cannot be looked at, nobody knows."""
    try:
        return not path.exists()
    except OSError:
        return False


def _free_name(version: Version, model: AdaptedModel) -> str:
    name = f"{version.name} {(version.id or '')[:12]}"
    while name in model.adapters:
        name += "'"
    return name
