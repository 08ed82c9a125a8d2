"""Other libraries stay off stderr."""

from __future__ import annotations

import os
import subprocess
import sys

from transformers.utils import logging

from halka.util.quiet import VARIABLES, quiet_libraries, quiet_process


def test_bars_and_advice_are_off_within_the_block_alone(capfd):
    log, before = logging.get_logger("transformers.models"), logging.get_verbosity()
    with quiet_libraries():
        log.warning("advice")
        assert [*logging.tqdm(range(3), desc="Loading")] == [0, 1, 2]
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == before
    [*logging.tqdm(range(3), desc="Loading")]
    assert "Loading" in capfd.readouterr().err


def test_blocks_that_overlap_restore_what_was_before_the_first():
    """As those of two threads do."""
    before = logging.get_verbosity()
    logging.set_verbosity_info()
    first, second = quiet_libraries(), quiet_libraries()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.get_verbosity() == logging.ERROR
    second.__exit__(None, None, None)
    assert logging.get_verbosity() == logging.INFO
    logging.set_verbosity(before)


def test_a_quiet_process_keeps_what_the_user_chose(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    quiet_process()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that they are restored after the test


def test_a_quiet_process_shows_halkas_warnings_alone():
    code = (
        "import warnings; from halka.util.quiet import quiet_process; quiet_process(); "
        "warnings.warn_explicit('ours', UserWarning, 'x', 1, 'halka.core'); "
        "warnings.warn_explicit('theirs', UserWarning, 'x', 1, 'halkalike')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ours" in done.stderr
    assert "theirs" not in done.stderr
