"""A process that may take all memory is limited, where the system can."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from halka.server.apart import end_first, limit_memory


@pytest.fixture(autouse=True)
def written(monkeypatch) -> dict[str, str]:
    """What is written to files, in the place of that."""
    texts = {}
    monkeypatch.setattr(Path, "write_text", lambda path, text: texts.update({str(path): text}))
    return texts


def test_a_process_with_a_limit_ends_before_the_server(monkeypatch, written):
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    limit_memory(5)
    assert written == {"/proc/self/oom_score_adj": "1000"}


def test_a_system_without_such_scores_goes_on(monkeypatch):
    def missing(path, text):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "write_text", missing)
    end_first()


@pytest.mark.parametrize("kind", [resource.RLIMIT_DATA, resource.RLIMIT_AS])
def test_a_mac_that_refuses_a_limit_goes_on_without(monkeypatch, kind):
    def refused(kind, limits):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refused)
    monkeypatch.setattr(sys, "platform", "darwin")
    limit_memory(4 * 10**9, kind)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ValueError, match="exceeds maximum limit"):
        limit_memory(4 * 10**9, kind)


def test_a_limit_is_the_processs(monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: limits.append(limit))
    limit_memory(5)
    limit_memory(6, resource.RLIMIT_AS)
    assert limits == [(resource.RLIMIT_DATA, (5, 5)), (resource.RLIMIT_AS, (6, 6))]
