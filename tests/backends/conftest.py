"""What the tests of the CuPy backend share."""

import pytest

from xpnn.backend import get_backend, why_not


@pytest.fixture
def gpu():
    """The CuPy backend: on a GPU, or on the emulated one (see tests/emulated_gpu)."""
    reason = why_not("cupy")
    if reason is not None:
        pytest.skip(f"cupy does not run here: {reason}")
    return get_backend("cupy")
