"""Kernels for CPUs, compiled by numba: what kernels are made of, and those of a decoder's layers with their gradients.

`compiled.py`: a function becomes a kernel; `threads.py`: on torch's threads; `numbers.py`: bf16 and fp32; `arrays.py`:
a kernel's own memory; `shared.py`: a tensor's; `layers.py`: norms and gates. Those of the engine are in
`engine/llama/kernels/`. numba may be missing, so none of these is imported here.
"""

import os
from importlib.util import find_spec


def unusable() -> str | None:
    """Why there can be no kernels here, in words; None if there can."""
    if find_spec("numba") is None:
        return "numba is not installed: pip install 'halka[engine]'"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set, so numba compiles nothing"
    return None
