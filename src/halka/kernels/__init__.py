"""Kernels for CPUs, compiled by numba: what kernels are made of, and those of a decoder's layers with their gradients.

`compiled.py`: a function becomes a kernel; `threads.py`: on torch's threads; `numbers.py`: bf16 and fp32; `arrays.py`:
a kernel's own memory; `layers.py`: norms and gates. Those of the engine are in `engine/llama/kernels/`. numba may be
missing (`halka[engine]` brings it), so nothing is imported here.
"""
