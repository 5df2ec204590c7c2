"""Sizes that native kernels and the NumPy functions beside them share; this file needs no Numba."""

BLOCK_LINES = 64
"""Lines of a batch norm's input whose sums are made together."""
BLOCK_ROWS = 32
"""Rows of a layer norm's input whose shares in the weight's gradient are added up together."""
