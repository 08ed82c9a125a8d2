"""Adapters by their names on the hub: from the client's cache, without a network, and what is fetched at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

import halka
from contract import disturb, ids
from halka.cli.adapter_names import given_adapters
from halka.models.description import describe_base
from halka.models.fetching import pull
from halka.models.fetching.hub import adapter_folder, adapter_parts
from halka.models.loading import base_config, load_base
from halka.storage.adapter_folder import AdapterFolder
from halka.util.errors import HalkaError
from tiny import tiny

V1, V2 = "1" * 40, "2" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache as the client keeps it, with two revisions of one adapter; no network; and an empty folder to work in."""
    for number, commit in enumerate((V1, V2)):
        model = halka.adapt(tiny())
        model.add("a", halka.LoRA(rank=2 + number, targets=("attn.q",)))
        disturb(model, "a", seed=number)
        halka.save(model, "a", tmp_path / "hub" / "models--org--support.v" / "snapshots" / commit)
    refs = tmp_path / "hub" / "models--org--support.v" / "refs"
    refs.mkdir()
    (refs / "main").write_text(V1)
    (refs / "v2").write_text(V2)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "hub"


def test_a_name_is_loaded_out_of_the_cache_and_names_the_adapter(cache):
    model = halka.adapt(tiny())
    first = halka.load(model, "org/support.v")
    second = halka.load(model, "org/support.v@v2", name="second")
    assert [*model.adapters] == ["support.v", "second"]
    assert (first.method.rank, second.method.rank) == (2, 3)
    with torch.no_grad(), model.use(["support.v", None, "second"]):
        assert model.base(ids()).logits.isfinite().all()
    assert halka.load(model, f"org/support.v@{V2}", name="third").method.rank == 3


def test_a_store_and_the_flags_take_names(cache, tmp_path):
    stored = halka.AdapterStore(tmp_path / "store").add("org/support.v@v2", "theirs")
    assert (stored.name, stored.version) == ("theirs", 1)
    found = given_adapters(["org/support.v", "new=org/support.v@v2"], None)
    assert found.named == ["support.v", "new"]
    assert {name: folder.path.name for name, folder in found.folders.items()} == {"support.v": V1, "new": V2}


@pytest.mark.parametrize("name", ["foo--bar", "foo..bar", "models--org--name", f"org/{'a' * 97}"])
def test_a_name_that_the_hub_could_not_have_says_so(name, cache):
    for read in (base_config, describe_base, load_base):
        with pytest.raises(HalkaError, match=r"is no folder, and no name that the hub could have"):
            read(name)


@pytest.mark.parametrize("name", ["smollm2-135m", "minilm-l6"])
def test_the_configuration_of_a_short_name_needs_neither_the_hub_nor_weights(name, cache, tmp_path, monkeypatch):
    there = base_config(pull(name)).to_dict()
    monkeypatch.setenv("HALKA_CACHE", str(tmp_path / "empty"))
    beside = {"_name_or_path", "transformers_version"}
    here = base_config(name).to_dict()
    assert {key: there.get(key) for key in here.keys() - beside} == {key: here[key] for key in here.keys() - beside}


def test_what_is_here_goes_before_the_hub(cache):
    shutil.copytree(cache / "models--org--support.v" / "snapshots" / V2, "org/support.v")
    assert adapter_parts("org/support.v") is None
    here = AdapterFolder.open("org/support.v")
    assert (here.path, here.name) == (Path("org/support.v"), "support.v")
    with pytest.raises(ValueError, match="org/other is not there: name an adapter's folder"):
        halka.load(halka.adapt(tiny()), "org/other")  # `org` is here: a path is meant


@pytest.mark.parametrize("name", ["org/other", "org/support.v@v9", "org/support.v@v9+fix"])
def test_what_is_not_in_the_cache_cannot_be_reached_without_a_network(name, cache):
    model = halka.adapt(tiny())
    with pytest.raises(
        ValueError, match=r"is no folder, is not in the hub client's cache, and the hub cannot be reached"
    ):
        halka.load(model, name)
    with pytest.raises(ValueError, match=r"such as org/adapter or org/adapter@revision"):
        halka.load(model, name)
    assert not model.adapters


@pytest.mark.parametrize("allowed", [False, True])
def test_json_and_safetensors_are_fetched_and_pickles_if_they_are_asked_for(allowed, cache, tmp_path, monkeypatch):
    asked = []

    def download(name, *, revision, allow_patterns, ignore_patterns, local_files_only):
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not here")
        asked.append((name, revision, allow_patterns, ignore_patterns))
        folder = tmp_path / "fetched"
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        if allowed:
            (folder / "adapter_model.bin").write_bytes(b"")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    if allowed:
        assert adapter_folder(adapter_parts("org/pickled@v1"), allow_pickle=True) == tmp_path / "fetched"
    else:
        with pytest.raises(ValueError, match=r"org/pickled@v1 has no safetensors on the hub.*allow_pickle"):
            adapter_folder(adapter_parts("org/pickled@v1"))
    patterns = ["*.json", "*.safetensors", "README.md", *(["*.bin"] if allowed else [])]
    assert asked == [("org/pickled", "v1", patterns, ["*/*"])]


def test_what_is_no_adapter_is_named(cache):
    (cache / "models--org--support.v" / "snapshots" / V1 / "adapter_config.json").unlink()
    with pytest.raises(
        ValueError, match=r"org/support\.v holds no adapter_config\.json on the hub: it is not an adapter"
    ):
        halka.load(halka.adapt(tiny()), "org/support.v")
