"""Compiled steps on NumPy: they give what the step gives, whatever comes between two calls."""

import sys
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest

import xpnn
from xpnn import losses, optimizers
from xpnn.training.step import gather_rows, make_step
from xpnn.training.totals import Totals
from xpnn_backends.compiled_step import CompiledStep
from xpnn_backends.fast import why_not

native_too = pytest.mark.parametrize(
    "native",
    [False, pytest.param(True, marks=pytest.mark.skipif(why_not() is not None, reason=str(why_not())))],
    ids=["numpy", "native"],
)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])

FEATURES, CLASSES, SAMPLES = 5, 3, 11
RNG = np.random.default_rng(3)
X = RNG.standard_normal((SAMPLES, FEATURES))
NUMBERS = RNG.uniform(-1.0, 1.0, (SAMPLES, CLASSES))
LABELS = np.arange(SAMPLES) % CLASSES
WEIGHTS = RNG.uniform(0.5, 2.0, SAMPLES)
TOKENS = RNG.integers(0, 7, (SAMPLES, 4))


def shared():
    layer = xpnn.Dense(FEATURES, FEATURES)
    return [layer, xpnn.Tanh(), layer, xpnn.Sigmoid(), xpnn.Dense(CLASSES)]


NETWORKS = {
    "relu": lambda: [xpnn.Dense(8), xpnn.ReLU(), xpnn.Dense(CLASSES)],
    "tanh": lambda: [xpnn.Dense(4), xpnn.Tanh(), xpnn.Dense(CLASSES), xpnn.Tanh()],
    "shared": shared,
    "dropout": lambda: [xpnn.Dense(9), xpnn.GELU(), xpnn.Dropout(0.4), xpnn.Dense(CLASSES)],
    "residual": lambda: [xpnn.Residual(xpnn.Dense(FEATURES), xpnn.SiLU()), xpnn.Dense(CLASSES)],
    "parallel": lambda: [xpnn.Parallel(xpnn.Dense(3), [xpnn.Dense(3), xpnn.ELU()]), xpnn.Dense(CLASSES)],
    "embedding": lambda: [xpnn.Embedding(7, 3), xpnn.Flatten(), xpnn.Dense(CLASSES)],
    "softmax": lambda: [xpnn.Dense(CLASSES), xpnn.Softmax()],
    "log softmax": lambda: [xpnn.Dense(CLASSES), xpnn.LogSoftmax()],
    "prelu": lambda: [xpnn.Dense(6), xpnn.PReLU(), xpnn.Dense(CLASSES, bias=False)],
    "reshaped": lambda: [xpnn.Dense(6), xpnn.Reshape((2, 3)), xpnn.Softplus(), xpnn.Flatten(), xpnn.Dense(CLASSES)],
    "one": lambda: [xpnn.Dense(1)],
}


class Trial(NamedTuple):
    """A network with what it is trained by."""

    network: str
    loss: Any
    optimizer: Any
    metrics: tuple[str, ...] = ()
    weighted: bool = False
    frozen: tuple[str, ...] = ()

    def build(self, dtype):
        tokens = self.network == "embedding"
        net = xpnn.Network(
            *NETWORKS[self.network](), backend="numpy", dtype=dtype, seed=7, input_shape=(4,) if tokens else (FEATURES,)
        )
        return net.freeze(*self.frozen) if self.frozen else net

    def step(self, net):
        metrics = [metric.resolve(self.loss, net.output_shape) for metric in self.found_metrics()]
        return make_step(net.root, net.layout, self.loss, self.optimizer, metrics)

    def found_metrics(self):
        return xpnn.metrics.metrics_from(self.metrics)

    def state(self, net):
        return net.initial_state(self.optimizer, self.loss, self.metrics)

    def batch(self, net, rows=slice(None)):
        targets = NUMBERS[:, : net.output_shape[0]]
        if isinstance(self.loss, (losses.CrossEntropy, losses.NLL, losses.CrossEntropyFromProbabilities)):
            targets = LABELS
        elif isinstance(self.loss, (losses.BinaryCrossEntropy, losses.KLDivergence, losses.Hinge)):
            targets = (targets > 0).astype(float)
            if isinstance(self.loss, losses.KLDivergence):
                targets = (0.1 + targets) / (0.1 + targets).sum(axis=1, keepdims=True)
        inputs = TOKENS if self.network == "embedding" else X
        weight = WEIGHTS[rows] if self.weighted else None
        return net.prepare(inputs[rows], targets[rows], self.loss, weight)


SCHEDULE = xpnn.schedules.Warmup(2, then=xpnn.schedules.Cosine(0.05, 10))
TRIALS = {
    "sgd": Trial("tanh", losses.MSE(), optimizers.SGD(0.1)),
    "momentum": Trial("relu", losses.MSE(), optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01)),
    "adam": Trial("relu", losses.CrossEntropy(), optimizers.Adam(0.01), ("accuracy", "confusion_matrix")),
    "adam with all": Trial(
        "relu",
        losses.CrossEntropy(),
        optimizers.Adam(SCHEDULE, 0.01, ema=0.9, clip_value=0.5, clip_norm=0.4, clip_global_norm=0.3),
        ("accuracy",),
        weighted=True,
    ),
    "adamw": Trial("dropout", losses.MSE(), optimizers.AdamW(SCHEDULE, 0.1, decay_biases=True), ("mae", "r2")),
    "amsgrad": Trial("residual", losses.MAE(), optimizers.AMSGrad(0.01, clip_global_norm=0.1), weighted=True),
    "nadam": Trial("parallel", losses.Huber(), optimizers.Nadam(xpnn.schedules.StepDecay(0.01, 2)), ("rmse",)),
    "rmsprop": Trial("embedding", losses.CrossEntropy(), optimizers.RMSprop(0.01, momentum=0.5), ("top_2",)),
    "adagrad": Trial("softmax", losses.CrossEntropyFromProbabilities(), optimizers.Adagrad(0.05), ("f1",)),
    "adadelta": Trial("log softmax", losses.NLL(), optimizers.Adadelta(1.0, ema=0.5)),
    "lion": Trial("shared", losses.MSE(), optimizers.Lion(0.01, weight_decay=0.1)),
    "barzilai-borwein": Trial("reshaped", losses.MSE(), optimizers.BarzilaiBorwein(0.01)),
    "lamb": Trial("relu", losses.CrossEntropy(), optimizers.LAMB(0.01, weight_decay=0.1)),
    "lars": Trial("tanh", losses.MSE(), optimizers.LARS(0.1, weight_decay=0.01)),
    "adafactor": Trial("relu", losses.CrossEntropy(), optimizers.Adafactor(0.01)),
    "muon": Trial("tanh", losses.MSE(), optimizers.Muon(0.01)),
    "l-bfgs": Trial("tanh", losses.MSE(), optimizers.LBFGS(0.1, history_size=2)),
    "frozen": Trial("relu", losses.CrossEntropy(), optimizers.Adam(0.01, ema=0.9), frozen=("0",)),
    "frozen shared": Trial("shared", losses.MSE(), optimizers.SGD(0.1), frozen=("4.bias",)),
    "binary": Trial("one", losses.BinaryCrossEntropy(), optimizers.SGD(0.3, ema=0.9), ("accuracy",), weighted=True),
    "hinge": Trial("one", losses.Hinge(), optimizers.SGD(0.1, momentum=0.5)),
    "prelu": Trial("prelu", losses.CosineDistance(), optimizers.Adam(lambda step: 0.01 * 0.9**step)),
    "divergence": Trial("log softmax", losses.KLDivergence(), optimizers.SGD(0.1, clip_norm=1.0)),
    "smoothed": Trial("embedding", losses.CrossEntropy(label_smoothing=0.1), optimizers.Adam(0.01), weighted=True),
}


def tolerance(dtype):
    return {"rtol": 1e-9, "atol": 1e-11} if dtype == "float64" else {"rtol": 5e-4, "atol": 5e-5}


def copied(tree):
    if isinstance(tree, np.ndarray):
        return tree.copy()
    if isinstance(tree, tuple):
        parts = [copied(part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return {name: copied(part) for name, part in tree.items()} if isinstance(tree, dict) else tree


def arrays(tree):
    """All arrays of a tree, in order; eager steps make NumPy's scalars of those without axes."""
    if isinstance(tree, (np.ndarray, np.generic)):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple) else ()
    return [array for part in parts for array in arrays(part)]


def assert_close(state, wanted, dtype):
    assert (state.step, state.key) == (wanted.step, wanted.key)
    for one, other in zip(arrays(state), arrays(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, **tolerance(dtype))


def assert_same(state, wanted):
    assert (state.step, state.key) == (wanted.step, wanted.key)
    for one, other in zip(arrays(state), arrays(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


# Kernels take time to compile, and have tests of their own in both dtypes.
NATIVE_IN_BOTH = ("adam with all", "adamw", "rmsprop")
RUNS = [
    pytest.param(
        trial, dtype, native, id=f"{name}-{dtype}-{'native' if native else 'numpy'}",
        marks=[pytest.mark.skipif(why_not() is not None, reason=str(why_not()))] if native else [],
    )
    for name, trial in TRIALS.items()
    for dtype in ("float32", "float64")
    for native in (False, True)
    if not native or dtype == "float32" or name in NATIVE_IN_BOTH
]  # fmt: skip


@pytest.mark.parametrize(("trial", "dtype", "native"), RUNS)
def test_compiled_steps_give_what_the_step_gives(trial, dtype, native):
    net = trial.build(dtype)
    step = trial.step(net)
    compiled = CompiledStep(step, native)
    state, wanted = trial.state(net), trial.state(net)
    # partial batches in between
    for rows in (slice(0, 6), slice(5, 11), slice(0, 3), slice(2, 8), slice(8, 9)):
        batch = trial.batch(net, rows)
        state, value = compiled(state, batch)
        wanted, wanted_value = step(wanted, batch)
        assert np.shape(value) == ()
        assert value.dtype == wanted_value.dtype
        np.testing.assert_allclose(value, wanted_value, **tolerance(dtype))
        assert_close(state, wanted, dtype)
        if dtype == "float32":
            wanted = copied(state)  # or else roundings would grow from step to step
    assert compiled.why_not is None
    metrics = [metric.resolve(trial.loss, net.output_shape) for metric in trial.found_metrics()]
    totals = Totals(net.backend, metrics, net.output_shape)
    mine, theirs = (totals.read(each.totals, trial.loss) for each in (state, wanted))
    for name, number in theirs.items():
        np.testing.assert_allclose(mine[name], number, rtol=1e-4)


def test_every_optimizer_is_in_the_table():
    assert {type(trial.optimizer) for trial in TRIALS.values()} == set(optimizers.OPTIMIZERS.values())


def setting(dtype="float64", native=False, name="adam with all"):
    trial = TRIALS[name]
    net = trial.build(dtype)
    step = trial.step(net)
    return trial, net, step, CompiledStep(step, native)


@native_too
def test_the_state_is_overwritten_and_given_back(native):
    trial, net, _, compiled = setting(native=native)
    first = trial.state(net)
    given = arrays(first)
    before = [array.copy() for array in given]
    state = first
    for number in range(3):
        state, _ = compiled(state, trial.batch(net))
        assert all(new is old for new, old in zip(arrays(state), given, strict=True))
        assert state.step == number + 1
    assert not all(np.array_equal(new, old) for new, old in zip(given, before, strict=True))


@native_too
def test_values_of_different_steps_are_objects_of_their_own(native):
    trial, net, step, compiled = setting("float64", native, "adam")
    state, wanted = trial.state(net), trial.state(net)
    values, wanted_values = [], []
    for _ in range(4):
        state, value = compiled(state, trial.batch(net))
        wanted, wanted_value = step(wanted, trial.batch(net))
        values.append(value)
        wanted_values.append(wanted_value)
    assert len(set(map(float, values))) == 4
    np.testing.assert_allclose(values, wanted_values, **tolerance("float64"))


@native_too
def test_batches_in_arrays_that_are_filled_again(native):
    trial, net, step, compiled = setting(native=native)
    state, wanted = trial.state(net), trial.state(net)
    batch = copied(trial.batch(net, slice(0, 5)))
    for start in (0, 3, 6):
        for mine, new in zip(batch, trial.batch(net, slice(start, start + 5)), strict=True):
            mine[...] = new
        state, value = compiled(state, batch)
        wanted, wanted_value = step(wanted, batch)
        np.testing.assert_allclose(value, wanted_value, **tolerance("float64"))
    assert_close(state, wanted, "float64")


@native_too
def test_batches_in_any_order_of_memory_give_the_same_bits(native):
    trial, net, _, compiled = setting(native=native)
    first, second = trial.state(net), trial.state(net)
    for start in (0, 4, 2):
        x, target, weight = copied(trial.batch(net, slice(start, start + 5)))
        first, one = compiled(first, (x, target, weight))
        wide = np.zeros((5, 2 * FEATURES))
        wide[:, ::2] = x
        second, other = compiled(second, (np.asfortranarray(x) if start else wide[:, ::2], target, weight))
        assert one == other
        assert_same(first, second)


@native_too
def test_several_states_in_turn(native):
    trial, net, step, compiled = setting(native=native)
    pairs = [[trial.state(net), trial.state(net)] for _ in range(3)]
    for number in range(9):
        pair = pairs[number % 3]
        batch = trial.batch(net, slice(number % 3, number % 3 + 6))
        pair[0], value = compiled(pair[0], batch)
        pair[1], wanted = step(pair[1], batch)
        np.testing.assert_allclose(value, wanted, **tolerance("float64"))
    for state, wanted in pairs:
        assert_close(state, wanted, "float64")


@native_too
def test_an_older_state_can_be_taken_up_again(native):
    trial, net, step, compiled = setting(native=native)
    state, _ = compiled(trial.state(net), trial.batch(net))
    saved = copied(state)
    state, first = compiled(state, trial.batch(net))
    wanted, _ = step(copied(saved), trial.batch(net))
    assert_close(state, wanted, "float64")
    again, second = compiled(saved, trial.batch(net))
    assert first == second
    assert_same(state, again)
    # the number of the step and the totals may be set back, as between two epochs
    state = state._replace(step=0, totals=trial.state(net).totals)
    wanted = copied(state)
    state, _ = compiled(state, trial.batch(net))
    wanted, _ = step(wanted, trial.batch(net))
    assert_close(state, wanted, "float64")


@native_too
def test_another_seed_is_another_program(native):
    trial, net, step, compiled = setting("float64", native, "adamw")
    for key in (1, 2, 1, 2**63 + 3):
        state, value = compiled(trial.state(net)._replace(key=key), trial.batch(net))
        wanted, wanted_value = step(trial.state(net)._replace(key=key), trial.batch(net))
        np.testing.assert_allclose(value, wanted_value, **tolerance("float64"))
        assert_close(state, wanted, "float64")


def in_threads(functions):
    """Run them all at once; the first error is raised here."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        running = [threading.Thread(target=guarded, args=(function,), daemon=True) for function in functions]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(60)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


@native_too
@pytest.mark.parametrize("together", [False, True], ids=["step", "many"])
def test_two_threads_at_once(together, native):
    trial, net, step, _ = setting(native=native)
    compiled = CompiledStep(gather_rows(step) if together else step, native)
    whole = trial.batch(net)
    rows = [np.random.default_rng(seed).integers(0, SAMPLES, 4 * 60) for seed in (0, 1)]
    found = {}

    def train(number):
        state = trial.state(net)
        for start in range(0, len(rows[number]), 12):
            chosen = rows[number][start : start + 12]
            if together:
                state = compiled.many(state, whole, chosen, 4)
            else:
                state, _ = compiled(state, tuple(part[chosen] for part in whole))
        found.setdefault(number, []).append(copied(state))

    for number in (0, 1):
        train(number)
    in_threads([lambda: train(0), lambda: train(1)])
    for alone, beside in found.values():
        assert_same(beside, alone)


@native_too
def test_another_thread_between_two_of_many_steps(native):
    trial, net, step, _ = setting("float64", native, "sgd")
    compiled = CompiledStep(gather_rows(step), native)
    whole, rows = trial.batch(net), np.random.default_rng(0).integers(0, SAMPLES, 40)
    wanted = compiled.many(trial.state(net), whole, rows, 4)
    others = []

    class OpenedInBetween:
        """A lock that lets others in, each time it is given up."""

        def __init__(self, lock):
            self.lock = lock
            self.inside = False

        def __enter__(self):
            self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()
            if not self.inside:
                self.inside = True
                others.append(compiled.many(trial.state(net), whole, rows, 4))
                self.inside = False

    compiled._lock = OpenedInBetween(compiled._lock)
    state = compiled.many(trial.state(net), whole, rows, 4)
    assert others
    for each in (state, *others):
        assert_same(each, wanted)


# What cannot be recorded.


def scaled(x):
    """x / max |x|, by a number that Python reads; the scale counts as a constant."""
    scale = 1.0 / float(abs(x).max())
    return x * scale, lambda dy: (dy * scale,)


@native_too
def test_a_layer_that_cannot_be_recorded_runs_as_it_is(native):
    net = xpnn.Network(xpnn.Dense(4), xpnn.Lambda(scaled), xpnn.Dense(3), input_shape=(FEATURES,), dtype="float64")
    optimizer = xpnn.Adam(0.01)
    step = make_step(net.root, net.layout, losses.MSE(), optimizer)
    compiled = CompiledStep(step, native)
    state, wanted = net.initial_state(optimizer), net.initial_state(optimizer)
    batch = net.prepare(X, NUMBERS, "mse")
    for _ in range(3):
        state, value = compiled(state, batch)
        wanted, wanted_value = step(wanted, batch)
        assert value == wanted_value
        assert_same(state, wanted)
    assert compiled.why_not
    assert "\n" not in compiled.why_not


def read_by_python(x):
    total = namespace_of(x).sum(x)
    return x * float(total), lambda dy: (dy * float(total),)


def branching(x):
    if namespace_of(x).any(x > 0):
        return x * 2.0, lambda dy: (dy * 2.0,)
    return x, lambda dy: (dy,)


def by_numpy(x):
    return np.asarray(x) * 2.0, lambda dy: (np.asarray(dy) * 2.0,)


def by_mask(x):
    positive = x[x > 0]
    scale = namespace_of(x).sum(positive)
    return x * scale, lambda dy: (dy * scale,)


def namespace_of(x):
    return xpnn.dispatch.namespace(x)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (read_by_python, "read by Python"),
        (branching, "branch depends on the values"),
        (by_numpy, "not of the array's namespace"),
        (by_mask, "use xp.take"),
    ],
)
def test_why_not_says_why(function, reason, caplog):
    net = xpnn.Network(xpnn.Dense(3), xpnn.Lambda(function), input_shape=(FEATURES,), dtype="float64")
    optimizer = xpnn.SGD(0.01)
    step = make_step(net.root, net.layout, losses.MSE(), optimizer)
    compiled = CompiledStep(step, False)
    with caplog.at_level("INFO", "xpnn"):
        state, value = compiled(net.initial_state(optimizer), net.prepare(X, NUMBERS, "mse"))
    wanted, wanted_value = step(net.initial_state(optimizer), net.prepare(X, NUMBERS, "mse"))
    assert value == wanted_value
    assert_same(state, wanted)
    assert reason in compiled.why_not
    assert caplog.text.count(reason) == 1


def test_an_error_of_a_layer_is_raised_as_without_compiling():
    def wrong(x):
        raise ValueError("the layer's own words")

    net = xpnn.Network(xpnn.Dense(3), xpnn.Lambda(wrong), input_shape=(FEATURES,))
    step = net.step("mse", "sgd")
    with pytest.raises(ValueError, match="the layer's own words"):
        step(net.initial_state("sgd"), net.prepare(X, NUMBERS, "mse"))
    with pytest.raises(ValueError, match="the layer's own words"):
        net.fit(X, NUMBERS, loss="mse", optimizer="sgd", verbose=0)


@native_too
def test_a_state_that_is_not_in_order_runs_as_it_is(native):
    def step(state, batch):
        return (state[0] + batch[0],), (state[0] * batch[0]).sum() if isinstance(state[0], np.ndarray) else state[0]

    compiled = CompiledStep(step, native)
    state = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    (new,), value = compiled((state,), (np.ones((2, 3)),))
    np.testing.assert_array_equal(new, np.arange(6.0).reshape(2, 3) + 1.0)
    assert value == 15.0
    assert "C order" in compiled.why_not


def test_a_step_that_is_recorded_can_give_way_for_one_shape_only():
    def step(state, batch):
        (x,) = batch
        total = namespace_of(x).sum(x)
        if x.shape[0] == 3:
            total = total * (1.0 if float(total) > 0 else 2.0)
        return (state[0] + total,), total

    compiled = CompiledStep(step, False)
    state = (np.zeros(1),)
    for length, wanted in ((2, 2.0), (3, 5.0), (2, 7.0), (3, 10.0)):
        state, _ = compiled(state, (np.ones(length),))
        assert state[0] == wanted
    assert "read by Python" in compiled.why_not


@native_too
def test_parts_of_a_state_may_change_places(native):
    def step(state, batch):
        first, second = state
        return (second, first + batch[0]), batch[0] * 1.0

    compiled = CompiledStep(step, native)
    state, wanted = (np.zeros(3), np.ones(3)), (np.zeros(3), np.ones(3))
    for number in range(4):
        batch = (np.full(3, 2.0 + number),)
        state, value = compiled(state, batch)
        wanted, _ = step(wanted, batch)
        np.testing.assert_array_equal(value, batch[0])
        for mine, theirs in zip(state, wanted, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert compiled.why_not is None


# Many steps at a time.


@native_too
@each_dtype
@pytest.mark.parametrize("name", ["adam with all", "adamw", "sgd", "rmsprop", "frozen"])
def test_many_steps_are_single_steps_bit_for_bit(name, dtype, native):
    trial, net, step, _ = setting(dtype, native, name)
    whole = trial.batch(net)
    size, count = 4, 24
    order = np.random.default_rng(0).integers(0, SAMPLES, size * count)
    single = CompiledStep(gather_rows(step), native)
    state = trial.state(net)
    for start in range(0, order.size, size):
        state, _ = single(state, (*whole, order[start : start + size]))
    for chunks in ([24], [1] * 24, [1, 2, 21], [7, 7, 10], [23, 1]):
        compiled = CompiledStep(gather_rows(step), native)
        other, done = trial.state(net), 0
        for chunk in chunks:
            other = compiled.many(other, whole, order[size * done : size * (done + chunk)], size)
            done += chunk
        assert other.step == count
        assert_same(other, state)
        assert compiled.why_not is None
        # and single steps go on from there
        last = order[:size]
        one, value = compiled(copied(other), (*whole, last))
        another, wanted = single(copied(state), (*whole, last))
        assert value == wanted
        assert_same(one, another)


@native_too
def test_rows_beyond_whole_batches_are_left_over(native):
    trial, net, step, _ = setting(native=native)
    compiled = CompiledStep(gather_rows(step), native)
    whole, rows = trial.batch(net), np.arange(SAMPLES)
    state = compiled.many(trial.state(net), whole, rows, 4)
    assert state.step == 2
    wanted = compiled.many(trial.state(net), whole, rows[:8], 4)
    assert_same(state, wanted)
    assert compiled.many(state, whole, rows[:3], 4) is state


@native_too
@pytest.mark.parametrize("name", ["sgd", "adam with all"])
def test_rows_that_do_not_lie_side_by_side(name, native):
    trial, net, step, _ = setting("float64", native, name)
    compiled = CompiledStep(gather_rows(step), native)
    whole = trial.batch(net)
    twice = np.random.default_rng(1).integers(0, SAMPLES, 40)
    state = compiled.many(trial.state(net), whole, twice[::2], 4)
    wanted = compiled.many(trial.state(net), whole, twice[::2].copy(), 4)
    assert_same(state, wanted)


@native_too
def test_many_steps_of_a_step_that_cannot_be_recorded(native):
    net = xpnn.Network(xpnn.Dense(4), xpnn.Lambda(scaled), xpnn.Dense(3), input_shape=(FEATURES,), dtype="float64")
    optimizer = xpnn.SGD(0.01)
    step = gather_rows(make_step(net.root, net.layout, losses.MSE(), optimizer))
    compiled = CompiledStep(step, native)
    whole, rows = net.prepare(X, NUMBERS, "mse"), np.arange(8)
    state = compiled.many(net.initial_state(optimizer), whole, rows, 4)
    wanted = net.initial_state(optimizer)
    for start in (0, 4):
        wanted, _ = step(wanted, (*whole, rows[start : start + 4]))
    assert_same(state, wanted)
