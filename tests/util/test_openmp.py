"""OpenMP's threads wait briefly where the user has said nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from halka.util.openmp import BRIEFLY, SHARED, share_cores, wait_briefly


@pytest.mark.parametrize("name", BRIEFLY)
def test_what_the_user_has_set_stays(name):
    environment = {name: "7"}
    wait_briefly(environment)
    assert environment == {name: "7"}
    environment = {}
    wait_briefly(environment)
    assert environment == BRIEFLY


@pytest.mark.parametrize("variables", [{}, {SHARED: "0"}, {"GOMP_SPINCOUNT": "7"}])
def test_processes_share_the_cores_whatever_is_set_of_their_waiting(variables):
    environment = dict(variables)
    share_cores(environment)
    spins = {} if "GOMP_SPINCOUNT" in variables else BRIEFLY
    assert environment == {SHARED: "1", **spins, **variables}


def test_the_command_line_says_it_before_torch_is_loaded():
    program = (
        "import atexit, os, sys; from halka.cli import main; sys.argv = ['halka', '--version'];"
        "atexit.register(lambda: print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))); main()"
    )
    own = {name: value for name, value in os.environ.items() if name not in BRIEFLY}
    done = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"False {BRIEFLY['GOMP_SPINCOUNT']}"
