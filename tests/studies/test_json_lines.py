"""Records that were cut short take no other with them."""

from pathlib import Path

import pytest

from halka.studies.json_lines import JsonLines


@pytest.mark.parametrize("left", ["", '{"step": 1}\n', '{"step": 1}\n{"ste', '{"step": 1}'])
def test_a_record_behind_one_that_was_cut_short_is_kept(left: str, tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "new" / "notes.jsonl")
    assert lines.all() == []
    lines.path.parent.mkdir()
    lines.path.write_text(left)
    lines.add({"step": 2})
    lines.add({"step": 3})
    assert lines.all() == [*([{"step": 1}] if left else []), {"step": 2}, {"step": 3}]
