"""New processes: which folders they import from."""

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import subprocess
from halka.util.python import program
subprocess.run(program("json.tool", "--help"), check=True)
"""


@pytest.mark.parametrize("own", [[], ["-P"]], ids=["the folder is on the path", "it is not"])
def test_a_file_in_the_working_folder_is_imported_only_where_the_parent_would(own: list[str], tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit('the own file was run')")
    done = subprocess.run([sys.executable, *own, "-c", CHILD], cwd=tmp_path, capture_output=True, text=True)
    assert ("the own file was run" in done.stderr) == (not own)
    assert (done.returncode == 0) == bool(own)
