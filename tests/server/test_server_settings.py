"""What a server cannot be started with is named before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from halka.server.settings import LEAST, ServerSettings
from halka.util.errors import HalkaError
from halka.util.settings import build, from_file, settings_of


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_a_number_that_is_too_small_is_named(name, least):
    assert getattr(ServerSettings("tiny", **{name: least}), name) == least
    with pytest.raises(HalkaError, match=f"{name} is {least - 1}: it is {least} or more"):
        ServerSettings("tiny", **{name: least - 1})


@pytest.mark.parametrize("name", ["body_size", "upload_size", "timeout"])
def test_what_bounds_nothing_is_no_bound(name):
    with pytest.raises(HalkaError, match=f"{name} is 0: it is more than 0"):
        ServerSettings("tiny", **{name: 0})


def test_a_share_is_one():
    with pytest.raises(HalkaError, match=r"pinned is 1.5: it is a share, from 0 to 1"):
        ServerSettings("tiny", pinned=1.5)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_is_one(port):
    with pytest.raises(HalkaError, match=f"port is {port}: it is a number from 0 to 65535"):
        ServerSettings("tiny", port=port)


@pytest.mark.parametrize("origin", ["https://example.org/", "https://example.org/page", "example.org", ""])
def test_what_no_browser_sends_is_no_origin(origin):
    with pytest.raises(HalkaError, match="is no origin: scheme and host alone"):
        ServerSettings(base="base", cors=(origin,))
    for right in ("https://example.org", "http://localhost:5173", "*", "null", "chrome-extension://abc"):
        assert ServerSettings(base="base", cors=(right,)).cors == (right,)


def test_a_base_in_the_home_folder_is_a_whole_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    assert ServerSettings("~/base").absolute().base == str(tmp_path / "base")


def test_folders_are_whole_paths_wherever_the_server_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roots = (Path("b"), Path("acme=c/d"))
    settings = ServerSettings("tiny", store=Path("a"), adapter_roots=roots, comparisons=roots).absolute()
    assert (settings.data, settings.store) == (tmp_path / "halka-server", tmp_path / "a")
    assert (settings.base, settings.collections, settings.roots_of("main")) == ("tiny", None, (tmp_path / "b",))
    assert (settings.roots_of("acme"), settings.roots_of("other")) == ((tmp_path / "c" / "d",), ())
    assert (settings.comparisons_of("main"), settings.comparisons_of("other")) == ((tmp_path / "b",), ())


def test_a_file_names_roots_of_tenants_beside_it(tmp_path):
    """Also whole paths, and several."""
    (tmp_path / "serve.yaml").write_text("base: tiny\nadapter_roots: [own, acme=theirs, ./a=b, 'acme=/srv/x y']\n")
    settings = settings_of(ServerSettings, command="serve")
    built = build(ServerSettings, settings, from_file(tmp_path / "serve.yaml", settings))
    assert built.roots_of("main") == (tmp_path / "own", tmp_path / "a=b")
    assert built.roots_of("acme") == (tmp_path / "theirs", Path("/srv/x y"))
