"""Numba kernels: what the calls of a recorded step run, where the `fast` extra is installed.

A kernel is a plain function over its operands, written here in loops that a compiler turns into vector code. It is
compiled for float32 and for float64 when a program first needs it, and kept on disk. `intrinsics` has what Numba lacks,
`registry` how a kernel is declared.
"""
