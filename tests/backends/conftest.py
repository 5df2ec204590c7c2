"""What the tests of the backends share."""

import sys

import pytest

from xpnn.backend import get_backend, why_not
from xpnn_backends import fast


@pytest.fixture(scope="module", autouse=True)
def _blas_has_as_many_threads_afterwards():
    """More threads than cores, left behind by one test, would make all that come after it slow."""
    if fast.why_not() is not None:
        yield
        return
    from xpnn_backends.native.machine import Blas

    blas = Blas()
    before = blas.threads()
    yield
    assert blas.threads() == before


@pytest.fixture
def use_threads(monkeypatch):
    """use_threads(n): native programs run on n threads from then on, of a pool of their own."""
    if fast.why_not() is not None:
        pytest.skip(fast.why_not())
    from xpnn_backends.native import machine, threads

    def choose(parts):
        pool = machine._Pool()
        pool.blas = machine.Blas()
        pool.blas.set_threads = 0  # OpenBLAS keeps its own number
        monkeypatch.setattr(machine, "_POOL", pool)
        monkeypatch.setattr(threads, "core_count", lambda: parts)

    return choose


@pytest.fixture
def gpu():
    """The CuPy backend: on a GPU, or on the emulated one (see tests/emulated_gpu)."""
    reason = why_not("cupy")
    if reason is not None:
        pytest.skip(f"cupy does not run here: {reason}")
    return get_backend("cupy")


@pytest.fixture
def cupy(gpu):
    """The library, with the backend's GPU current."""
    cupy = pytest.importorskip("cupy")
    with gpu.context():
        yield cupy


@pytest.fixture
def products(gpu):
    from xpnn_backends.cupy import products

    return products


@pytest.fixture
def lt(products):
    """Products through cublasLt, or a skip that says why not."""
    reason = products.why_not()
    if reason is not None:
        pytest.skip(f"no cublasLt here: {reason}")
    return products


@pytest.fixture
def emulated(lt):
    """The switches of the emulated cublasLt."""
    module = sys.modules.get("emulated_gpu.cublaslt")
    if module is None:
        pytest.skip("a GPU's cublasLt cannot be told to refuse; the emulated one can (tests/emulated_gpu)")
    return module
