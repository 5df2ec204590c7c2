import math

import numpy as np
import pytest

import xpnn
from xpnn.config import decode, encode
from xpnn.errors import ConfigError

SCHEDULES = [
    xpnn.schedules.Constant(0.1),
    xpnn.StepDecay(0.1, every=7, factor=0.3),
    xpnn.MultiStep(0.1, [3, 11, 30], factor=0.5),
    xpnn.Exponential(0.1, 0.97),
    xpnn.Polynomial(0.1, steps=20, power=2.5, end=0.01),
    xpnn.Cosine(0.1, steps=20, minimum=0.003),
    xpnn.CosineRestarts(0.1, first_steps=7),
    xpnn.CosineRestarts(0.1, first_steps=3, multiplier=2, minimum=0.02),
    xpnn.Warmup(5, xpnn.Cosine(0.1, steps=20), start=0.01),
    xpnn.Warmup(5, 0.1),
    xpnn.OneCycle(0.1, steps=40),
    xpnn.OneCycle(0.1, steps=3, warmup=0.1),
    xpnn.OneCycle(0.1, steps=1),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
STEPS = (0, 1, 2, 4, 5, 6, 7, 10, 11, 19, 20, 21, 29, 30, 39, 40, 49, 1000)


@every_schedule
def test_an_int_gives_a_float(schedule):
    for step in STEPS:
        assert type(schedule(step)) is float
        assert 0.0 <= schedule(step) <= 0.1 + 1e-15


@every_schedule
def test_an_array_gives_the_same(schedule, backend, dtype):
    with backend.context(), backend.discipline():
        integers = [schedule(backend.asarray(np.asarray(step), "int64")) for step in STEPS]
        reals = [schedule(backend.asarray(np.asarray(float(step)), dtype)) for step in STEPS]
        together = schedule(backend.asarray(np.asarray(STEPS), "int64"))
    want = [schedule(step) for step in STEPS]
    assert all(backend.owns(rate) and rate.shape == () for rate in (*integers, *reals))
    # Integers become the library's default float dtype: float32 on PyTorch.
    for rates, tolerance in ((integers, 2e-6), (reals, 1e-14 if dtype == "float64" else 2e-6)):
        np.testing.assert_allclose([float(backend.to_host(rate)) for rate in rates], want, rtol=tolerance, atol=1e-9)
    assert all(backend.to_host(rate).dtype == dtype for rate in reals)
    np.testing.assert_allclose(backend.to_host(together), want, rtol=2e-6, atol=1e-9)


@every_schedule
def test_it_can_be_written_down_and_built_again(schedule):
    assert decode(encode(schedule)) == schedule


@pytest.mark.xpnn_rows(only=["jax"])
@every_schedule
def test_it_can_be_jitted(schedule, backend, dtype):
    import jax

    jitted = jax.jit(lambda step: schedule(step))
    for step in STEPS:
        assert float(jitted(step)) == pytest.approx(schedule(step), rel=2e-6, abs=1e-9)


@pytest.mark.xpnn_rows(only=["jax", "numpy", "torch"], dtypes=["float32"])
def test_stairs_are_at_the_right_steps_in_float32(backend, dtype):
    """A division by a constant may become a product with its rounded inverse, 49 * (1 / 49) < 1."""
    for every in (3, 7, 10, 41, 49, 107, 161, 1000):
        steps = np.arange(0, 40 * every)
        wanted = steps // every
        stairs = xpnn.StepDecay(1.0, every, factor=0.5)
        compiled = stairs
        if backend.name == "jax":
            import jax

            compiled = jax.jit(stairs)
        got = backend.to_host(compiled(backend.asarray(steps.astype("float32"), "float32")))
        np.testing.assert_allclose(np.log2(got), -wanted, rtol=0, atol=1e-4)


def test_stairs_and_milestones():
    assert [xpnn.StepDecay(1.0, 2, 0.5)(step) for step in range(6)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert [xpnn.MultiStep(1.0, [1, 3], 0.5)(step) for step in range(5)] == [1.0, 0.5, 0.5, 0.25, 0.25]


def test_ends_are_exact():
    assert xpnn.Polynomial(0.1, 7, power=0.5, end=0.025)(7) == 0.025
    assert xpnn.Polynomial(0.1, 7, power=0.5, end=0.025)(10**9) == 0.025
    assert xpnn.Cosine(0.1, 7, minimum=0.025)(7) == pytest.approx(0.025, rel=1e-15)
    assert xpnn.Cosine(0.1, 7)(10**9) < 1e-30


def test_restarts_begin_at_the_full_rate():
    schedule = xpnn.CosineRestarts(0.1, first_steps=3, multiplier=3)
    starts = [0, 3, 12, 39, 120, 363, 3 * (3**12 - 1) // 2]
    for start in starts:
        assert schedule(start) == 0.1
        assert schedule(start + 1) < 0.1
    assert schedule(starts[-1] - 1) < 1e-10


def test_warmup_is_a_line_and_then_the_schedule_from_its_beginning():
    then = xpnn.Exponential(0.5, 0.5)
    schedule = xpnn.Warmup(4, then, start=0.1)
    np.testing.assert_allclose([schedule(step) for step in range(4)], [0.1, 0.2, 0.3, 0.4], rtol=1e-14)
    assert [schedule(step) for step in (4, 5, 6)] == [0.5, 0.25, 0.125]


def test_a_schedule_of_ones_own():
    class Halving(xpnn.Schedule):
        def at(self, step):
            return 0.5**step

    assert xpnn.Warmup(2, Halving())(3) == 0.5
    assert xpnn.SGD(Halving()).rate(2) == 0.25


@pytest.mark.parametrize(
    ("kind", "arguments", "culprit"),
    [
        ("Constant", (-1.0,), "rate"),
        ("Constant", (math.inf,), "rate"),
        ("StepDecay", (0.1, 0), "every"),
        ("StepDecay", (0.1, 1.5), "every"),
        ("StepDecay", (0.1, 5, -1.0), "factor"),
        ("MultiStep", (0.1, [5, 3]), "milestones"),
        ("MultiStep", (0.1, [5, 5]), "milestones"),
        ("MultiStep", (0.1, [0.5]), "milestones"),
        ("Exponential", (0.1, math.nan), "factor"),
        ("Polynomial", (0.1, 0), "steps"),
        ("Polynomial", (0.1, 5, 0.0), "power"),
        ("Polynomial", (0.1, 5, 1.0, -1.0), "end"),
        ("Cosine", (0.1, -5), "steps"),
        ("Cosine", (0.1, 5, -1.0), "minimum"),
        ("CosineRestarts", (0.1, 0), "first_steps"),
        ("CosineRestarts", (0.1, 5, 1.5), "multiplier"),
        ("Warmup", (0, 0.1), "steps"),
        ("Warmup", (5, "cosine"), "then"),
        ("OneCycle", (-0.1, 5), "maximum"),
        ("OneCycle", (0.1, 0), "steps"),
        ("OneCycle", (0.1, 5, 1.0), "warmup"),
        ("OneCycle", (0.1, 5, 0.3, 0.0), "start_divisor"),
        ("OneCycle", (0.1, 5, 0.3, 25.0, -1.0), "end_divisor"),
    ],
)
def test_what_makes_no_sense_is_refused(kind, arguments, culprit):
    with pytest.raises(ConfigError, match=culprit):
        getattr(xpnn.schedules, kind)(*arguments)
