#!/bin/sh
# Runs the tests that have rows, on numpy and cupy, both required, on a machine with an NVIDIA GPU.
#
#   sh ci/gpu.sh                      makes .venv-gpu with CuPy for the driver's CUDA version
#   PYTHON=... sh ci/gpu.sh --as-is   uses that Python as it is, and installs nothing
#
# Packages needed for --as-is, in that Python or unpacked in a directory of PYTHONPATH:
#   the library    numpy, cupy-cuda12x or cupy-cuda13x 14.2, array-api-compat, rich, safetensors, typer
#   the tests      array-api-strict, hypothesis, jax, pandas, pytest, scikit-learn
#   what these need (where installed without dependencies)
#     rich           markdown-it-py, mdurl, pygments
#     typer          annotated-doc, shellingham, pydantic, pydantic-core, annotated-types, typing-extensions,
#                    typing-inspection
#     pandas         python-dateutil
#     scikit-learn   cloudpickle, joblib, narwhals, scipy, threadpoolctl
set -eu
cd "$(dirname "$0")/.."
. ci/environment.sh

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || {
    echo "no NVIDIA driver here (nvidia-smi does not run): the cupy rows need a GPU" >&2
    exit 1
}
if [ "${1:-}" = "--as-is" ]; then
    python=$(python_for_xpnn)
    export PYTHONPATH="$PWD:$PWD/backends${PYTHONPATH:+:$PYTHONPATH}"
else
    cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: *\([0-9]*\)\..*/\1/p')
    case $cuda in
        12) extra=cuda12 ;;
        1[3-9]) extra=cuda13 ;;
        *) echo "the driver supports CUDA ${cuda:-of unknown version}; CuPy 14 needs 12 or later" >&2; exit 1 ;;
    esac
    make_environment .venv-gpu
    install .venv-gpu -e ".[test,$extra]"
    python=$PWD/.venv-gpu/bin/python
fi

export XPNN_TEST_BACKENDS=numpy,cupy
export XPNN_REQUIRE_BACKENDS=numpy,cupy
# In the cupy rows nothing may be silently rounded to TF32.
unset CUPY_TF32 || true
# JAX has no row here; on a GPU it would take most of the memory as soon as a test imports it.
export JAX_PLATFORMS=cpu
step "backends" "$python" -m xpnn backends
step "the matrix and all other tests with rows" "$python" -m pytest -q tests/matrix tests/backends tests/training \
    tests/layers tests/losses tests/ops tests/optimizers tests/test_*.py
step "gradient check, with the errors" "$python" -m xpnn check --backends numpy,cupy --require numpy,cupy
step "one network on both" "$python" examples/same_on_every_backend.py --backend cupy
