"""Where bases are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from halka.util.base_folders import BLOCK, BLOCKS, cache_dir, folder_digest, is_base_folder


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALKA_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("HALKA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_dir() == Path("/var/cache/halka")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "halka"


def test_a_base_has_a_configuration(tmp_path: Path) -> None:
    assert not is_base_folder(tmp_path)
    (tmp_path / "config.json").touch()
    assert is_base_folder(tmp_path)
    assert not is_base_folder(tmp_path / "config.json")


def test_a_folders_digest_changes_with_its_files_and_no_other_way(tmp_path: Path) -> None:
    assert folder_digest(tmp_path) is None
    assert folder_digest("smollm2-135m") is None
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    size = 2 * BLOCKS * BLOCK
    weights.write_bytes(bytes(size))
    first = folder_digest(tmp_path)
    os.utime(weights, ns=(1, 1))
    assert folder_digest(tmp_path) == first
    with weights.open("r+b") as file:  # a hundredth of it, as one layer of many
        file.seek(size // 2)
        file.write(bytes([1]) * (size // 100))
    assert folder_digest(tmp_path) != first
    weights.write_bytes(bytes(size))
    assert folder_digest(tmp_path) == first
    weights.rename(tmp_path / "other.safetensors")
    assert folder_digest(tmp_path) != first
