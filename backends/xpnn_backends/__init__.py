"""The array libraries behind xpnn: the only code that knows NumPy, CuPy, PyTorch, JAX or array-api-strict."""
