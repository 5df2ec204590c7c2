"""The kernels of losses and softmax on the GPU against the generic bodies on NumPy in float64."""

import numpy as np
import pytest

from xpnn.dispatch import OPS
from xpnn.ops.reduction import REDUCTIONS

EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
DTYPES = tuple(EPS)
CLASSES = (1, 2, 3, 10, 31, 33, 256, 257, 1000, 1001, 4099)
"""Rows shared by a part of a warp, and by a block; with lengths that are multiples of no pack."""

LONG = {"float32": (16500, 32771), "float64": (2100, 8201), "float16": (17000, 32771), "bfloat16": (17001, 40000)}
"""dtype -> lengths of rows of which each thread holds many packs, and of rows that are not held."""

ELEMENTWISE = {
    "mse": {},
    "mae": {},
    "huber": {"delta": 0.7},
    "hinge": {},
    "binary_cross_entropy": {"positive_weight": 2.5},
    "binary_cross_entropy_from_probabilities": {},
    "kl_divergence": {},
    "log_kl_divergence": {"log_target": True},
}


@pytest.fixture
def bodies(gpu):
    from xpnn_backends.cupy import bodies_losses

    bodies_losses._gradient_was_wanted.clear()
    return bodies_losses


@pytest.fixture
def launched(bodies, monkeypatch):
    """The kernels that are launched, each with whether it writes gradients."""
    found = []
    launch = bodies.launch

    def noted(family, name, parameters, blocks, threads, arguments, shared=0):
        places = {"cross_entropy": -3, "elementwise_loss": -4}
        found.append((name, name in places and arguments[places[name]] is not None))
        launch(family, name, parameters, blocks, threads, arguments, shared)

    monkeypatch.setattr(bodies, "launch", noted)
    return found


def numbers(*shape, seed=0, low=-6.0, high=6.0):
    return np.random.default_rng(seed).uniform(low, high, shape)


def labels_for(*shape, classes, seed=5):
    return np.random.default_rng(seed).integers(0, classes, shape)


def on_device(gpu, x, dtype):
    """x in a dtype, on the device; and what it is there, in float64 on the host."""
    if x is None:
        return None, None
    there = gpu.asarray(np.asarray(x, np.float32 if dtype != "float64" else np.float64)).astype(gpu.dtype(dtype))
    return there, on_host(gpu, there)


def on_host(gpu, x):
    return gpu.to_host(x.astype(np.float64))


def check(gpu, got, want, dtype, label, roundings=8.0):
    """The largest difference, relative to the largest result; 2 roundings for half types, rounded once from float32."""
    want = np.asarray(want)
    mine = on_host(gpu, got)
    assert mine.shape == want.shape, label
    scale = max(np.abs(want).max(initial=0.0), 1e-30)
    error = np.abs(mine - want).max(initial=0.0) / scale / EPS[dtype]
    allowed = roundings if dtype in ("float32", "float64") else 2.0
    assert error <= allowed, f"{label}: off by {error:.1f} eps"


def check_cross_entropy(gpu, bodies, dtype, logits, labels, weight=None, label="", roundings=16.0, **options):
    """Value and gradient, made apart and in one pass, for dy = 1 and another."""
    here, logits = on_device(gpu, logits, dtype)
    if labels.dtype.kind == "f":
        labels_here, labels = on_device(gpu, labels, dtype)
    else:
        labels_here = gpu.asarray(labels)
    weight_here, weight = on_device(gpu, weight, dtype)
    want, want_vjp = OPS["cross_entropy"].generic(logits, labels, weight, **options)
    gradients = []
    for _ in range(2):
        value, vjp = bodies.cross_entropy(here, labels_here, weight_here, **options)
        assert value.shape == ()
        assert value.dtype == here.dtype
        check(gpu, value, want, dtype, f"{label}: value", roundings)
        gradient, *others = vjp(1.0)
        assert others == [None, None]
        assert gradient.dtype == here.dtype
        check(gpu, gradient, want_vjp(1.0)[0], dtype, f"{label}: gradient", roundings)
        gradients.append(on_host(gpu, gradient))
    assert np.array_equal(*gradients), f"{label}: the gradient differs with the pass that makes it"
    scale = gpu.asarray(np.float32(3.0))
    check(gpu, vjp(scale)[0], want_vjp(3.0)[0], dtype, f"{label}: gradient for another dy", roundings)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_for_any_number_of_classes(gpu, bodies, dtype):
    for classes in CLASSES:
        logits, labels = numbers(7, classes), labels_for(7, classes=classes)
        check_cross_entropy(gpu, bodies, dtype, logits, labels, label=f"{classes} classes")


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_long_rows(gpu, bodies, dtype):
    for classes in LONG[dtype]:
        logits, labels = numbers(3, classes), labels_for(3, classes=classes)
        check_cross_entropy(gpu, bodies, dtype, logits, labels, label=f"{classes} classes")


@pytest.mark.parametrize("rows", [1, 2, 127, 129, 513, 1025])
def test_cross_entropy_of_any_number_of_rows(gpu, bodies, rows):
    check_cross_entropy(gpu, bodies, "float32", numbers(rows, 10), labels_for(rows, classes=10), label=f"{rows} rows")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("with_weight", [False, True])
def test_reductions_of_cross_entropy(gpu, bodies, reduction, with_weight):
    logits, labels = numbers(20, 3, 5), labels_for(20, 3, classes=5)
    weight = numbers(20, low=0.5, high=2.0) if with_weight else None
    plain = {"reduction": reduction}
    check_cross_entropy(gpu, bodies, "float32", logits, labels, weight, "plain", **plain)
    class_weights = (0.5, 2.0, 1.0, 0.25, 3.0)
    for label, options in {
        "class weights": {"class_weights": class_weights},
        "ignored": {"ignore_index": 2},
        "both": {"class_weights": class_weights, "ignore_index": 0},
        "smooth": {"label_smoothing": 0.1},
        "all": {"class_weights": class_weights, "ignore_index": 1, "label_smoothing": 0.25},
    }.items():
        check_cross_entropy(gpu, bodies, "float32", logits, labels, weight, label, **plain, **options)
    soft = numbers(20, 3, 5, seed=3, low=0.0, high=1.0)
    soft = soft / soft.sum(axis=-1, keepdims=True)
    for label, options in {
        "soft": {},
        "soft, smooth, weighted": {"label_smoothing": 0.2, "class_weights": class_weights},
    }.items():
        check_cross_entropy(gpu, bodies, "float32", logits, soft, weight, label, **plain, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masses_on_long_rows(gpu, bodies, dtype):
    for classes in (300, 1001):
        logits, labels = numbers(5, classes), labels_for(5, classes=classes)
        check_cross_entropy(gpu, bodies, dtype, logits, labels, label=f"{classes} classes", label_smoothing=0.1)


def test_a_label_that_is_ignored_may_be_no_class(gpu, bodies):
    logits, labels = numbers(9, 4), labels_for(9, classes=4)
    labels[::3] = -100
    check_cross_entropy(gpu, bodies, "float32", logits, labels, ignore_index=-100)
    labels[:] = -100
    check_cross_entropy(gpu, bodies, "float32", logits, labels, ignore_index=-100)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64"])
def test_labels_of_any_integer_type(gpu, bodies, kind):
    check_cross_entropy(gpu, bodies, "float32", numbers(9, 4), labels_for(9, classes=4).astype(kind))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [6, 1002])
def test_logits_at_any_address_and_in_any_order(gpu, bodies, classes, dtype):
    labels = labels_for(5, classes=classes)
    whole, exact = on_device(gpu, numbers(5 * classes + 3), dtype)
    swapped, exact_swapped = on_device(gpu, numbers(classes, 5), dtype)
    for x, reference in ((whole[3:].reshape(5, classes), exact[3:].reshape(5, classes)), (swapped.T, exact_swapped.T)):
        value, vjp = bodies.cross_entropy(x, gpu.asarray(labels))
        want, want_vjp = OPS["cross_entropy"].generic(reference, labels)
        check(gpu, value, want, dtype, "value", 16.0)
        check(gpu, vjp(1.0)[0], want_vjp(1.0)[0], dtype, "gradient", 16.0)


@pytest.mark.parametrize("classes", [5, 300, 33000])
def test_cross_entropy_far_from_0(gpu, bodies, classes):
    logits = numbers(4, classes)
    logits[0, :2] = 1e4, -1e4
    logits[1, 2] = -np.inf
    logits[2, :3] = 3e38, -3e38, 3e38
    logits[3] += 1e4
    labels = np.array([1, 0, 0, 1])
    here, exact = on_device(gpu, logits, "float32")
    value, vjp = bodies.cross_entropy(here, gpu.asarray(labels), reduction="sum")
    want, want_vjp = OPS["cross_entropy"].generic(exact, labels, reduction="sum")
    check(gpu, value, want, "float32", "value", 16.0)
    check(gpu, vjp(1.0)[0], want_vjp(1.0)[0], "float32", "gradient", 16.0)


@pytest.mark.parametrize("classes", [5, 300, 33000])
def test_a_nan_reaches_the_loss_and_its_row_alone(gpu, bodies, classes):
    logits = numbers(3, classes)
    logits[1, 2] = np.nan
    here, _ = on_device(gpu, logits, "float32")
    value, vjp = bodies.cross_entropy(here, gpu.asarray(labels_for(3, classes=classes)))
    assert np.isnan(on_host(gpu, value))
    strange = np.isnan(on_host(gpu, vjp(1.0)[0]))
    assert strange[1].all()
    assert not strange[[0, 2]].any()


def test_an_evaluation_makes_no_gradient_and_training_makes_it_with_the_value(gpu, bodies, launched):
    logits, labels = on_device(gpu, numbers(9, 4), "float32")[0], gpu.asarray(labels_for(9, classes=4))
    for _ in range(2):
        bodies.cross_entropy(logits, labels)
    assert launched == [("cross_entropy", False)] * 2
    launched.clear()
    for _ in range(3):
        bodies.cross_entropy(logits, labels)[1](1.0)
    assert launched == [
        ("cross_entropy", False),
        ("cross_entropy", True),
        ("cross_entropy", True),
        ("cross_entropy", True),
    ]
    launched.clear()
    for _ in range(3):
        bodies.cross_entropy(logits, labels)
    assert launched == [("cross_entropy", True), ("cross_entropy", False), ("cross_entropy", False)]


def test_a_scaled_gradient_is_never_made_of_a_rounded_one(gpu, bodies, launched):
    # What loss scaling is for: multiplied before it is rounded, a gradient does not vanish in float16.
    logits = np.zeros((1, 3))
    logits[0, 0] = 20.0
    here, _ = on_device(gpu, logits, "float16")
    labels = gpu.asarray(np.array([0]))
    for _ in range(2):
        _, vjp = bodies.cross_entropy(here, labels)
        scaled = on_host(gpu, vjp(gpu.asarray(np.float32(2.0**20)))[0])
        assert 0.002 < scaled[0, 1] < 0.0023
    assert [makes_gradient for _, makes_gradient in launched] == [False, True, False, True]


def test_a_gradient_is_given_away_once(gpu, bodies):
    logits, labels = on_device(gpu, numbers(9, 4), "float32")[0], gpu.asarray(labels_for(9, classes=4))
    bodies.cross_entropy(logits, labels)[1](1.0)
    _, vjp = bodies.cross_entropy(logits, labels)
    first, second = vjp(1.0)[0], vjp(1.0)[0]
    assert first.data.ptr != second.data.ptr
    assert np.array_equal(on_host(gpu, first), on_host(gpu, second))


def test_what_does_not_fit_has_the_errors_and_results_of_the_generic_body(gpu, bodies):
    from xpnn.errors import ConfigError, ShapeError

    logits, labels = on_device(gpu, numbers(4, 3), "float32")[0], gpu.asarray(labels_for(4, classes=3))
    with pytest.raises(ConfigError, match="reduction"):
        bodies.cross_entropy(logits, labels, reduction="most")
    with pytest.raises(ConfigError, match="class_weights"):
        bodies.cross_entropy(logits, labels, class_weights=(1.0,))
    with pytest.raises(ShapeError, match="labels"):
        bodies.cross_entropy(logits, labels[:3])
    with pytest.raises(ShapeError, match="weight"):
        bodies.cross_entropy(logits, labels, logits[0])
    with pytest.raises(ShapeError, match="mse"):
        bodies.mse(logits, logits[:, 0])
    value, vjp = bodies.cross_entropy(logits[:0], labels[:0])
    assert on_host(gpu, value) == 0.0
    assert vjp(1.0)[0].shape == (0, 3)


# ------------------------------------------------------------------------------------------------------------ softmax


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_rows_of_any_length(gpu, bodies, name, dtype):
    for length in (*CLASSES, *LONG[dtype]):
        here, x = on_device(gpu, numbers(3, length), dtype)
        dy_here, dy = on_device(gpu, numbers(3, length, seed=1), dtype)
        y, vjp = bodies.BODIES[name](here)
        want, want_vjp = OPS[name].generic(x)
        check(gpu, y, want, dtype, f"{length}: y")
        # The derivative is that at the y which was rounded; it sums over the row.
        exact = on_host(gpu, y)
        if name == "softmax":
            wanted = exact * (dy - (dy * exact).sum(axis=-1, keepdims=True))
        else:
            wanted = dy - np.exp(exact) * dy.sum(axis=-1, keepdims=True)
        check(gpu, vjp(dy_here)[0], wanted, dtype, f"{length}: dx", 64.0)
        if dtype == "float64":
            check(gpu, vjp(dy_here)[0], want_vjp(dy)[0], dtype, f"{length}: dx", 256.0)


def test_softmax_of_many_rows_and_of_views(gpu, bodies):
    here, x = on_device(gpu, numbers(40, 3, 20), "float32")
    check(gpu, bodies.softmax(here)[0], OPS["softmax"].generic(x)[0], "float32", "three axes")
    check(gpu, bodies.softmax(here.T)[0], OPS["softmax"].generic(x.T)[0], "float32", "transposed")
    whole, exact = on_device(gpu, numbers(3 + 2 * 1001), "float32")
    y, vjp = bodies.softmax(whole[3:].reshape(2, 1001))
    want, want_vjp = OPS["softmax"].generic(exact[3:].reshape(2, 1001))
    check(gpu, y, want, "float32", "a slice")
    dy = whole[1:2003].reshape(2, 1001)
    check(gpu, vjp(dy)[0], want_vjp(on_host(gpu, dy))[0], "float32", "dy is a slice", 64.0)
    check(gpu, bodies.softmax(here, 1)[0], OPS["softmax"].generic(x, 1)[0], "float32", "another axis")


@pytest.mark.parametrize("length", [6, 700])
def test_softmax_far_from_0_and_of_masked_rows(gpu, bodies, length):
    x = numbers(4, length)
    x[0, :2] = 3e38, -3e38
    x[1, 1:] = -np.inf
    x[2] += 1e4
    x[3, 2] = np.nan
    here, x = on_device(gpu, x, "float32")
    got = on_host(gpu, bodies.softmax(here)[0])
    want = OPS["softmax"].generic(x[:3])[0]
    np.testing.assert_allclose(got[:3], want, rtol=1e-5, atol=1e-37)
    assert np.isnan(got[3]).all()


# ------------------------------------------------------------------------------------------ losses of single elements


def arguments_for(name, shape):
    first, second = numbers(*shape), numbers(*shape, seed=1)
    if name == "hinge":
        second = np.where(second > 0, 1.0, -1.0)
    elif name == "binary_cross_entropy":
        second = (second + 6.0) / 12.0
    elif name == "binary_cross_entropy_from_probabilities":
        first, second = (first + 6.5) / 13.0, (second + 6.0) / 12.0
    elif name == "kl_divergence":
        second = np.maximum(second, 0.0)
    elif name == "log_kl_divergence":
        second = second - 6.0
    return first, second


def check_elementwise(gpu, bodies, name, dtype, shape, weight=None, reduction="mean"):
    options = {**ELEMENTWISE[name], "reduction": reduction}
    op = name.removeprefix("log_")
    first, second = arguments_for(name, shape)
    (here, first), (there, second) = on_device(gpu, first, dtype), on_device(gpu, second, dtype)
    weight_here, weight = on_device(gpu, weight, dtype)
    label = f"{name} {shape} {reduction}"
    want, want_vjp = OPS[op].generic(first, second, weight, **options)
    gradients = []
    for _ in range(2):
        value, vjp = bodies.BODIES[op](here, there, weight_here, **options)
        assert value.dtype == here.dtype
        assert value.shape == ()
        check(gpu, value, want, dtype, f"{label}: value", 16.0)
        made = vjp(1.0)
        for index, wanted in enumerate(want_vjp(1.0)):
            assert (made[index] is None) == (wanted is None)
            if wanted is not None:
                check(gpu, made[index], wanted, dtype, f"{label}: gradient {index}", 16.0)
        gradients.append(on_host(gpu, made[0]))
    assert np.array_equal(*gradients)
    check(gpu, vjp(2.5)[0], want_vjp(2.5)[0], dtype, f"{label}: another dy", 16.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_losses_of_elements(gpu, bodies, name, dtype):
    check_elementwise(gpu, bodies, name, dtype, (17, 5))
    check_elementwise(gpu, bodies, name, dtype, (17, 5), numbers(17, low=0.5, high=2.0))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_of_elements(gpu, bodies, reduction):
    for weight in (None, numbers(30, low=0.5, high=2.0), np.zeros(30)):
        check_elementwise(gpu, bodies, "mse", "float32", (30, 3, 2), weight, reduction)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 1023, 4099, 10000])
def test_any_number_of_elements(gpu, bodies, size, dtype):
    check_elementwise(gpu, bodies, "mse", dtype, (size,))


def test_elements_at_any_address_and_in_any_order(gpu, bodies):
    whole, exact = on_device(gpu, numbers(1000), "float32")
    swapped, exact_swapped = on_device(gpu, numbers(9, 100, seed=1), "float32")
    value, vjp = bodies.mse(whole[3:903].reshape(100, 9), swapped.T)
    want, want_vjp = OPS["mse"].generic(exact[3:903].reshape(100, 9), exact_swapped.T)
    check(gpu, value, want, "float32", "value")
    for made, wanted in zip(vjp(1.0)[:2], want_vjp(1.0)[:2], strict=True):
        check(gpu, made, wanted, "float32", "gradient")


def test_binary_cross_entropy_far_from_0(gpu, bodies):
    z = np.array([[1e4, -1e4, 1e30, -1e30, 0.0, 100.0]])
    for y in (0.0, 1.0):
        here, z = on_device(gpu, z, "float32")
        labels, exact = on_device(gpu, np.full_like(z, y), "float32")
        value, vjp = bodies.binary_cross_entropy(here, labels, reduction="sum")
        want, want_vjp = OPS["binary_cross_entropy"].generic(z, exact, reduction="sum")
        check(gpu, value, want, "float32", "value")
        check(gpu, vjp(1.0)[0], want_vjp(1.0)[0], "float32", "gradient")


def test_probabilities_of_0_and_1_cost_a_finite_number(gpu, bodies):
    p, y = np.array([[0.0, 1.0, 0.0, 1.0]], np.float32), np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)
    value, vjp = bodies.binary_cross_entropy_from_probabilities(gpu.asarray(p), gpu.asarray(y))
    want, want_vjp = OPS["binary_cross_entropy_from_probabilities"].generic(p, y)
    check(gpu, value, np.float64(want), "float32", "value")
    np.testing.assert_allclose(on_host(gpu, vjp(1.0)[0]), want_vjp(1.0)[0], rtol=1e-5)


def test_mixed_dtypes_are_left_to_the_generic_body(gpu, bodies, launched):
    prediction, exact = on_device(gpu, numbers(8, 3), "float16")
    target, exact_target = on_device(gpu, numbers(8, 3, seed=1), "float32")
    value, vjp = bodies.mse(prediction, target)
    want, want_vjp = OPS["mse"].generic(exact, exact_target)
    check(gpu, value, want, "float16", "value")
    gradient = vjp(1.0)[0]
    assert gradient.dtype == prediction.dtype
    assert not launched
    check(gpu, gradient, want_vjp(1.0)[0], "float16", "gradient")
