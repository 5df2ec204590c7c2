"""A CUDA GPU that is none: CuPy runs on the CPU, with real values. See README.md in this folder."""
