"""OpenMP's threads wait briefly where the user has said nothing else."""

from __future__ import annotations

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
        "import sys, halka.cli; assert 'torch' not in sys.modules;"
        "from halka.cli import app; import os; from halka.util.openmp import wait_briefly; wait_briefly();"
        "assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [SPINS]
