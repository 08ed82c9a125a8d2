"""JSON that every client reads."""

from __future__ import annotations

import json

import pytest

from halka.server.wire import dumps, event


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_has_no_number_for_is_null(number):
    value = {"loss": number, "of": [1.5, (number, {"a": number})], "name": "NaN"}
    assert json.loads(dumps(value), parse_constant=pytest.fail) == {
        "loss": None,
        "of": [1.5, [None, {"a": None}]],
        "name": "NaN",
    }
    assert event(value).startswith(b'data: {"loss":null')
