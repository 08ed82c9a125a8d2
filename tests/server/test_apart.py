"""A process that may take all memory is limited, where the system can."""

from __future__ import annotations

import resource
import sys

import pytest

from halka.server.apart import limit_memory


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
