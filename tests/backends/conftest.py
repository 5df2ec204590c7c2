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
def fresh_pool(cupy, monkeypatch):
    """CuPy's default memory pool: an empty one for this test, without what others have left in theirs."""
    from xpnn_backends.cupy import memory

    memory.free_caches()
    pool, allocator = cupy.cuda.MemoryPool(), cupy.cuda.get_allocator()
    monkeypatch.setattr(cupy, "_default_memory_pool", pool)
    if "emulated_gpu.plugin" in sys.modules:  # whose allocator asks for the default pool each time
        yield pool
        return
    cupy.cuda.set_allocator(pool.malloc)
    yield pool
    cupy.cuda.set_allocator(allocator)


@pytest.fixture
def room_for(cupy, fresh_pool):
    """room_for(n): a block in which the GPU has n bytes beside those that are taken now."""
    device = sys.modules.get("emulated_gpu.device")
    if device is None:
        pytest.skip("a GPU's memory cannot be taken away; the emulated one's can (tests/emulated_gpu)")

    def limit(count):
        fresh_pool.free_all_blocks()
        free, total = cupy.cuda.runtime.memGetInfo()
        return device.memory_limit(total - free + count)

    return limit


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


@pytest.fixture
def plans(gpu):
    from xpnn_backends.cupy import product_plans

    return product_plans


@pytest.fixture
def fresh(lt, plans, cupy, monkeypatch):
    """cublasLt with no plans and no experience."""
    monkeypatch.setattr(plans, "_devices", {})
    return lt
