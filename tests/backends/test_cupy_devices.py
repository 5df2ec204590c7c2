"""Everything on the second GPU, while the first one is current; and a training that runs out of memory."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import OutOfMemoryError
from xpnn.testing import checks
from xpnn.testing.cases import CASES


@pytest.fixture
def second(gpu):
    """The second GPU's backend."""
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU here")
    return xpnn.get_backend("cupy:1")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_ops_on_the_second_gpu(second, case):
    checks.check_rounding(case, second, "float32")


def test_a_training_on_the_second_gpu_gives_what_the_first_one_gives(gpu, second):
    generator = np.random.default_rng(2)
    x, y = generator.standard_normal((50, 6, 5, 2)).astype(np.float32), generator.integers(0, 3, 50)
    found = []
    for backend in (gpu, second):
        images = [xpnn.Conv2D(4, 3), xpnn.BatchNorm(), xpnn.ReLU(), xpnn.MaxPool2D(2)]
        net = xpnn.Network(*images, xpnn.Flatten(), xpnn.Dropout(0.3), xpnn.Dense(3), backend=backend)
        history = net.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=3, batch_size=16, verbose=0)
        found.append((history["loss"], net.predict(x)))
        assert net.compiled["fit"] == "a CUDA graph", net.compiled
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_training_that_does_not_fit_says_which_batch_would(gpu, room_for):
    net = xpnn.Network(xpnn.Dense(1024), xpnn.Tanh(), xpnn.Dense(1024), xpnn.Tanh(), xpnn.Dense(4), backend=gpu)
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((8192, 32)).astype(np.float32), generator.integers(0, 4, 8192)
    net.build((32,))
    before = {name: gpu.to_host(value) for name, value in net.parameters.items()}
    with room_for(72 << 20):
        with pytest.raises(OutOfMemoryError, match=r"batch_size of at most about \d+ would fit") as caught:
            net.fit(x, y, loss="cross_entropy", optimizer="sgd", epochs=1, batch_size=8192, verbose=0)
        message = str(caught.value)
        del caught  # which remembers where it was raised, and the arrays there
        for name, value in net.parameters.items():
            np.testing.assert_array_equal(gpu.to_host(value), before[name])
        fitting = int(message.partition("at most about ")[2].split()[0])
        assert 16 <= fitting < 8192
        smaller = max(fitting // 8, 1)  # what is said is an upper bound: the failed step had not come to its end
        net.fit(x, y, loss="cross_entropy", optimizer="sgd", epochs=1, batch_size=smaller, verbose=0)


def test_a_step_that_ran_out_of_memory_goes_on_when_there_is_some(gpu, room_for):
    def network(backend):
        return xpnn.Network(xpnn.Dense(512), xpnn.Tanh(), xpnn.Dense(4), backend=backend, input_shape=(16,))

    net, twin = network(gpu), network("numpy")
    generator = np.random.default_rng(0)
    inputs, labels = generator.standard_normal((16384, 16)).astype(np.float32), generator.integers(0, 4, 16384)
    batch = net.prepare(inputs, labels, "cross_entropy")
    step, state = net.step("cross_entropy", "sgd"), net.initial_state("sgd", "cross_entropy")
    with room_for(40 << 20), pytest.raises(OutOfMemoryError):
        step(state, batch)
    other, wanted = twin.step("cross_entropy", "sgd"), twin.initial_state("sgd", "cross_entropy")
    host = twin.prepare(inputs, labels, "cross_entropy")
    for _ in range(3):
        state, _ = step(state, batch)
        wanted, _ = other(wanted, host)
    np.testing.assert_allclose(gpu.to_host(state.theta[0]), wanted.theta[0], rtol=1e-4, atol=1e-5)
    assert state.step == 3
