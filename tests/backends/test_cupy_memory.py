"""The memory of a GPU: its numbers, and what happens where it runs out."""

import gc
import sys

import numpy as np
import pytest

import xpnn
from xpnn.errors import OutOfMemoryError

MIB = 1 << 20


@pytest.fixture
def cupy(gpu):
    import cupy

    return cupy


@pytest.fixture
def memory(gpu):
    from xpnn_backends.cupy import memory

    return memory


@pytest.fixture
def limited(fresh_pool):
    """A function that leaves so many bytes to arrays."""

    def leave(count):
        gc.collect()
        fresh_pool.free_all_blocks()
        fresh_pool.set_limit(size=fresh_pool.used_bytes() + count)

    return leave


def test_the_numbers_of_the_memory(gpu, cupy, fresh_pool):
    before = gpu.memory()
    assert 0 < before.free <= before.total
    with gpu.context():
        x = cupy.empty((64 * MIB,), "uint8")
        held = gpu.memory()
        assert held.live - before.live == held.pool - before.pool == 64 * MIB
        if "emulated_gpu.device" in sys.modules:  # a GPU's memory is taken and given back by other processes too
            assert before.free - held.free >= 64 * MIB
        del x
    freed = gpu.memory()
    assert freed.live == before.live
    assert freed.pool == held.pool
    assert xpnn.get_backend("cupy:0").memory().total == before.total
    assert type(gpu).device_memory("0").total == before.total
    assert type(gpu).device_memory("").total == before.total


def test_pools_beside_the_default_one_are_counted_while_their_owner_lives(gpu, cupy, memory):
    class Owner:
        def __init__(self):
            self.pool = cupy.cuda.MemoryPool()

        def pools(self):
            return [self.pool]

    owner = Owner()
    memory.report_pools(owner.pools)
    before = gpu.memory()
    block = owner.pool.malloc(MIB)
    assert gpu.memory().live - before.live == MIB
    assert gpu.memory().pool - before.pool == MIB
    del block, owner
    gc.collect()
    assert gpu.memory().pool <= before.pool


def test_what_fits_after_caches_were_freed_is_done(cupy, memory, limited):
    limited(4 * MIB)
    hoard = [cupy.empty((3 * MIB,), "uint8")]
    calls = []

    def call():
        calls.append(len(hoard))
        return cupy.zeros((2 * MIB,), "uint8")

    class Cache:
        def drop(self):
            hoard.clear()

    cache = Cache()
    memory.on_pressure(cache.drop)
    assert memory.guarded(call).nbytes == 2 * MIB
    assert calls == [1, 0]
    # A cache that is gone is not asked any more.
    del cache
    gc.collect()
    hoard.append(cupy.empty((3 * MIB,), "uint8"))
    with pytest.raises(OutOfMemoryError):
        memory.guarded(call)
    assert len(hoard) == 1


def test_a_function_is_asked_as_long_as_the_process_lives(cupy, memory, limited, monkeypatch):
    limited(MIB)
    monkeypatch.setattr(memory, "_callbacks", [])
    asked = []
    memory.on_pressure(lambda: asked.append(1))
    gc.collect()
    with pytest.raises(OutOfMemoryError):
        memory.guarded(lambda: cupy.empty((2 * MIB,), "uint8"))
    assert asked == [1, 1]  # before the second call, and before it is said what would fit


@pytest.mark.parametrize("may_retry", [True, False, lambda: True, lambda: False])
def test_what_must_not_be_done_twice_is_done_once(cupy, memory, limited, may_retry):
    limited(MIB)
    calls = []

    def call():
        calls.append(1)
        return cupy.empty((2 * MIB,), "uint8")

    with pytest.raises(OutOfMemoryError) as caught:
        memory.guarded(call, may_retry=may_retry)
    twice = may_retry() if callable(may_retry) else may_retry
    assert len(calls) == (2 if twice else 1)
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, xpnn.errors.XpnnError)
    assert isinstance(caught.value.__cause__, cupy.cuda.memory.OutOfMemoryError)


def test_the_error_says_what_was_asked_for_what_there_is_and_what_would_fit(cupy, memory, limited):
    limited(10 * MIB)

    def call(samples):
        layers = [cupy.zeros((samples, MIB // 4), "uint8") for _ in range(4)]
        return len(layers)

    with pytest.raises(OutOfMemoryError) as caught:
        memory.guarded(lambda: call(16), samples=16)
    message = str(caught.value)
    # Of four arrays of 4 MiB each, the third one did not fit.
    assert "the memory of cupy:0 does not suffice: 4.00 MiB were asked for on top of 8.00 MiB" in message
    assert " are free (CuPy's pool is limited to " in message
    assert "arrays of this process hold " in message
    # What a sample needs is known from below only: 12 MiB of 16, for 16 samples.
    assert "At 768.00 KiB or more for each of 16 samples, a batch_size of at most about 13 would fit" in message
    assert memory.guarded(lambda: call(10), samples=10) == 4


def test_not_even_one_sample(cupy, memory, limited):
    limited(MIB)
    with pytest.raises(OutOfMemoryError, match="Not even one sample would fit"):
        memory.guarded(lambda: cupy.empty((2, 2 * MIB), "uint8"), samples=2)
    with pytest.raises(OutOfMemoryError, match="Take a smaller batch_size"):
        memory.guarded(lambda: cupy.empty((2 * MIB,), "uint8"))


def test_the_memory_of_the_failed_call_is_free_afterwards(cupy, memory, limited):
    limited(10 * MIB)
    before = cupy.get_default_memory_pool().used_bytes()

    def call():
        held = cupy.empty((8 * MIB,), "uint8")
        return held, cupy.empty((8 * MIB,), "uint8")

    with pytest.raises(OutOfMemoryError) as caught:
        memory.guarded(call)
    assert caught.value is not None  # the error is still held, with its cause and its traceback
    assert cupy.get_default_memory_pool().used_bytes() == before


def test_other_errors_pass(cupy, memory):
    def fail():
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        memory.guarded(fail)


def test_libraries_that_find_no_memory_are_understood(cupy, memory):
    with pytest.raises(OutOfMemoryError, match="more memory was asked for"):
        memory.guarded(lambda: cupy.cuda.runtime.malloc(1 << 60))


def test_a_capture_is_left_to_who_captures(cupy, memory, limited):
    limited(MIB)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
                memory.guarded(lambda: cupy.empty((2 * MIB,), "uint8"))
        finally:
            stream.end_capture()


def test_every_block_on_the_device_gives_the_error_of_xpnn(gpu, cupy, memory, limited):
    limited(MIB)

    def call():
        with gpu.context():
            return cupy.empty((2 * MIB,), "uint8")

    with pytest.raises(OutOfMemoryError, match=r"2\.00 MiB were asked for; ") as caught:
        call()
    assert isinstance(caught.value.__cause__, cupy.cuda.memory.OutOfMemoryError)
    # Such a block inside a guarded call does not hide the error from it.
    with pytest.raises(OutOfMemoryError, match="batch_size of at most about 1 would"):
        memory.guarded(call, samples=3)
    assert cupy.cuda.runtime.getDevice() == 0


@pytest.mark.parametrize(
    "units", [(1023, "1023 bytes"), (1536, "1.50 KiB"), (3 << 29, "1.50 GiB"), (3 << 40, "3.00 TiB")]
)
def test_bytes_for_people(memory, units):
    assert memory.in_units(units[0]) == units[1]


def test_data_that_do_not_fit_travel_and_networks_that_do_not_fit_say_so(gpu, limited, monkeypatch):
    X = np.ones((1024, 2048), "float32")  # 8 MiB
    y = np.ones((1024, 1), "float32")
    net = xpnn.Network(xpnn.Dense(2048, 1), backend=gpu)
    monkeypatch.setenv("XPNN_DATA_SHARE", "1")
    expected = net.predict(X, batch_size=64)
    limited(4 * MIB)
    found = net.predict(X, batch_size=64)
    np.testing.assert_array_equal(found, expected)
    net.fit(X, y, loss="mse", optimizer="sgd", batch_size=64, verbose=0)
    with pytest.raises(OutOfMemoryError, match="the memory of cupy:0 does not suffice"):
        xpnn.Network(xpnn.Dense(2048, 2048), backend=gpu)
    with pytest.raises(OutOfMemoryError, match="the memory of cupy:0 does not suffice"):
        net.loss_and_gradients(X, y, "mse")  # one batch is moved as a whole
    assert np.isfinite(net.predict(X, batch_size=64)).all()


def test_a_batch_that_does_not_fit_names_one_that_does(gpu, limited):
    net = xpnn.Network(xpnn.Dense(8, 4096), xpnn.Tanh(), xpnn.Dense(1), backend=gpu)
    X, y = np.ones((2048, 8), "float32"), np.ones((2048, 1), "float32")
    net.fit(X[:4], y[:4], loss="mse", optimizer="sgd", batch_size=2, verbose=0)
    limited(20 * MIB)
    with pytest.raises(OutOfMemoryError, match="the memory of cupy:0 does not suffice"):
        net.fit(X, y, loss="mse", optimizer="sgd", batch_size=2048, verbose=0)
    with pytest.raises(OutOfMemoryError, match="the memory of cupy:0 does not suffice"):
        net.predict(X, batch_size=2048)
    net.fit(X, y, loss="mse", optimizer="sgd", batch_size=64, verbose=0)


def test_the_command_shows_the_memory(gpu):
    from xpnn.cli.backends import backends_table

    lines = [line.split() for line in backends_table().splitlines()]
    assert ["memory", "of", "free", "of", "in", "the", "library's", "pool", "in", "arrays"] in lines
    row = next(line for line in lines if line[:1] == ["cupy:0"])
    free, total, pool, live = map(float, row[1::2])
    assert 0 < free <= total
    assert live <= pool <= total
