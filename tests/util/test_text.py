"""Any value fits on one line, and steers no terminal."""

from __future__ import annotations

import pytest

from halka.util.text import one_line


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("a\n b\t\tc ", "a b c"),
        ("\x1b[31mred\x07", "[31mred"),
        ("left\u202eright\u2028next\u2029last\ud800", "left right next last"),
        ("ক্\u200dষ র\u200c্য", "ক্\u200dষ র\u200c্য"),
        (1.5, "1.5"),
        ("", ""),
    ],
)
def test_one_line(value, line):
    assert one_line(value) == line
