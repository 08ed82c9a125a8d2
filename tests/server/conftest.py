"""A server to test: a tiny base and adapters of three families, behind its app or a real uvicorn."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from serving_for_tests import InProcess, Running, make_base, make_store


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A tiny base, which no test changes."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def stored(base, tmp_path_factory) -> Path:
    """A store with adapters `lora`, `prefix` and `bottleneck` of it, which no test changes."""
    return make_store(tmp_path_factory.mktemp("stored"), base)


@pytest.fixture
def store(stored, tmp_path) -> Path:
    """The same store for a test of its own."""
    return Path(shutil.copytree(stored, tmp_path / "adapters"))


@pytest.fixture
def server(base, store, tmp_path):
    """A server in this process: `server.client` is an httpx.Client, `server.service` what it holds."""
    with InProcess.open(base, store, tmp_path / "data") as server:
        yield server


@pytest.fixture
def client(server) -> httpx.Client:
    return server.client


@pytest.fixture(scope="module")
def shared(base, stored, tmp_path_factory):
    """The same for all tests of a module that leave it as it is."""
    folder = tmp_path_factory.mktemp("shared")
    with InProcess.open(base, Path(shutil.copytree(stored, folder / "adapters")), folder / "data") as server:
        yield server


@pytest.fixture
def visitor(shared) -> httpx.Client:
    """Who leaves the server as it is."""
    return shared.client


@pytest.fixture(scope="session")
def running(base, stored, tmp_path_factory):
    """A uvicorn at a free port, for all tests of a session: `running.url`."""
    with Running(base, stored, tmp_path_factory.mktemp("data")) as running:
        yield running
