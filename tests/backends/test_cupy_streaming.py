"""Data of the host on their way to a GPU: values, order, threads, errors, and that nobody waits for the device."""

import contextlib
import gc
import signal
import threading

import numpy as np
import pytest

import xpnn
from xpnn.backend import get_backend
from xpnn.errors import ConfigError, DataError


@pytest.fixture
def cupy(gpu):
    import cupy

    return cupy


@pytest.fixture
def streaming(gpu):
    from xpnn_backends.cupy import streaming

    return streaming


def data_threads():
    names = ("xpnn-data", "xpnn-gather")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert data_threads() == []


def arrays(count):
    generator = np.random.default_rng(1)
    return [
        generator.normal(size=(count, 3, 5)).astype("float32"),
        generator.integers(0, 9, (count,)),
        generator.normal(size=(count, 7)),
    ]


DTYPES = ("float32", "int64", "float32")


def on_host(gpu, parts):
    return [gpu.to_host(part) for part in parts]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
@pytest.mark.parametrize("size", [1, 16, 1000])
@pytest.mark.parametrize("shuffled", [False, True])
def test_batches_are_the_rows_in_their_order(gpu, count, size, shuffled):
    given = arrays(count)
    order = np.random.default_rng(2).permutation(count) if shuffled else None
    rows = np.arange(count) if order is None else order
    starts = list(range(0, count, size))
    found = [on_host(gpu, parts) for parts in gpu.batches(given, DTYPES, size, order)]
    assert len(found) == len(starts)
    for start, parts in zip(starts, found, strict=True):
        chosen = rows[start : start + size]
        for part, array, dtype in zip(parts, given, DTYPES, strict=True):
            assert part.dtype == dtype
            np.testing.assert_array_equal(part, array[chosen].astype(dtype))


def test_large_batches_are_gathered_by_several_threads(gpu, streaming, monkeypatch):
    monkeypatch.setattr(streaming, "_SHARED_BYTES", 100)
    monkeypatch.setattr(streaming.os, "cpu_count", lambda: 6)
    given, order = arrays(100), np.random.default_rng(2).permutation(100)
    seen = set()
    for start, parts in zip(range(0, 100, 16), gpu.batches(given, DTYPES, 16, order), strict=True):
        seen.update(thread.name[:11] for thread in data_threads())
        for part, array, dtype in zip(parts, given, DTYPES, strict=True):
            np.testing.assert_array_equal(gpu.to_host(part), array[order[start : start + 16]].astype(dtype))
    assert seen == {"xpnn-data", "xpnn-gather"}
    broken = np.zeros((50, 3), "float32").view(BrokenArray)
    with pytest.raises(OSError, match="the disk is gone"):
        list(gpu.batches([broken], ["float32"], 30))


@pytest.mark.parametrize("kind", ["uint8", "bool", "float16", "float64", "fortran", "strided", "swapped", "readonly"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_whatever_the_host_holds_is_converted(gpu, kind, shuffled):
    array = np.random.default_rng(1).normal(size=(40, 6)) * 3
    array = {
        "fortran": lambda: np.asfortranarray(array),
        "strided": lambda: array[::2, ::-1],
        "swapped": lambda: array.astype(">f8"),
        "readonly": lambda: np.frombuffer(array.tobytes()).reshape(array.shape),
    }.get(kind, lambda: array.astype(kind))()
    order = np.random.default_rng(2).permutation(len(array)) if shuffled else np.arange(len(array))
    found = [on_host(gpu, parts)[0] for parts in gpu.batches([array], ["float32"], 7, order if shuffled else None)]
    np.testing.assert_array_equal(np.concatenate(found), array[order].astype("float32"))


def test_each_array_of_a_batch_begins_where_wide_accesses_want_it(gpu):
    places = set()
    for parts in gpu.batches(arrays(100), DTYPES, 9):
        assert all(part.data.ptr % 256 == 0 for part in parts)
        assert all(part.flags.c_contiguous for part in parts)
        places.add(parts[0].data.ptr)
    assert len(places) == 3  # the ring has so many places, and a full batch is always on one of them


def test_a_batch_is_kept_until_the_next_one_is_asked_for(gpu, cupy):
    given = arrays(64)
    with contextlib.closing(gpu.batches(given, DTYPES, 4)) as batches:
        for number, parts in enumerate(batches):
            # The thread has had the time to fill all other places.
            threading.Event().wait(0.002)
            np.testing.assert_array_equal(gpu.to_host(parts[0]), given[0][4 * number : 4 * number + 4])


def test_more_rows_than_one_place_can_be_used_late(gpu, cupy):
    """Work of another stream, for which the current one waits, has read a batch before its place is filled again."""
    given, other = arrays(60), cupy.cuda.Stream(non_blocking=True)
    sums = []
    with gpu.context():
        for parts in gpu.batches(given, DTYPES, 5):
            current = cupy.cuda.get_current_stream()
            other.wait_event(current.record())
            with other:
                sums.append(parts[0].sum())
            current.wait_event(other.record())
    expected = [given[0][start : start + 5].sum(dtype="float64") for start in range(0, 60, 5)]
    np.testing.assert_allclose([float(value) for value in sums], expected, rtol=1e-4, atol=1e-4)


class BrokenArray(np.ndarray):
    """Rows from 20 on cannot be read, as those of a file that has gone."""

    def __getitem__(self, rows):
        if isinstance(rows, slice) and rows.start is not None and rows.start >= 20:
            raise OSError("the disk is gone")
        return super().__getitem__(rows)


def test_arrays_of_the_device_are_taken_as_they_are(gpu):
    X, y = samples()
    there = gpu.asarray(X, "float32"), gpu.asarray(y)
    net = network()
    inputs, target, weight = net.prepare(*there, "cross_entropy", gpu.asarray(np.ones(64), "float32"))
    assert inputs is there[0]
    several = net.prepare(there[0], there[0][:, :3], "mse")
    assert several[1].data.ptr == there[0].data.ptr
    assert target.device.id == weight.device.id == 0


def test_an_error_of_the_thread_reaches_the_caller(gpu):
    broken = np.zeros((50, 3), "float32").view(BrokenArray)
    batches = gpu.batches([broken], ["float32"], 10)
    next(batches)
    next(batches)
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_who_leaves_early_leaves_no_thread(gpu, taken):
    batches = gpu.batches(arrays(100), DTYPES, 4)
    for _ in range(taken):
        next(batches)
    assert len(data_threads()) == (1 if taken else 0)
    batches.close()
    assert data_threads() == []
    forgotten = gpu.batches(arrays(100), DTYPES, 4)
    next(forgotten)
    del forgotten
    gc.collect()


def test_memory_is_given_back(gpu, cupy):
    pool, pinned = cupy.get_default_memory_pool(), cupy.get_default_pinned_memory_pool()

    def use():
        for _ in gpu.batches(arrays(300), DTYPES, 50):
            pass
        with contextlib.closing(gpu.batches(arrays(300), DTYPES, 50)) as batches:
            next(batches)
        gc.collect()
        return pool.used_bytes(), pool.total_bytes(), pinned.n_free_blocks()

    first = use()
    assert [use() for _ in range(5)] == [first] * 5


@pytest.mark.parametrize("kind", ["float32", "uint8", "fortran", "wide rows"])
def test_large_arrays_move_in_pieces(gpu, streaming, cupy, monkeypatch, kind):
    monkeypatch.setattr(streaming, "_PIECE", 1024)
    array = np.random.default_rng(0).normal(size=(4, 1000) if kind == "wide rows" else (333, 7)) * 50
    array = np.asfortranarray(array) if kind == "fortran" else array.astype("uint8" if kind == "uint8" else "float32")
    found = gpu.asarray(array, "float32")
    assert found.dtype == cupy.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(gpu.to_host(found), array.astype("float32"))
    assert gpu.asarray(np.empty((0, 5)), "float32").shape == (0, 5)
    assert gpu.asarray(np.array(2.5)).shape == ()


def test_the_share_decides_and_the_variable_sets_it(gpu, monkeypatch):
    from xpnn_backends.cupy import memory

    free = gpu.memory().free
    assert gpu.keeps(1000)
    assert not gpu.keeps(free)
    assert memory.data_share() == memory.DATA_SHARE == 0.5
    monkeypatch.setenv("XPNN_DATA_SHARE", "0")
    assert not gpu.keeps(1)
    assert gpu.keeps(0)
    monkeypatch.setenv("XPNN_DATA_SHARE", "0.25")
    assert gpu.keeps(free // 5)
    assert not gpu.keeps(free // 3)
    monkeypatch.setenv("XPNN_DATA_SHARE", " 1 ")
    assert gpu.keeps(free // 2 + free // 4)
    for text in ("-0.1", "1.5", "nan", "half", "0,5"):
        monkeypatch.setenv("XPNN_DATA_SHARE", text)
        with pytest.raises(ConfigError, match=f"the variable XPNN_DATA_SHARE is '{text}'.*from 0 .* to 1"):
            gpu.keeps(1)
    monkeypatch.setenv("XPNN_DATA_SHARE", "")
    assert gpu.keeps(1)


def samples(count=64):
    generator = np.random.default_rng(3)
    labels = np.arange(count) % 3
    return (np.eye(3)[labels] @ generator.normal(size=(3, 4)) + 0.2 * generator.normal(size=(count, 4))), labels


def network(backend="cupy", seed=5):
    return xpnn.Network(
        xpnn.Dense(4, 8), xpnn.Tanh(), xpnn.Dropout(0.2), xpnn.Dense(3), backend=backend, seed=seed, dtype="float32"
    )


def trained(backend="cupy", **options):
    X, y = samples()
    net = network(backend)
    settings = {"loss": "cross_entropy", "optimizer": "adam", "epochs": 3, "batch_size": 16, "verbose": 0, **options}
    history = net.fit(X, y, validation_data=(X[:10], y[:10]), **settings)
    weights = [net.backend.to_host(value) for value in net.parameters.values()]
    return dict(history), weights, net.evaluate(X, y, batch_size=10), net.predict(X, batch_size=10)


def assert_same(first, second):
    assert first[0] == second[0]
    assert first[2] == second[2]
    for one, other in zip([*first[1], first[3]], [*second[1], second[3]], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("batch_size", [None, 1, 16, 24])
def test_without_room_on_the_device_training_is_the_same(gpu, monkeypatch, batch_size):
    whole = trained(batch_size=batch_size)
    monkeypatch.setenv("XPNN_DATA_SHARE", "0")
    assert_same(whole, trained(batch_size=batch_size))


def test_ctrl_c_ends_the_thread_with_the_epoch(gpu, monkeypatch):
    monkeypatch.setenv("XPNN_DATA_SHARE", "0")
    X, y = samples()
    running = []

    def press(number, loss):
        running.append(len(data_threads()))
        if number == 1:
            signal.raise_signal(signal.SIGINT)

    callback = xpnn.LambdaCallback(on_batch_end=press)
    net = network()
    history = net.fit(
        X, y, loss="cross_entropy", optimizer="adam", batch_size=8, epochs=3, callbacks=[callback], verbose=0
    )
    assert history.interrupted
    assert running == [1, 1]
    assert data_threads() == []
    assert net.training.step == 2


def test_an_error_in_the_loop_ends_the_thread(gpu, monkeypatch):
    monkeypatch.setenv("XPNN_DATA_SHARE", "0")
    X, y = samples()

    def fail(number, loss):
        assert len(data_threads()) == 1
        raise ValueError("a callback of mine")

    callback = xpnn.LambdaCallback(on_batch_end=fail)
    with pytest.raises(ValueError, match="a callback of mine"):
        network().fit(X, y, loss="cross_entropy", optimizer="adam", batch_size=8, callbacks=[callback], verbose=0)


@pytest.fixture
def two_devices(cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("this machine has one GPU")


@pytest.mark.parametrize("share", ["0", "0.5"])
def test_another_device_than_the_current_one(gpu, cupy, two_devices, monkeypatch, share):
    monkeypatch.setenv("XPNN_DATA_SHARE", share)
    first = trained("cupy:0")
    with cupy.cuda.Device(0):
        second = trained("cupy:1")
        assert cupy.cuda.runtime.getDevice() == 0
    assert_same(first, second)
    X, y = samples()
    net = network("cupy:1")
    net.build((4,))
    there = get_backend("cupy:1").asarray(X, "float32"), get_backend("cupy:1").asarray(y)
    with cupy.cuda.Device(0):
        net.fit(*there, loss="cross_entropy", optimizer="adam", batch_size=16, verbose=0, validation_split=0.25)
        net.evaluate(*there)
        net.loss_and_gradients(*there)
        assert net.predict(there[0]).device.id == 1
        weights = net.copy_weights()
        net.restore_weights(weights)
        assert all(value.device.id == 1 for value in net.parameters.values())
        net.set_parameters({name: gpu.to_host(value) for name, value in net.parameters.items()})
        net.freeze("0").unfreeze()
        net.to("cupy:0")
        assert all(value.device.id == 0 for value in net.parameters.values())
        with pytest.raises(xpnn.errors.DeviceError, match="X lies on cupy:1, the network on cupy:0"):
            net.predict(there[0])


@pytest.mark.parametrize("share", ["0", "0.5"])
def test_any_thread_may_train(gpu, cupy, monkeypatch, share):
    monkeypatch.setenv("XPNN_DATA_SHARE", share)
    last = cupy.cuda.runtime.getDeviceCount() - 1
    expected, found = trained(f"cupy:{last}"), []

    def run():
        found.append(trained(f"cupy:{last}"))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for each in found:
        assert_same(expected, each)


def test_labels_on_the_device_are_checked(gpu, cupy):
    X, y = samples()
    there = gpu.asarray(X, "float32")
    net = network()
    for bad in (3, -1, 2**40):
        for dtype in ("int64", "float64"):
            labels = gpu.asarray(np.where(np.arange(64) == 7, bad, y), dtype)
            for call in (net.loss_and_gradients, net.evaluate):
                with pytest.raises(DataError, match=f"the label {bad}, and the network has 3 outputs"):
                    call(there, labels, loss="cross_entropy")
    for dtype in ("uint8", "int32", "uint64"):
        labels = gpu.asarray(np.where(np.arange(64) == 7, 3, y), dtype)
        with pytest.raises(DataError, match="the label 3"):
            net.fit(there, labels, loss="cross_entropy", optimizer="sgd", verbose=0)
        net.fit(there, gpu.asarray(y, dtype), loss="cross_entropy", optimizer="sgd", verbose=0)
    with pytest.raises(DataError, match=r"X has NaN.*first in row 3"):
        net.predict(cupy.where(cupy.arange(64)[:, None] == 3, cupy.nan, there))


def test_indices_on_the_device_are_checked(gpu):
    net = xpnn.Network(xpnn.Embedding(5, 2), xpnn.Flatten(), xpnn.Dense(1), backend=gpu)
    assert net.predict(gpu.asarray(np.array([[0, 4]]))).shape == (1, 1)
    for bad in (5, -1):
        for dtype in ("int64", "int32"):
            indices = gpu.asarray(np.array([[0, bad]]), dtype)
            with pytest.raises(DataError, match=f"index {bad}; .*0 to 4"):
                net.predict(indices)
            with pytest.raises(DataError, match=f"index {bad}"):
                net.fit(indices, gpu.asarray(np.ones(1), "float32"), loss="mse", optimizer="sgd", verbose=0)
    with pytest.raises(DataError, match="must hold integers"):
        net.predict(gpu.asarray(np.array([[0.5, 1.0]])))


def test_weights_on_the_device_are_checked(gpu):
    X, y = samples()
    given = gpu.asarray(X, "float32"), gpu.asarray(y)
    for weight, message in ((-np.ones(64), "negative value"), (np.zeros(64), "0 for every"), (np.ones(3), "shape")):
        with pytest.raises(DataError, match=message):
            network().evaluate(*given, loss="cross_entropy", sample_weight=gpu.asarray(weight))


# ---- nobody waits for the device


def watched_epochs(monkeypatch, enter, leave):
    """Have `enter()` called when the first batch of an epoch is there, and `leave()` after the last one."""
    from xpnn.training import fit

    batches = fit._Trainer._batches

    def watched(self, rows, done):
        entered = False
        try:
            with contextlib.closing(batches(self, rows, done)) as found:
                for batch in found:
                    if not entered:
                        enter(self.epoch)
                        entered = True
                    yield batch
        finally:
            if entered:
                leave(self.epoch)

    monkeypatch.setattr(fit._Trainer, "_batches", watched)


class Hooked(xpnn.Callback):
    """With a hook for each batch, `fit` calls the step once for each of them."""

    def on_batch_end(self, number, loss):
        pass


@pytest.fixture(params=["compiled", "call by call"])
def compiled(request, gpu, monkeypatch):
    """Steps as `compile` makes them, and as they are."""
    if request.param == "call by call":
        monkeypatch.setattr(type(gpu), "compile", type(gpu)._as_it_is)
    return request.param


@pytest.mark.filterwarnings("ignore:cupyx.allow_synchronize will be removed")
@pytest.mark.parametrize("share", ["0", "0.5"])
def test_the_batch_loop_never_waits_for_the_device(gpu, monkeypatch, share, compiled):
    """CuPy itself refuses to wait, in this thread, from the second epoch on: kernels are compiled in the first one."""
    import cupyx

    monkeypatch.setenv("XPNN_DATA_SHARE", share)
    X, y = samples()
    blocks, watched = [], []

    def enter(epoch):
        blocks.append(contextlib.nullcontext() if epoch < 2 else cupyx.allow_synchronize(False))
        blocks[-1].__enter__()
        watched.append(epoch)

    def leave(epoch):
        blocks.pop().__exit__(None, None, None)

    watched_epochs(monkeypatch, enter, leave)
    network().fit(
        X,
        y,
        loss="cross_entropy",
        optimizer="adam",
        epochs=4,
        batch_size=10,
        metrics=["accuracy", "f1"],
        callbacks=[Hooked()],
        verbose=0,
    )
    assert watched == [0, 1, 2, 3]
    with pytest.raises(cupyx.DeviceSynchronized), cupyx.allow_synchronize(False):
        gpu.asarray(np.ones(3)).get()  # it would have been noticed


@pytest.mark.parametrize("share", ["0", "0.5"])
def test_what_the_host_does_with_the_device_does_not_grow_with_the_batches(gpu, monkeypatch, share, compiled):
    device = pytest.importorskip("emulated_gpu.device", reason="only the emulated GPU counts what was asked of it")
    if not device.is_installed():
        pytest.skip("only the emulated GPU counts what was asked of it")
    monkeypatch.setenv("XPNN_DATA_SHARE", share)
    X, y = samples(192)
    names = ("copies_to_host", "synchronizations", "copies_from_host", "host_allocations")

    def asked(count):
        """What was asked for in an epoch over so many samples, after two epochs in which everything was set up."""
        found = []
        net = network()

        def epoch_ends(epoch, logs):
            found.append(device.counts())

        net.fit(
            X[:count],
            y[:count],
            loss="cross_entropy",
            optimizer="adam",
            epochs=4,
            batch_size=16,
            metrics=["accuracy"],
            callbacks=[Hooked(), xpnn.LambdaCallback(on_epoch_end=epoch_ends)],
            verbose=0,
        )
        return {name: found[3][name] - found[2][name] for name in names}

    few, many = asked(64), asked(192)
    assert few["copies_to_host"] > 0  # the sums of the epoch
    if share == "0":
        # One copy for a batch of three arrays; and the thread, which nobody waits for, sees that it is over.
        for name in ("copies_from_host", "synchronizations"):
            assert many.pop(name) - few.pop(name) == 8
    assert many == few
