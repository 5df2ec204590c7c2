#!/bin/sh
# All that only a machine with an NVIDIA GPU can show, in less than 8 minutes: the matrix's rows on CuPy and as CUDA
# graphs, the kernels against NumPy, and the benchmark beside PyTorch and JAX. Writes a report; see ci/gpu_report.py.
#
#   sh ci/gpu.sh                         makes .venv-gpu with CuPy for the driver's CUDA version
#   sh ci/gpu.sh --peers                 the same, with PyTorch and JAX for the benchmark (large downloads)
#   PYTHON=... sh ci/gpu.sh --as-is      uses that Python as it is, and installs nothing
#
# Further arguments, after these:
#   --quick, --bench                     the tests only; the benchmark only: one after the other, each has all the time
#   --out DIR                            where the report goes; benchmarks/gpu without it
#   --steps graphs,matrix                these steps only
#   -- --only small --rounds 9           what follows goes to benchmarks/gpu.py
#
# XPNN_COMMIT names the commit in the report where git cannot.
#
# Packages needed for --as-is, in that Python or unpacked in a directory of PYTHONPATH:
#   the library    numpy, cupy-cuda12x or cupy-cuda13x 14.2, ml_dtypes, array-api-compat, rich, safetensors, typer
#   its speed      nvmath-python 1.0 (which needs cuda-bindings, cuda-core and cuda-pathfinder >= 1.5.1),
#                  nvidia-cudnn-frontend 1.24 to 1.28 (which needs nothing), nvidia-cublas, nvidia-cudnn-cu13
#   the tests      array-api-strict, hypothesis, jax, pandas, pytest, pytest-xdist, scikit-learn
#   the benchmark  torch and jax with CUDA; a contender that is missing is left out
# Where PyTorch and JAX for CUDA 13 are installed with CuPy and the tests' packages, these four are missing as a rule:
#   array-api-compat, array-api-strict, nvmath-python, nvidia-cudnn-frontend
set -eu
cd "$(dirname "$0")/.."
. ci/environment.sh

as_is=no
peers=no
while [ $# -gt 0 ]; do
    case $1 in
        --as-is) as_is=yes; shift ;;
        --peers) peers=yes; shift ;;
        *) break ;;
    esac
done

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || {
    echo "no NVIDIA driver here (nvidia-smi does not run): this needs a GPU" >&2
    exit 1
}
if [ "$as_is" = yes ]; then
    python=$(python_for_xpnn)
    export PYTHONPATH="$PWD:$PWD/backends${PYTHONPATH:+:$PYTHONPATH}"
else
    cuda=$(nvidia-smi | sed -n 's/.*CUDA [A-Z ]*Version: *\([0-9]*\)\..*/\1/p')
    case $cuda in
        12) extra=cuda12-fast; jax=cuda12 ;;
        1[3-9]) extra=cuda13-fast; jax=cuda13 ;;
        *) echo "the driver supports CUDA ${cuda:-of unknown version}; CuPy 14 needs 12 or later" >&2; exit 1 ;;
    esac
    make_environment .venv-gpu
    install .venv-gpu -e ".[test,$extra]"
    if [ "$peers" = yes ]; then
        install .venv-gpu torch "jax[$jax]"
    fi
    python=$PWD/.venv-gpu/bin/python
fi

# Nothing may be silently rounded to TF32, or kept from it: neither in the cupy rows nor by those that they race with.
unset CUPY_TF32 NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE || true
exec "$python" ci/gpu_report.py "$@"
