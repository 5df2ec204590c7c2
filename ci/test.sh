#!/bin/sh
# Sets up .venv-test and runs every check that needs no GPU. Needs Python 3.11 or later, nothing else.
#
#   sh ci/test.sh                      rows numpy, strict and jax
#   sh ci/test.sh torch                PyTorch's row and the comparisons with PyTorch too (a large download)
#   sh ci/test.sh torch emulated-gpu   CuPy too, on an emulated GPU, and all CUDA sources compiled (needs g++ 12)
set -eu
cd "$(dirname "$0")/.."
. ci/environment.sh

extras="test,lint"
emulated=no
required="numpy,numpy-readonly,numpy-compiled,numpy-fast,strict,strict-no64,jax"
for argument in "$@"; do
    case $argument in
        torch) extras="$extras,torch"; required="$required,torch" ;;
        emulated-gpu) extras="$extras,emulated-gpu"; emulated=yes; need_compiler ;;
        *) echo "usage: sh ci/test.sh [torch] [emulated-gpu]" >&2; exit 2 ;;
    esac
done

make_environment .venv-test
echo "installing xpnn[$extras]"
install .venv-test -e ".[$extras]"
bin=$PWD/.venv-test/bin

# Several thread pools in one process fight for the cores: the tests' workers take one thread each.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
export XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export XPNN_REQUIRE_BACKENDS="${XPNN_REQUIRE_BACKENDS-$required}"

step "style" "$bin/ruff" check .
step "format" "$bin/ruff" format --check .
step "types" "$bin/mypy"
step "documentation" "$bin/pdoc" --docformat google --output-directory build/docs xpnn xpnn_backends.numpy_backend
if [ $emulated = yes ]; then
    # Without these, the tests that compile all CUDA sources and build cuDNN's plans would be skipped.
    step "CuPy, nvmath, cuDNN and NVRTC" "$bin/python" -c "import cupy, nvmath, cudnn, cupy_backends.cuda.libs.nvrtc"
    export XPNN_REQUIRE_CUDNN=1
fi
# The table of rows at the end says which did not run and why: no list of each skipped test as well.
step "tests and the backend matrix" "$bin/python" -m pytest -n "${XPNN_TEST_WORKERS:-2}" -q -r fE
if [ $emulated = yes ]; then
    step "CuPy on an emulated GPU" env PYTHONPATH="$PWD/tests" XPNN_TEST_BACKENDS=cupy,cupy-graph \
        XPNN_REQUIRE_BACKENDS=cupy,cupy-graph "$bin/python" -m pytest -q -r fE -n "${XPNN_TEST_WORKERS:-2}" \
        -p emulated_gpu.plugin tests/emulated_gpu tests/matrix tests/layers tests/losses tests/ops tests/optimizers \
        tests/training tests/examples tests/backends/test_cupy_*.py tests/backends/test_backend_contract.py \
        tests/test_*.py
    required="$required; CuPy on an emulated GPU"
fi
unset XPNN_REQUIRE_BACKENDS
step "wheel and sdist" sh ci/package.sh "$bin/python"
echo
echo "all checks passed; required rows: $required"
