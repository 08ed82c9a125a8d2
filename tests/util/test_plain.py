"""Values as plain data."""

from __future__ import annotations

from halka.util.plain import plain


def test_json_has_no_word_for_what_is_not_finite():
    assert plain({"a": [1.0, float("nan")], "b": float("inf")}) == {"a": [1.0, None], "b": None}
