"""Where bases are."""

from __future__ import annotations

from pathlib import Path

import pytest

from halka.util.places import cache_dir, is_base_folder


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
