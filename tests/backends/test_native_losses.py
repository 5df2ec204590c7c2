"""Losses in recorded steps: NumPy and native kernels against the generic bodies."""

import numpy as np
import pytest

import xpnn_backends.numpy_backend  # noqa: F401 (makes recorded arrays known)
from xpnn import dispatch
from xpnn.dispatch import OPS
from xpnn.ops.reduction import REDUCTIONS
from xpnn_backends.compiled_step import CompiledStep
from xpnn_backends.fast import why_not
from xpnn_backends.recording import Recorder

native_too = pytest.mark.parametrize("native", [False, True], ids=["numpy", "native"])
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])

# 300 x 200 numbers are split among threads; rows of one number are a case of their own.
_SHAPES = [(1, 2), (5, 1), (4, 3), (300, 200), (40000, 1)]
_ELEMENTWISE = {
    "mse": {},
    "mae": {},
    "huber": {"delta": 0.7},
    "hinge": {},
    "binary_cross_entropy": {"positive_weight": 2.5},
    "binary_cross_entropy_from_probabilities": {},
    "kl_divergence": {},
    "kl_divergence-log": {"log_target": True},
}
_BY_ROW = {
    "cross_entropy": [
        {},
        {"class_weights": True},
        {"ignore_index": 1},
        {"class_weights": True, "ignore_index": -100},
        {"label_smoothing": 0.1},
        {"label_smoothing": 0.2, "class_weights": True, "ignore_index": 1},
    ],
    "cross_entropy_from_probabilities": [{}, {"class_weights": True, "ignore_index": -100}],
    "nll": [{}, {"class_weights": True, "ignore_index": 1}],
    "categorical_hinge": [{}],
}


@pytest.fixture(autouse=True)
def _with_numba(request):
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("native") and why_not():
        pytest.skip(why_not())


def _op(name):
    return OPS[name.partition("-")[0]].function


def _value_and_gradients(name, options, arrays, dy=1.0):
    value, vjp = _op(name)(*arrays, **options)
    return value, vjp(dy)


def _run(name, options, arrays, native, dy=1.0):
    """(value, gradients of the arrays that have one), recorded and run twice."""
    given = [x for x in arrays if x is not None]

    def step(state, batch):
        supplied = iter(batch)
        value, gradients = _value_and_gradients(
            name, options, [None if x is None else next(supplied) for x in arrays], dy
        )
        return tuple(g for g in gradients if g is not None), value

    with np.errstate(all="ignore"), dispatch.without_overrides():
        _, gradients = _value_and_gradients(name, options, arrays)
    state = tuple(np.full_like(g, 7.0) for g in gradients if g is not None)
    compiled = CompiledStep(step, native)
    for _ in range(2):
        with np.errstate(all="ignore"):
            state, value = compiled(state, tuple(given))
    assert compiled.why_not is None
    return value, state


def _wanted(name, options, arrays, dy=1.0, dtype=None):
    """What the generic body gives."""
    if dtype:
        arrays = [x.astype(dtype) if x is not None and x.dtype.kind == "f" else x for x in arrays]
    with np.errstate(all="ignore"), dispatch.without_overrides():
        value, gradients = _value_and_gradients(name, options, arrays, dy)
    return value, tuple(g for g in gradients if g is not None)


def _assert_close(got, want, dtype, roundings=32):
    tolerance = roundings * np.finfo(dtype).eps
    np.testing.assert_allclose(got[0], want[0], rtol=tolerance, atol=tolerance)
    for mine, reference in zip(got[1], want[1], strict=True):
        finite = reference[np.isfinite(reference)]
        scale = float(np.max(np.abs(finite))) if finite.size else 1.0
        np.testing.assert_allclose(mine, reference, rtol=tolerance, atol=tolerance * scale)


def _elementwise_arrays(name, shape, dtype, weighted):
    generator = np.random.default_rng(sum(shape))
    prediction = generator.normal(size=shape)
    target = generator.normal(size=shape)
    if name == "hinge":
        target = np.sign(target)
    elif name == "binary_cross_entropy":
        target = generator.uniform(size=shape)
    elif name.endswith("from_probabilities"):
        prediction, target = generator.uniform(0.05, 0.95, shape), generator.uniform(size=shape)
    elif name == "kl_divergence":
        prediction, target = -np.abs(prediction), np.maximum(target, 0.0)
    weight = generator.uniform(0.5, 2.0, shape[0]) if weighted else None
    return [None if x is None else x.astype(dtype) for x in (prediction, target, weight)]


@native_too
@both_dtypes
@pytest.mark.parametrize("name", _ELEMENTWISE)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("shape", _SHAPES, ids=str)
def test_loss_of_elements_is_that_of_the_generic_body(name, shape, weighted, native, dtype):
    arrays = _elementwise_arrays(name, shape, dtype, weighted)
    for reduction in REDUCTIONS if shape == (4, 3) else ("mean", "batch_mean"):
        options = {**_ELEMENTWISE[name], "reduction": reduction}
        _assert_close(_run(name, options, arrays, native), _wanted(name, options, arrays, dtype="float64"), dtype)


def _row_arrays(name, shape, dtype, weighted, options, positions=()):
    generator = np.random.default_rng(sum(shape))
    rows, classes = shape[0], max(shape[1], 2)
    scores = generator.normal(size=(rows, *positions, classes))
    if name != "categorical_hinge":
        scores -= np.log(np.sum(np.exp(scores), axis=-1, keepdims=True))
    if name.endswith("from_probabilities"):
        scores = np.exp(scores)
    labels = generator.integers(0, classes, (rows, *positions))
    options = dict(options)
    if options.get("class_weights"):
        options["class_weights"] = tuple(generator.uniform(0.5, 2.0, classes).tolist())
    if options.get("ignore_index", 0) < 0:
        labels[::3] = options["ignore_index"]
    weight = generator.uniform(0.5, 2.0, rows).astype(dtype) if weighted else None
    return [scores.astype(dtype), labels, weight], options


@native_too
@both_dtypes
@pytest.mark.parametrize(("name", "options"), [(name, o) for name, all_of in _BY_ROW.items() for o in all_of], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("shape", [*_SHAPES, "3d"], ids=str)
def test_loss_of_labels_is_that_of_the_generic_body(name, options, shape, weighted, native, dtype):
    shape, positions = ((4, 3), (2,)) if shape == "3d" else (shape, ())
    arrays, options = _row_arrays(name, shape, dtype, weighted, options, positions)
    for reduction in REDUCTIONS if shape == (4, 3) else ("mean", "batch_mean"):
        chosen = {**options, "reduction": reduction}
        _assert_close(_run(name, chosen, arrays, native), _wanted(name, chosen, arrays, dtype="float64"), dtype)


@native_too
@both_dtypes
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": (0.5, 2.0, 1.0)}], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_soft_labels(options, weighted, native, dtype):
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(6, 3)).astype(dtype)
    labels = generator.dirichlet((1.0, 1.0, 1.0), 6).astype(dtype)
    arrays = [logits, labels, generator.uniform(0.5, 2.0, 6).astype(dtype) if weighted else None]
    got, want = (f("cross_entropy", options, arrays, *more) for f, more in ((_run, (native,)), (_wanted, ())))
    _assert_close(got, want, dtype)


@native_too
@pytest.mark.parametrize("dy", [0.25, "array"])
@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_cotangent_is_a_number_or_an_array(name, dy, native):
    if name == "mse":
        arrays = _elementwise_arrays(name, (4, 3), "float64", True)
    else:
        arrays, _ = _row_arrays(name, (4, 3), "float64", True, {})
    chosen = np.array(0.25) if dy == "array" else dy
    _assert_close(_run(name, {}, arrays, native, chosen), _wanted(name, {}, arrays, 0.25), "float64")


@native_too
@pytest.mark.parametrize("name", [*_ELEMENTWISE, *_BY_ROW])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 1e4, -1e4, -0.0, 0.0, 1.0, 3e38])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_special_numbers_do_what_they_do_in_the_generic_body(name, special, position, native):
    options = _ELEMENTWISE.get(name, {})
    if name in _ELEMENTWISE:
        arrays = _elementwise_arrays(name, (2, 3), "float32", False)
    else:
        arrays, _ = _row_arrays(name, (2, 3), "float32", False, {})
        arrays[1][0] = 1
    arrays[0][0, position] = special
    got, want = _run(name, options, arrays, native), _wanted(name, options, arrays)
    if special == 3e38 and not np.isfinite(want[0]):
        want = (got[0], want[1])  # a sum in float64 overflows later
    if name == "cross_entropy_from_probabilities" and np.isnan(special) and position != 1:
        # The kernel does not look at the other classes, to which the generic body gives 0 * NaN.
        want = (want[0], tuple(np.nan_to_num(gradient) for gradient in want[1]))
    _assert_close(got, want, "float32")


@native_too
def test_probabilities_of_zero_and_one_cost_what_they_cost_in_the_generic_body(native):
    p = np.array([[0.0, 1.0, 0.5, 1e-40, 1.0 - 2.0**-24]], np.float32)
    for labels in (np.zeros_like(p), np.ones_like(p), np.full_like(p, 0.5)):
        name = "binary_cross_entropy_from_probabilities"
        _assert_close(_run(name, {}, [p, labels, None], native), _wanted(name, {}, [p, labels, None]), "float32")
    for label in range(5):
        arrays = [p, np.array([label]), None]
        name = "cross_entropy_from_probabilities"
        _assert_close(_run(name, {}, arrays, native), _wanted(name, {}, arrays), "float32")


@native_too
@pytest.mark.parametrize("name", ["cross_entropy", "nll", "cross_entropy_from_probabilities"])
def test_ignored_rows_add_nothing_whatever_they_hold(name, native):
    scores = np.array([[0.3, 0.7], [-np.inf, 0.0], [0.6, 0.4]], np.float32)
    labels = np.array([0, -100, 1])
    for ignored in (-100, 0):
        arrays = [scores, np.where(labels == -100, ignored, labels), None]
        got, want = (f(name, {"ignore_index": ignored}, arrays, *m) for f, m in ((_run, (native,)), (_wanted, ())))
        _assert_close(got, want, "float32")
    nothing = [scores[:2], np.array([-100, -100]), None]
    assert _run(name, {"ignore_index": -100}, nothing, native)[0] == 0.0


@native_too
def test_first_of_equal_scores_takes_the_gradient(native):
    scores = np.array([[1.0, 1.0, 1.0, 0.0]])
    _, (gradient,) = _run("categorical_hinge", {}, [scores, np.array([3]), None], native)
    np.testing.assert_array_equal(gradient, [[1.0, 0.0, 0.0, -1.0]])


@pytest.mark.parametrize("name", [*_ELEMENTWISE, *_BY_ROW])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_results_do_not_depend_on_the_number_of_threads(name, weighted, use_threads):
    shape = (700, 130)
    if name in _ELEMENTWISE:
        arrays, options = _elementwise_arrays(name, shape, "float32", weighted), _ELEMENTWISE[name]
    else:
        arrays, options = _row_arrays(name, shape, "float32", weighted, {})
    results = []
    for count in (1, 2, 3):
        use_threads(count)
        results.append(_run(name, options, arrays, True))
    for value, gradients in results[1:]:
        assert value == results[0][0]
        for mine, first in zip(gradients, results[0][1], strict=True):
            np.testing.assert_array_equal(mine, first)


@pytest.mark.parametrize("name", [*_ELEMENTWISE, *_BY_ROW])
@pytest.mark.parametrize(("shape", "calls"), [((4, 3), 2), ((300, 200), 3)])
def test_loss_and_gradient_are_few_kernels_and_all_native(name, shape, calls):
    if name in _ELEMENTWISE:
        arrays, options = _elementwise_arrays(name, shape, "float32", True), _ELEMENTWISE[name]
    else:
        arrays, options = _row_arrays(name, shape, "float32", True, {})
    recorder = Recorder()
    _, vjp = _op(name)(*(recorder.input(x) for x in arrays), **options)
    forward = len(recorder.instructions)
    assert forward == calls - 1
    vjp(1.0)
    if why_not():
        pytest.skip(why_not())
    from xpnn_backends.native import registry
    from xpnn_backends.native.machine import Machine

    machine = Machine(lambda recorded: recorded.ghost, len(recorder.numbers))
    for instruction in recorder.instructions:
        assert instruction.kernel.native in registry.KERNELS
        assert machine.add(instruction)
