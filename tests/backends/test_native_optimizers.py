"""Optimizers' updates in recorded steps: NumPy and native kernels against the generic bodies."""

from typing import Any, NamedTuple

import numpy as np
import pytest

import xpnn_backends.numpy_backend  # noqa: F401 (makes recorded arrays known)
from xpnn import dispatch, ops
from xpnn_backends.compiled_step import CompiledStep
from xpnn_backends.fast import why_not
from xpnn_backends.recording import Recorder

_RATE, _DECAY = 0.01, 0.1
_ADAM = (0.9, 0.95, 1e-8)

# op -> (number of slots, settings for a learning rate and a step, options)
_UPDATES: dict[str, Any] = {
    "sgd": ("sgd", 0, lambda rate, step: (rate,), {}),
    "momentum": ("sgd_momentum", 1, lambda rate, step: (rate, 0.9), {}),
    "dampening": ("sgd_momentum", 1, lambda rate, step: (rate, 0.9, 0.5 + 0.0 * step), {}),
    "nesterov": ("sgd_momentum", 1, lambda rate, step: (rate, 0.9), {"nesterov": True}),
    "adam": ("adam", 2, lambda rate, step: (rate, *_ADAM, 0.1, 0.05 * (step + 1)), {}),
    "adam-decay": ("adam", 2, lambda rate, step: (rate, *_ADAM, 0.1, 0.05, _DECAY), {}),
    "adam-decays": ("adam", 2, lambda rate, step: (rate, *_ADAM, 0.1, 0.05, "decays"), {}),
    "amsgrad": ("amsgrad", 3, lambda rate, step: (rate, *_ADAM, 0.1, 0.05), {}),
    "amsgrad-decays": ("amsgrad", 3, lambda rate, step: (rate, *_ADAM, 0.1, 0.05, "decays"), {}),
    "nadam": ("nadam", 2, lambda rate, step: (rate, 0.9 * rate, *_ADAM, 0.05), {}),
    "rmsprop": ("rmsprop", 1, lambda rate, step: (None, rate, 0.9, 1e-8), {}),
    "rmsprop-momentum": ("rmsprop", 2, lambda rate, step: (rate, 0.9, 1e-8, 0.5), {}),
    "centered": ("rmsprop_centered", 2, lambda rate, step: (None, rate, 0.9, 1e-3), {}),
    "centered-momentum": ("rmsprop_centered", 3, lambda rate, step: (rate, 0.9, 1e-3, 0.5), {}),
    "adagrad": ("adagrad", 1, lambda rate, step: (rate, 1e-10), {}),
    "adadelta": ("adadelta", 2, lambda rate, step: (100.0 * rate, 0.9, 1e-6), {}),
    "lion": ("lion", 1, lambda rate, step: (rate, 0.9, 0.99), {}),
    "lion-decay": ("lion", 1, lambda rate, step: (rate, 0.9, 0.99, _DECAY), {}),
    "lion-decays": ("lion", 1, lambda rate, step: (rate, 0.9, 0.99, "decays"), {}),
}

native_too = pytest.mark.parametrize("native", [False, True], ids=["numpy", "native"])
every_update = pytest.mark.parametrize("name", _UPDATES)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def _with_numba(request):
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("native") and why_not():
        pytest.skip(why_not())


class State(NamedTuple):
    theta: Any
    slots: tuple[Any, ...]
    step: int


def _update_step(name):
    op, _, settings, options = _UPDATES[name]

    def step(state, batch):
        gradient, decays = batch
        rate = _RATE / (1.0 + state.step)
        given = [decays if isinstance(x, str) else x for x in settings(rate, state.step)]
        new, _ = getattr(ops, op)(state.theta, gradient, *state.slots, *given, donate=True, **options)
        theta, *slots = new if isinstance(new, tuple) else (new,)
        return State(theta, tuple(slots), state.step + 1), theta

    return step


def _start(name, dtype, size):
    generator = np.random.default_rng(size)
    slots = tuple(np.abs(generator.normal(size=size)).astype(dtype) for _ in range(_UPDATES[name][1]))
    return State(generator.normal(size=size).astype(dtype), slots, 0)


def _copy(state):
    return State(state.theta.copy(), tuple(slot.copy() for slot in state.slots), state.step)


def _generic(step, state, batch):
    with dispatch.without_overrides():
        return step(state, batch)


def _assert_close(got, want, dtype, roundings=16):
    for mine, reference in zip((got.theta, *got.slots), (want.theta, *want.slots), strict=True):
        np.testing.assert_allclose(
            mine, reference, rtol=roundings * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps, equal_nan=True
        )


@native_too
@every_update
@both_dtypes
@pytest.mark.parametrize("size", [1, 17, 40000])
def test_update_is_that_of_the_generic_body(name, native, dtype, size):
    generator = np.random.default_rng(5)
    step = _update_step(name)
    compiled = CompiledStep(step, native)
    state = _start(name, dtype, size)
    mine = _copy(state)
    decays = generator.uniform(0.0, 0.5, size).astype(dtype)
    for _ in range(3):
        gradient = generator.normal(size=size).astype(dtype)
        kept = gradient.copy()
        state, _ = _generic(step, state, (gradient, decays))
        mine, _ = compiled(mine, (gradient, decays))
        assert compiled.why_not is None
        np.testing.assert_array_equal(gradient, kept)
        _assert_close(mine, state, dtype)
    assert mine.step == 3


@native_too
@every_update
def test_special_gradients_do_what_they_do_in_the_generic_body(name, native):
    gradient = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e30, 1e-30, -1.0] * 3, np.float32)
    step = _update_step(name)
    state = _start(name, "float32", gradient.size)
    mine = _copy(state)
    batch = (gradient, np.full_like(gradient, 0.25))
    with np.errstate(all="ignore"):
        for _ in range(2):
            state, _ = _generic(step, state, batch)
        compiled = CompiledStep(step, native)
        for _ in range(2):
            mine, _ = compiled(mine, batch)
    _assert_close(mine, state, "float32")


@native_too
@every_update
def test_update_works_in_the_memory_of_theta_and_slots(name, native):
    state = _start(name, "float32", 17)
    gradient = np.ones(17, np.float32)
    compiled = CompiledStep(_update_step(name), native)
    new, _ = compiled(state, (gradient, gradient))
    assert new.theta is state.theta
    assert all(mine is given for mine, given in zip(new.slots, state.slots, strict=True))


@every_update
def test_update_is_one_kernel(name):
    recorder = Recorder()
    state = _start(name, "float32", 17)
    state = State(recorder.input(state.theta), tuple(map(recorder.input, state.slots)), recorder.step)
    gradient = recorder.input(np.ones(17, np.float32))
    _update_step(name)(state, (gradient, gradient))
    assert len(recorder.instructions) == 1


@every_update
def test_results_do_not_depend_on_the_number_of_threads(name, monkeypatch, use_threads):
    results = []
    for count in (1, 2, 3):
        use_threads(count)
        step = CompiledStep(_update_step(name), True)
        state = _start(name, "float32", 40000)
        gradient = np.random.default_rng(3).normal(size=40000).astype(np.float32)
        results.append(step(state, (gradient, gradient))[0])
    for other in results[1:]:
        np.testing.assert_array_equal(other.theta, results[0].theta)
        for mine, first in zip(other.slots, results[0].slots, strict=True):
            np.testing.assert_array_equal(mine, first)


def _run_once(function, arrays, native):
    """function(*arrays) -> array, recorded and run."""

    def step(state, batch):
        return state, function(*batch)

    compiled = CompiledStep(step, native)
    _, value = compiled((np.zeros(1),), tuple(arrays))
    assert compiled.why_not is None
    return value


_PASSES = {
    "add_weight_decay": lambda x, y: ops.add_weight_decay(x, y, 0.3)[0],
    "add_weight_decays": lambda x, y: ops.add_weight_decay(x, y, y)[0],
    "clip_by_value": lambda x, y: ops.clip_by_value(x, 0.5)[0],
    "clip_by_norm": lambda x, y: ops.clip_by_norm(x, 0.5)[0],
    "clip_by_norm-short": lambda x, y: ops.clip_by_norm(x, 1e6)[0],
    "clip_by_global_norm": lambda x, y: ops.clip_by_global_norm(x, y, limit=0.5)[0][1],
    "global_norm": lambda x, y: ops.global_norm(x, y)[0],
    "secant_products": lambda x, y: ops.secant_products(x, y, y, 2.0 * x)[0][1],
    "sgd-length": lambda x, y: ops.sgd(x, y, ops.global_norm(x)[0])[0],
    "moving_average": lambda x, y: ops.moving_average(x + 0.0, y, 0.9, donate=True)[0],
}


@native_too
@both_dtypes
@pytest.mark.parametrize("name", _PASSES)
@pytest.mark.parametrize("size", [1, 17, 40000])
def test_passes_over_the_gradient_are_those_of_the_generic_bodies(name, native, dtype, size):
    generator = np.random.default_rng(1)
    x, y = (generator.normal(size=size).astype(dtype) for _ in range(2))
    got = _run_once(_PASSES[name], (x, y), native)
    with dispatch.without_overrides():
        want = _PASSES[name](x.astype(np.float64), y.astype(np.float64))
    scale = 1.0 if np.ndim(want) else max(1.0, float(np.sum(np.abs(x * y))))
    tolerance = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


@native_too
@pytest.mark.parametrize("name", ["clip_by_value", "clip_by_norm", "clip_by_global_norm", "global_norm"])
@pytest.mark.parametrize(
    "values",
    [[np.nan, 1.0], [np.inf, 1.0], [np.inf, np.nan], [0.0, -0.0], [3e38, -3e38], [1e-45, 2e-42], [-0.0, 0.25]],
)
def test_norms_of_special_numbers(name, native, values):
    x = np.array(values, np.float32)
    with np.errstate(all="ignore"), dispatch.without_overrides():
        want = _PASSES[name](x, x)
    with np.errstate(all="ignore"):
        got = _run_once(_PASSES[name], (x, x), native)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@native_too
@pytest.mark.parametrize("values", [[3e200, -4e200], [3e-200, 4e-200], [1.5e308, 1.5e308, 1.5e308]])
def test_norms_beyond_the_range_of_squares(native, values):
    x = np.array(values)
    for name in ("clip_by_norm", "global_norm"):
        with np.errstate(all="ignore"), dispatch.without_overrides():
            want = _PASSES[name](x, x)
        with np.errstate(all="ignore"):
            got = _run_once(_PASSES[name], (x, x), native)
        np.testing.assert_allclose(got, want, rtol=1e-14)


@pytest.mark.parametrize("name", ["clip_by_norm", "clip_by_global_norm", "global_norm", "secant_products"])
def test_norms_do_not_depend_on_the_number_of_threads(name, use_threads):
    x, y = np.random.default_rng(1).normal(size=(2, 100000)).astype(np.float32)
    results = []
    for count in (1, 2, 3):
        use_threads(count)
        results.append(_run_once(_PASSES[name], (x, y), True))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
