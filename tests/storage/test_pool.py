"""A pool: any adapter of a store by its name, within a budget, and never one away that is in use."""

from __future__ import annotations

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

import halka
import halka.storage.pool
from contract import disturb, ids
from halka import AdapterPool, AdapterStore
from halka.core import AdaptedModel
from halka.storage.adapter_folder import AdapterFolder
from halka.util.errors import HalkaError
from tiny import tiny
from training_for_tests import items

COUNT = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[AdapterStore, dict[str, torch.Tensor], int]:
    """A store, what the base computes with each of its adapters, and the bytes that one takes."""
    store = AdapterStore(tmp_path_factory.mktemp("store") / "adapters")
    model = halka.adapt(tiny())
    expected = {}
    for seed in range(COUNT):
        name = f"a{seed}"
        model.add(name, halka.LoRA(rank=4), seed=seed)
        disturb(model, name, seed=seed)
        store.save(model, name)
        expected[name] = logits(model, name)
    return store, expected, 4 * model.adapter("a0").count()


def logits(model: AdaptedModel, rows) -> torch.Tensor:
    with torch.no_grad(), model.use(rows):
        return model.base(ids()).logits


def test_any_stored_adapter_can_be_used_within_the_budget(made):
    store, expected, size = made
    model = halka.adapt(tiny())
    pool = AdapterPool(model, store, budget=3 * size)
    draw = random.Random(0)
    for _ in range(60):
        name = draw.choice(list(expected))
        assert torch.equal(logits(model, name), expected[name])
        assert pool.bytes <= 3 * size
        assert len(model.adapters) <= 3
    assert pool.loads < 60


def test_the_least_recently_used_goes_first(made):
    store, _, size = made
    model = halka.adapt(tiny())
    pool = AdapterPool(model, store, budget=3 * size)
    for name in ("a0", "a1", "a2", "a0", "a3"):
        with model.use(name):
            pass
    assert list(model.adapters) == ["a0", "a2", "a3"]
    assert pool.loads == 4


def test_pickles_that_are_allowed_are_used(made, tmp_path):
    store, expected, _ = made
    folder = tmp_path / "pickled"
    shutil.copytree(store.get("a0").folder, folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    for name in ("adapter_model.safetensors", "halka.json"):
        (folder / name).unlink()
    pickles = AdapterStore(tmp_path / "store")
    pickles.add(AdapterFolder.open(folder, allow_pickle=True), "a0")
    model = halka.adapt(tiny())
    pool = AdapterPool(model, pickles, allow_pickle=True)
    assert torch.equal(logits(model, "a0"), expected["a0"])
    assert pool.bytes == 4 * model.adapter("a0").count()
    model = halka.adapt(tiny())
    AdapterPool(model, pickles)
    with pytest.raises(HalkaError, match="allow_pickle"), model.use("a0"):
        pass


def test_rows_of_a_batch_are_all_there_at_once(made):
    store, expected, size = made
    model = halka.adapt(tiny())
    AdapterPool(model, store, budget=3 * size)
    for rows in (["a1", None, "a2"], ["a5", "a6", "a7"], ["a1", "a7", "a1"]):
        found = logits(model, rows)
        for row, name in enumerate(rows):
            if name is not None:
                torch.testing.assert_close(found[row], expected[name][row], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"a1, a2, a3, a4 take [\d,]+ bytes together, over the pool's budget"):
        logits(model, ["a1", "a2", "a3", "a4"])
    assert torch.equal(logits(model, "a4"), expected["a4"])


def test_what_is_in_use_merged_or_added_by_hand_stays(made):
    store, expected, size = made
    model = halka.adapt(tiny())
    model.add("mine", halka.LoRA(rank=64))
    pool = AdapterPool(model, store, budget=2 * size)
    with torch.no_grad(), model.use("a0"):
        with model.use("a1"), model.use(None):
            pass
        with model.use("a2"):
            pass
        assert torch.equal(model.base(ids()).logits, expected["a0"])
        with pytest.raises(ValueError, match="is in use"):
            pool.forget("a0")
    assert {"mine", "a0", "a2"} == set(model.adapters)
    model.merge("a0")
    pool.ready(["a3"])
    pool.ready(["a4"])
    assert model.merged == "a0"
    assert {"mine", "a0", "a4"} == set(model.adapters)


def test_an_adapter_that_the_model_removed_is_read_again_or_is_the_models_own(made):
    store, expected, size = made
    model = halka.adapt(tiny())
    pool = AdapterPool(model, store, budget=size)
    model.parameters("a0")
    model.remove("a0")
    assert pool.bytes == 0
    with pytest.raises(ValueError, match="no adapter 'a0' here"):
        model.remove("a0")
    assert torch.equal(logits(model, "a0"), expected["a0"])
    model.remove("a0")
    mine = model.add("a0", halka.LoRA(rank=4))
    assert torch.equal(logits(model, "a1"), expected["a1"])
    assert model.adapter("a0") is mine


def test_a_newer_version_is_read_after_the_old_one_is_forgotten(made, tmp_path):
    _, expected, size = made
    store, source = AdapterStore(tmp_path), halka.adapt(tiny())
    AdapterPool(source, made[0])
    store.save(source, "a0", stored_as="x")
    model = halka.adapt(tiny())
    pool = AdapterPool(model, store)
    assert torch.equal(logits(model, "x"), expected["a0"])
    store.save(source, "a1", stored_as="x")
    assert torch.equal(logits(model, "x"), expected["a0"])
    pool.forget("x")
    assert torch.equal(logits(model, "x"), expected["a1"])
    assert pool.bytes == size


@pytest.mark.parametrize("whole", [False, True])
def test_a_version_that_is_removed_is_used_no_more(made, tmp_path, whole):
    """Unless it is in use; the first version of a name that was removed has the folder of the one before."""
    _, expected, _ = made
    store, source = AdapterStore(tmp_path), halka.adapt(tiny())
    AdapterPool(source, made[0])
    store.save(source, "a0", stored_as="x")
    if not whole:
        store.save(source, "a1", stored_as="x")
    model = halka.adapt(tiny())
    pool = AdapterPool(model, store)
    with model.use("x"):
        store.remove("x", None if whole else 2)
        if whole:
            store.save(source, "a1", stored_as="x")
        with model.use("x"):
            assert pool.loads == 1
    assert torch.equal(logits(model, "x"), expected["a1" if whole else "a0"])
    folder, loads = store.get("x").folder, pool.loads
    store.save(source, "a1", stored_as="x")
    (folder / "README.md").write_text("What it is for.")
    os.utime(folder, (0, 0))
    assert torch.equal(logits(model, "x"), expected["a1" if whole else "a0"])
    assert pool.loads == loads, "the same weights were read again, or a newer version in their place"
    store.remove("x")
    with pytest.raises(halka.UnknownAdapterError, match="no adapter 'x' in the model"):
        logits(model, "x")


def test_a_name_that_nobody_knows_is_said_to_be_in_neither(made):
    store, _, _ = made
    model = halka.adapt(tiny())
    pool = AdapterPool(model, store)
    with pytest.raises(
        halka.UnknownAdapterError, match=r"no adapter 'nobody' in the model \(which has: none\), nor in the store:"
    ):
        logits(model, "nobody")
    with pytest.raises(ValueError, match="cannot be a name in a store"):
        logits(model, "../a0")
    assert (pool.bytes, model.adapters) == (0, {})
    with pytest.raises(ValueError, match="above 0, not 0"):
        AdapterPool(model, store, budget=0)


def test_threads_get_their_own_adapters_from_a_small_pool(made):
    store, expected, size = made
    model = halka.adapt(tiny())
    AdapterPool(model, store, budget=2 * size)

    def ask(seed: int) -> bool:
        name = f"a{seed % COUNT}"
        return torch.equal(logits(model, name), expected[name])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(100)))


def test_the_budget_is_kept_while_adapters_are_read(made, monkeypatch):
    store, _, size = made
    model = halka.adapt(tiny())
    pool = AdapterPool(model, store, budget=3 * size)
    add, held = model.add, []

    def watched(*arguments, **options):
        adapter = add(*arguments, **options)
        held.append(sum(4 * adapter.count() for adapter in model.adapters.values()))
        return adapter

    monkeypatch.setattr(model, "add", watched)
    for rows in (["a0", "a1", "a2"], ["a3", "a4", "a5"], ["a5", "a6", "a0"]):
        with model.use(rows):
            pass
    assert len(held) == 8
    assert max(held) == 3 * size
    with pytest.raises(ValueError, match="over the pool's budget"), model.use([f"a{i}" for i in range(COUNT)]):
        pass
    assert len(held) == 8, "it is known before anything is read"
    over = rf"a1, a2, a3, a9 take {4 * size:,} bytes together, over the pool's budget of {3 * size:,}"
    with model.use("a9"), pytest.raises(ValueError, match=over), model.use(["a1", "a2", "a3"]):
        pass
    assert pool.fits(["a1", "a2", "a3"])
    assert not pool.fits(["a1", "a2", "a3", "a4"])


def test_what_is_stored_anew_may_be_larger(made, tmp_path):
    model, store = halka.adapt(tiny()), AdapterStore(tmp_path)
    made_with = halka.adapt(tiny())
    for rank in (2, 8):
        made_with.add("a", halka.LoRA(rank=rank))
        size = 4 * made_with.adapter("a").count()
        store.save(made_with, "a")
        made_with.remove("a")
        pool = model.pool or AdapterPool(model, store, budget=10**9)
        with model.use("a"):
            assert pool.bytes == size
        pool.forget("a")


def test_a_smaller_version_is_used_where_the_one_before_was_over_the_budget(made, tmp_path):
    model, store, source = halka.adapt(tiny()), AdapterStore(tmp_path), halka.adapt(tiny())
    pool = AdapterPool(model, store, budget=made[2])
    for rank in (64, 2):
        source.add("a", halka.LoRA(rank=rank))
        store.save(source, "a")
        source.remove("a")
        if rank == 64:
            with pytest.raises(HalkaError, match="over the pool's budget"):
                pool.ready(["a"])
    pool.ready(["a"])
    assert model.adapter("a").method.rank == 2


def test_what_is_trained_is_the_models_own(made, tmp_path):
    """The engine answers with it, not with what is in the store, and it is not evicted for others."""
    store, expected, size = made
    model = halka.adapt(tiny())
    AdapterPool(model, store, budget=size)
    halka.fit(model, "a0", items(), {"steps": 3, "lr": 0.1})
    trained = logits(model, "a0")
    assert not torch.allclose(trained, expected["a0"], atol=1e-3)
    for name in ("a1", "a2"):
        assert torch.allclose(logits(model, name), expected[name], atol=1e-5)
    assert torch.equal(logits(model, "a0"), trained)
