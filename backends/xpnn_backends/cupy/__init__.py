"""What makes CuPy fast on NVIDIA GPUs: kernels of our own, cublasLt, cuDNN, and steps that are replayed as graphs."""
