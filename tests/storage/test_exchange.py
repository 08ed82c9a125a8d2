"""Every row of the tables in docs/formats.md names a test that is there, and every case of those tests has its row."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from exchange import ROWS, Row

HERE = Path(__file__).parent


def cases(file: str, function: str) -> set[str]:
    """The ids of a parametrised test; none for one that is not."""
    test = getattr(import_module(file.removesuffix(".py")), function)
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    return {each for mark in marks for each in mark.args[1] if isinstance(each, str)}


@pytest.mark.parametrize("file", sorted({row.test.partition("::")[0] for row in ROWS}))
def test_every_row_names_a_test_that_is_there(file):
    assert (HERE / file).is_file()
    for row in (each for each in ROWS if each.test.startswith(f"{file}::")):
        function, _, case = row.test.partition("::")[2].partition("[")
        there = cases(file, function)
        assert case.removesuffix("]") in there if case else not there, row


def test_every_case_of_a_parametrised_test_has_its_row():
    named: dict[tuple[str, str], set[str]] = {}
    for row in ROWS:
        file, _, name = row.test.partition("::")
        function, _, case = name.partition("[")
        if case:
            named.setdefault((file, function), set()).add(case.removesuffix("]"))
    for (file, function), known in named.items():
        assert known == cases(file, function)


def test_rows_are_distinct_and_of_the_two_directions():
    assert len(set(ROWS)) == len(ROWS)
    assert {row.direction for row in ROWS} == {"read", "written"}
    assert all(isinstance(row, Row) for row in ROWS)
