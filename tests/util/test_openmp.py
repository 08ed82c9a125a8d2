"""OpenMP's threads wait briefly where the user has said nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

from halka.util.openmp import SPINS, wait_briefly


def test_what_the_user_has_set_stays():
    for own in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}):
        environment = dict(own)
        wait_briefly(environment)
        assert environment == own
    environment: dict[str, str] = {}
    wait_briefly(environment)
    assert environment == {"GOMP_SPINCOUNT": SPINS}


def test_the_command_line_says_it_before_torch_is_loaded():
    program = (
        "import atexit, os, sys; from halka.cli import main; sys.argv = ['halka', '--version'];"
        "atexit.register(lambda: print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))); main()"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"False {SPINS}"
