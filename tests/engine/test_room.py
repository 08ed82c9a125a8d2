"""Room for adapters in memory: who waits for it lets smaller ones pass, but gets it; to look for it is one pass."""

from __future__ import annotations

from concurrent.futures import wait

import pytest

import halka
from engine_for_tests import filled, model_of
from halka.engine.adapters import Adapters
from halka.engine.residents import WAIT_STEPS, Residents
from halka.engine.version import Version
from halka.storage.adapter_store import AdapterStore

LARGE, SMALL = halka.LoRA(rank=8), halka.LoRA(rank=4)


@pytest.fixture
def store(tmp_path):
    model, store = model_of(families={}), AdapterStore(tmp_path)
    for seed, name in enumerate(("large-0", "large-1", "small-0", "small-1", "small-2")):
        filled(model, "new", LARGE if name.startswith("large") else SMALL, seed)
        store.save(model, "new", stored_as=name)
        model.remove("new")
    return store


class Room:
    """An engine's adapters, with room for so many small ones; requests are numbers here."""

    def __init__(self, store: AdapterStore, small: int, most: int | None = None):
        size = store.get("small-0").open().memory
        assert store.get("large-0").open().memory == 2 * size
        self.adapters = Adapters(model_of(families={}), store, small * size, most=most)
        self.versions = dict[str, Version]()

    def step(self, *wanted: str) -> str | None:
        """The name that was loaded, of these, whose files are read before."""
        for name in wanted:
            version = self.versions.setdefault(name, self.adapters.version(name))
            if not version.here and version.reading is None:
                self.adapters.prepare([version])
                assert version.reading is not None
                wait([version.reading])
        loaded, _ = self.adapters.prepare([self.versions[name] for name in wanted])
        return None if loaded is None else loaded.name

    def use(self, *names: str, users: int = 1) -> None:
        """Load these; answers are under way with them, or no more."""
        for name in names:
            while users and not self.versions.get(name, Version(name)).here:
                self.step(name)
            self.versions[name].users = self.versions[name].begun = users

    @property
    def here(self) -> set[str]:
        return {name for name, version in self.versions.items() if version.here}


def test_one_that_waits_for_room_lets_one_pass_that_fits(store):
    room = Room(store, 3)
    room.use("large-0")
    assert room.step("large-1", "small-0") == "small-0"
    assert room.here == {"large-0", "small-0"}


def test_what_does_not_help_is_not_evicted(store):
    room = Room(store, 3)
    room.use("large-0", "small-0")
    room.use("small-0", users=0)
    assert room.step("large-1") is None
    assert room.here == {"large-0", "small-0"}
    assert room.adapters.residents.evictions == 0
    assert room.step("large-1", "small-1") == "small-1"
    assert room.here == {"large-0", "small-1"}


@pytest.mark.parametrize("most", [None, 2])
def test_small_ones_do_not_starve_one_that_waits_for_long(store, most):
    room = Room(store, 2, most)
    room.use("small-0", "small-1")
    for _ in range(WAIT_STEPS + 1):
        assert room.step("large-0", "small-2") is None
    room.use("small-0", users=0)
    assert room.step("large-0", "small-2") is None
    room.use("small-1", users=0)
    assert room.step("large-0", "small-2") == "large-0"
    assert room.here == {"large-0"}


def test_beside_one_that_waits_for_long_others_go_on_to_come(store):
    room = Room(store, 4)
    room.use("large-0", "small-0")
    for _ in range(WAIT_STEPS + 1):
        assert room.step("large-1") is None
    assert [room.versions[name].leaving for name in ("large-0", "small-0")] == [True, False]
    assert room.step("large-1", "small-1") == "small-1"
    room.use("large-0", users=0)
    assert room.step("large-1") == "large-1"
    assert room.here == {"large-1", "small-0", "small-1"}


class Counted(Version):
    """Counts how often anybody asks what a version takes."""

    asked = 0

    def __getattribute__(self, name: str):
        if name == "bytes":
            Counted.asked += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize("budget", [1000, 500])
def test_to_look_for_room_is_one_pass_over_what_is_in_memory(budget):
    residents = Residents(model_of(families={}), budget, {})
    for _ in range(499):
        residents.versions.append(Counted("small", here=True, bytes=1))
    Counted.asked = 0
    assert residents._make_room(Version("large", bytes=250))
    assert len(residents.versions) == min(499, budget - 250)
    assert Counted.asked < 4 * 500
