"""The kernels of optimizers, norms and clipping against the generic bodies on NumPy in float64."""

import types

import numpy as np
import pytest

from xpnn.dispatch import OPS

SIZES = (1, 3, 15, 16, 17, 1023, 4099)
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

_RATE = 0.0123
_ADAM = (_RATE, 0.9, 0.95, 1e-8, 0.1, 0.05)

# name -> (op, slots, settings, options). A slot that is None is not there; "decays" stands for one for each element.
UPDATES = {
    "sgd": ("sgd", "", (_RATE,), {}),
    "momentum": ("sgd_momentum", "v", (_RATE, 0.9), {}),
    "dampening": ("sgd_momentum", "v", (_RATE, 0.9, 0.75), {}),
    "nesterov": ("sgd_momentum", "v", (_RATE, 0.9), {"nesterov": True}),
    "adam": ("adam", "mv", _ADAM, {}),
    "adam-decay": ("adam", "mv", (*_ADAM, 0.3), {}),
    "adam-decays": ("adam", "mv", (*_ADAM, "decays"), {}),
    "amsgrad": ("amsgrad", "mvl", _ADAM, {}),
    "amsgrad-decays": ("amsgrad", "mvl", (*_ADAM, "decays"), {}),
    "nadam": ("nadam", "mv", (_RATE, 0.02, 0.9, 0.95, 1e-8, 0.05), {}),
    "rmsprop": ("rmsprop", "v-", (_RATE, 0.9, 1e-8), {}),
    "rmsprop-momentum": ("rmsprop", "vm", (_RATE, 0.9, 1e-8, 0.5), {}),
    "centered": ("rmsprop_centered", "vm-", (_RATE, 0.9, 1e-3), {}),
    "centered-momentum": ("rmsprop_centered", "vmm", (_RATE, 0.9, 1e-3, 0.5), {}),
    "adagrad": ("adagrad", "v", (_RATE, 1e-10), {}),
    "adadelta": ("adadelta", "vl", (0.7, 0.9, 1e-6), {}),
    "lion": ("lion", "m", (_RATE, 0.9, 0.99), {}),
    "lion-decay": ("lion", "m", (_RATE, 0.9, 0.99, 0.3), {}),
    "lion-decays": ("lion", "m", (_RATE, 0.9, 0.99, "decays"), {}),
    "moving-average": ("moving_average", "", (0.9,), {}),
}

every_update = pytest.mark.parametrize("name", UPDATES)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
every_dtype = pytest.mark.parametrize("dtype", list(EPS))


@pytest.fixture
def bodies(gpu):
    """The bodies of both families."""
    from xpnn_backends.cupy import bodies_clipping, bodies_optimizers

    return {**bodies_optimizers.BODIES, **bodies_clipping.BODIES}


@pytest.fixture
def launches(gpu, monkeypatch):
    """The names of the kernels that are started, in their order."""
    from xpnn_backends.cupy import bodies_clipping, bodies_optimizers, kernels

    names = []

    def launch(family, name, *rest):
        names.append(name)
        kernels.launch(family, name, *rest)

    monkeypatch.setattr(bodies_optimizers, "launch", launch)
    monkeypatch.setattr(bodies_clipping, "launch", launch)
    return names


def drawn(name, shape, seed=0):
    """(theta, gradient, *slots, *settings) on the host, rounded to float32; second moments are positive."""
    op, slots, settings, options = UPDATES[name]
    generator = np.random.default_rng([seed, *shape])
    arrays = [generator.normal(size=shape), generator.normal(size=shape)]
    for slot in slots:
        if slot == "-":
            arrays.append(None)
        else:
            arrays.append(generator.normal(size=shape) if slot == "m" else generator.uniform(0.5, 2.0, size=shape))
    arguments = [*arrays, *settings]
    arguments = [generator.uniform(0.0, 0.5, size=shape) if isinstance(x, str) else x for x in arguments]
    rounded = [x.astype(np.float32).astype(np.float64) if isinstance(x, np.ndarray) else x for x in arguments]
    return op, rounded, options


def moved(gpu, arguments, dtype, place=lambda x: x):
    """The arguments with arrays on the device, where `place` puts them."""
    return [place(gpu.asarray(x, dtype)) if isinstance(x, np.ndarray) else x for x in arguments]


def shifted(x):
    """The same numbers in an array that begins one element after an address that is a multiple of 16."""
    import cupy

    longer = cupy.empty(x.size + 1, x.dtype)
    view = longer[1:].reshape(x.shape)
    view[...] = x
    return view


def spread(x):
    """The same numbers in every second place of an array."""
    import cupy

    longer = cupy.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    longer[..., ::2] = x
    return longer[..., ::2]


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def assert_near(gpu, got, want, dtype, units=8.0):
    """Within so many units of eps, relative to the largest element."""
    got, want = as_tuple(got), as_tuple(want)
    assert len(got) == len(want)
    for mine, reference in zip(got, want, strict=True):
        assert mine.dtype == gpu.dtype(dtype)
        assert mine.shape == reference.shape
        host = np.asarray(gpu.to_host(mine)).astype(np.float64)
        largest = np.max(np.abs(reference), initial=0.0)
        np.testing.assert_allclose(host, reference, rtol=0.0, atol=units * EPS[dtype] * largest)


def reference_of(op, arguments, options):
    return OPS[op].generic(*arguments, **options)[0]


@both_dtypes
@every_update
def test_update_agrees_for_every_size(name, dtype, gpu, bodies):
    for size in SIZES:
        op, arguments, options = drawn(name, (size,))
        want = reference_of(op, arguments, options)
        for place in (lambda x: x, shifted, spread):
            got, vjp = bodies[op](*moved(gpu, arguments, dtype, place), **options)
            assert vjp is not None
            assert_near(gpu, got, want, dtype)


@both_dtypes
@every_update
def test_donated_arrays_are_overwritten_and_others_are_not(name, dtype, gpu, bodies, launches):
    op, arguments, options = drawn(name, (70, 5))
    want = as_tuple(reference_of(op, arguments, options))
    given = moved(gpu, arguments, dtype)
    copies = [gpu.copy(x) if gpu.owns(x) else x for x in given]

    new, _ = bodies[op](*given, **options)
    assert all(x.data.ptr != y.data.ptr for x in as_tuple(new) for y in given if gpu.owns(y))
    for x, copy in zip(given, copies, strict=True):
        if gpu.owns(x):
            np.testing.assert_array_equal(gpu.to_host(x), gpu.to_host(copy))

    del launches[:]
    donated, vjp = bodies[op](*given, donate=True, **options)
    assert vjp is None
    assert launches == [op]
    theta, gradient, *others = given
    slots = [x for x in others[: len(UPDATES[name][1])] if x is not None]
    assert all(x is y for x, y in zip(as_tuple(donated), (theta, *slots), strict=True))
    assert_near(gpu, donated, want, dtype)
    np.testing.assert_array_equal(gpu.to_host(gradient), gpu.to_host(copies[1]))


@both_dtypes
@every_update
def test_update_in_several_strides(name, dtype, gpu, bodies, monkeypatch):
    """More elements than the grid has threads for: each thread goes on, by packs and at the end by elements."""
    from xpnn_backends.cupy import bodies_optimizers

    monkeypatch.setattr(bodies_optimizers, "blocks_for", lambda *_: 2)
    op, arguments, options = drawn(name, (20003,))
    want = reference_of(op, arguments, options)
    for place in (lambda x: x, shifted):
        got, _ = bodies[op](*moved(gpu, arguments, dtype, place), donate=True, **options)
        assert_near(gpu, got, want, dtype)


@every_update
def test_vjp_is_that_of_the_generic_body(name, gpu, bodies):
    op, arguments, options = drawn(name, (33,))
    want, want_vjp = OPS[op].generic(*arguments, **options)
    got, vjp = bodies[op](*moved(gpu, arguments, "float64"), **options)
    cotangents = [np.random.default_rng(9 + i).normal(size=33) for i in range(len(as_tuple(want)))]
    given = moved(gpu, cotangents, "float64")
    single = not isinstance(want, tuple)
    mine = vjp(given[0] if single else tuple(given))
    reference = want_vjp(cotangents[0] if single else tuple(cotangents))
    assert [x is None for x in mine] == [x is None for x in reference]
    present = [(x, y) for x, y in zip(mine, reference, strict=True) if x is not None]
    assert_near(gpu, tuple(x for x, _ in present), tuple(y for _, y in present), "float64")
    assert_near(gpu, got, want, "float64")


@every_update
def test_numbers_may_be_arrays_without_axes(name, gpu, bodies, launches):
    op, arguments, options = drawn(name, (17,))
    want = reference_of(op, arguments, options)
    given = [gpu.asarray(x, "float64") if isinstance(x, float) else x for x in moved(gpu, arguments, "float32")]
    got, _ = bodies[op](*given, donate=True, **options)
    assert launches == [op]
    assert_near(gpu, got, want, "float32")


@every_update
def test_nothing_to_update(name, gpu, bodies, launches):
    op, arguments, options = drawn(name, (0,))
    got, _ = bodies[op](*moved(gpu, arguments, "float32"), donate=True, **options)
    assert all(x.shape == (0,) for x in as_tuple(got))
    assert launches == []


@both_dtypes
def test_transposed_theta_is_updated(dtype, gpu, bodies):
    """In another order than C it cannot be done in place by the kernel, and need not be."""
    op, arguments, options = drawn("adam", (6, 5))
    want = reference_of(op, arguments, options)
    got, _ = bodies[op](*moved(gpu, arguments, dtype, lambda x: x.T.copy().T), donate=True, **options)
    assert_near(gpu, got, want, dtype)


def test_shapes_that_broadcast_are_left_to_the_generic_body(gpu, bodies, launches):
    theta, gradient = gpu.asarray(np.ones((3, 2)), "float32"), gpu.asarray(np.asarray([1.0, 2.0]), "float32")
    got, _ = bodies["sgd"](theta, gradient, 0.5, donate=True)
    np.testing.assert_array_equal(gpu.to_host(got), [[0.5, 0.0]] * 3)
    assert launches == []


@both_dtypes
def test_add_weight_decay(dtype, gpu, bodies, launches):
    generator = np.random.default_rng(4)
    for size in SIZES:
        gradient, theta, decays = (generator.normal(size=size).astype(np.float32).astype(float) for _ in range(3))
        for decay in (0.3, decays):
            for place in (lambda x: x, shifted, spread):
                given = moved(gpu, [gradient, theta, decay], dtype, place)
                got, vjp = bodies["add_weight_decay"](*given)
                assert_near(gpu, got, gradient + decay * theta, dtype)
                assert_near(gpu, vjp(given[0])[:2], (gradient, decay * gradient), dtype)
    assert launches == ["add_weight_decay"] * (len(SIZES) * 6)


def test_square_of_a_large_gradient_does_not_overflow(gpu, bodies):
    theta, gradient, first, second = moved(gpu, [np.ones(5), np.full(5, 1e20), np.zeros(5), np.zeros(5)], "float32")
    (theta, _, second), _ = bodies["adam"](theta, gradient, first, second, 0.1, 0.9, 0.999, 1e-8, 0.1, 0.001)
    np.testing.assert_allclose(gpu.to_host(second), 1e37, rtol=1e-5)
    np.testing.assert_allclose(gpu.to_host(theta), 0.9, rtol=1e-5)


def test_amsgrad_keeps_a_nan(gpu, bodies):
    nan = np.asarray([np.nan, 1.0, 1.0])
    zero = np.zeros(3)
    for gradient, largest in ((nan, np.ones(3)), (np.ones(3), nan)):
        given = moved(gpu, [np.ones(3), gradient, zero, zero, largest], "float32")
        (theta, _, _, new_largest), _ = bodies["amsgrad"](*given, *_ADAM)
        assert np.isnan(gpu.to_host(theta)).tolist() == [True, False, False]
        assert np.isnan(gpu.to_host(new_largest)).tolist() == [True, False, False]


def test_lion_does_not_move_where_momentum_and_gradient_cancel(gpu, bodies):
    """0.9 m and 0.1 g are rounded to the same number, which a fused product would not see."""
    momentum = np.float32(0.3)
    gradients = np.nextafter(np.float32(-2.7), np.float32([-3.0, 0.0, -2.7]))
    cancelling = gradients[np.float32(0.9) * momentum + np.float32(0.1) * gradients == 0.0]
    assert cancelling.size > 0
    given = [np.ones(cancelling.size), cancelling, np.full(cancelling.size, momentum)]
    (theta, _), _ = bodies["lion"](*moved(gpu, given, "float32"), 0.5, 0.9, 0.99)
    np.testing.assert_array_equal(gpu.to_host(theta), 1.0)


def rounded(x, dtype):
    """x on the host in float64, after a rounding to the dtype."""
    if dtype == "bfloat16":
        import ml_dtypes

        return x.astype(ml_dtypes.bfloat16).astype(np.float64)
    return x.astype(dtype).astype(np.float64)


def norm_inputs(dtype, size, seed=0):
    return rounded(np.random.default_rng([seed, size]).normal(size=size), dtype)


@every_dtype
def test_global_norm_agrees_for_every_size(dtype, gpu, bodies, launches):
    for size in (*SIZES, 70001):
        x, y = norm_inputs(dtype, size), norm_inputs(dtype, 37, 1)
        want = np.sqrt(np.sum(x * x) + np.sum(y * y))
        for place in (lambda x: x, shifted, spread):
            got, _ = bodies["global_norm"](*moved(gpu, [x, y], dtype, place))
            assert_near(gpu, got, np.asarray(want), dtype, 1.0)
    assert launches == ["norm_parts", "norm_parts", "norm"] * (3 * (len(SIZES) + 1))


@every_dtype
def test_norm_has_the_same_bits_wherever_the_array_lies(dtype, gpu, bodies):
    x = gpu.asarray(norm_inputs(dtype, 70001), dtype)
    norms = [bodies["global_norm"](y)[0] for y in (x, shifted(x), gpu.copy(x))]
    assert len({gpu.to_host(norm).tobytes() for norm in norms}) == 1


@every_dtype
def test_clip_by_global_norm_agrees_for_every_size(dtype, gpu, bodies):
    for size in SIZES:
        x, y = norm_inputs(dtype, size), norm_inputs(dtype, 37, 1)
        for limit in (0.5, 1e4):
            want, _ = OPS["clip_by_global_norm"].generic(x, y, limit=limit)
            for place in (lambda x: x, shifted, spread):
                got, _ = bodies["clip_by_global_norm"](*moved(gpu, [x, y], dtype, place), limit=limit)
                assert_near(gpu, got, want, dtype, 2.0)


@both_dtypes
def test_clip_in_several_strides(dtype, gpu, bodies, monkeypatch):
    from xpnn_backends.cupy import bodies_clipping

    monkeypatch.setattr(bodies_clipping, "blocks_for", lambda *_: 2)
    monkeypatch.setattr(bodies_clipping, "_MOST_PARTS", 3)
    x = norm_inputs(dtype, 70001)
    for place in (lambda x: x, shifted):
        given = moved(gpu, [x], dtype, place)
        assert_near(gpu, bodies["global_norm"](*given)[0], np.asarray(np.sqrt(np.sum(x * x))), dtype, 1.0)
        assert_near(gpu, bodies["clip_by_norm"](*given, 0.5)[0], OPS["clip_by_norm"].generic(x, 0.5)[0], dtype)
        assert_near(gpu, bodies["clip_by_value"](*given, 0.5)[0], np.clip(x, -0.5, 0.5), dtype)


@both_dtypes
def test_extreme_norms(dtype, gpu, bodies):
    """No square of these is a number of their dtype, and some sums of squares are none of float64."""
    largest, smallest = (3e38, 1e-44) if dtype == "float32" else (1.5e308, 5e-323)
    normal = {"float32": 1e-30, "float64": 1e-200}[dtype]
    cases = (
        [largest, 0.0, 1.0],
        [largest / 4, -largest / 8, 3.0],
        [smallest, -smallest, smallest, smallest],
        [normal, 2 * normal, 0.0],
        [1.0, smallest, normal],
        [0.0, 0.0],
    )
    for case in cases:
        x = rounded(np.asarray(case), dtype)
        scale = np.max(np.abs(x)) or 1.0
        want = scale * np.sqrt(np.sum((x / scale) ** 2))
        (given,) = moved(gpu, [x], dtype)
        norm = gpu.to_host(bodies["global_norm"](given)[0])
        np.testing.assert_allclose(norm, want, rtol=2.0 * EPS[dtype], atol=smallest / 2)
        for limit in (1.0, 1e-3):
            clipped, _ = bodies["clip_by_norm"](given, limit)
            assert_near(gpu, clipped, OPS["clip_by_norm"].generic(x, limit)[0], dtype, 4.0)


def test_norm_that_is_no_number_of_float64_is_infinite_and_clips(gpu, bodies):
    x = np.full(64, 1e308)
    (given,) = moved(gpu, [x], "float64")
    assert gpu.to_host(bodies["global_norm"](given)[0]) == np.inf
    np.testing.assert_allclose(gpu.to_host(bodies["clip_by_norm"](given, 4.0)[0]), 0.5, rtol=1e-15)


@every_dtype
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_norms_that_are_not_finite(wrong, dtype, gpu, bodies):
    x = rounded(np.asarray([1.0, wrong, -2.0]), dtype)
    (given,) = moved(gpu, [x], dtype)
    norm = float(gpu.to_host(bodies["global_norm"](given)[0]))
    assert np.isnan(norm) if np.isnan(wrong) else norm == np.inf
    clipped = gpu.to_host(bodies["clip_by_norm"](given, 1.0)[0]).astype(np.float64)
    np.testing.assert_array_equal(clipped, [np.nan] * 3 if np.isnan(wrong) else [0.0, np.nan, -0.0])


@both_dtypes
def test_norm_and_clipping_of_empty_blocks(dtype, gpu, bodies, launches):
    empty, x = gpu.asarray(np.zeros((0, 3)), dtype), gpu.asarray(np.asarray([3.0, 4.0]), dtype)
    assert gpu.to_host(bodies["global_norm"](empty, x)[0]) == 5.0
    assert launches == ["norm_parts", "norm"]
    clipped, _ = bodies["clip_by_global_norm"](empty, x, limit=1.0)
    assert clipped[0].shape == (0, 3)
    np.testing.assert_allclose(gpu.to_host(clipped[1]), [0.6, 0.8], rtol=1e-6)
    del launches[:]
    assert gpu.to_host(bodies["global_norm"](empty)[0]) == 0.0
    assert bodies["clip_by_value"](empty, 1.0)[0].shape == (0, 3)
    assert launches == []


def test_vjps_of_clipping_are_those_of_the_generic_bodies(gpu, bodies):
    x, y, dx, dy = (norm_inputs("float64", 6, seed) for seed in range(4))
    on_device = moved(gpu, [x, y, dx, dy], "float64")
    for limit in (0.5, 100.0):
        want = OPS["clip_by_global_norm"].generic(x, y, limit=limit)[1]((dx, dy))
        got = bodies["clip_by_global_norm"](*on_device[:2], limit=limit)[1](tuple(on_device[2:]))
        assert_near(gpu, got, want, "float64")
        for op in ("clip_by_norm", "clip_by_value"):
            want = OPS[op].generic(x, limit)[1](dx)
            assert_near(gpu, bodies[op](on_device[0], limit)[1](on_device[2]), want, "float64")
    want = OPS["global_norm"].generic(x, y)[1](np.asarray(2.0))
    assert_near(gpu, bodies["global_norm"](*on_device[:2])[1](gpu.asarray(np.asarray(2.0))), want, "float64")


@every_dtype
def test_clip_by_value_agrees_for_every_size(dtype, gpu, bodies, launches):
    for size in SIZES:
        x = norm_inputs(dtype, size)
        for place in (lambda x: x, shifted, spread):
            got, _ = bodies["clip_by_value"](*moved(gpu, [x], dtype, place), 0.5)
            assert_near(gpu, got, np.clip(x, -0.5, 0.5), dtype, 0.0)
    assert launches == ["clip_by_value"] * (3 * len(SIZES))


@every_dtype
def test_clip_by_value_of_what_is_not_finite(dtype, gpu, bodies):
    (given,) = moved(gpu, [np.asarray([np.nan, np.inf, -np.inf, 0.25])], dtype)
    clipped = gpu.to_host(bodies["clip_by_value"](given, 0.5)[0]).astype(np.float64)
    np.testing.assert_array_equal(clipped, [np.nan, 0.5, -0.5, 0.25])
    spreading = gpu.to_host(bodies["clip_by_value"](given, np.nan)[0]).astype(np.float64)
    assert np.isnan(spreading).all()


@both_dtypes
def test_limit_from_device_memory(dtype, gpu, bodies):
    """A number of the step is a place in device memory."""
    place = gpu.asarray(np.asarray(0.5), "float64")
    number = types.SimpleNamespace(place=lambda: place.data.ptr)
    x = norm_inputs(dtype, 100)
    (given,) = moved(gpu, [x], dtype)
    assert_near(gpu, bodies["clip_by_value"](given, number)[0], np.clip(x, -0.5, 0.5), dtype)
    assert_near(gpu, bodies["clip_by_norm"](given, number)[0], OPS["clip_by_norm"].generic(x, 0.5)[0], dtype)
    assert_near(gpu, bodies["sgd"](given, given, number)[0], 0.5 * x, dtype)
