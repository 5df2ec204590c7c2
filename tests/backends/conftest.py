"""What the tests of the CuPy backend share."""

import sys

import pytest

from xpnn.backend import get_backend, why_not


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
