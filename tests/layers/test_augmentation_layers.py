"""RandomFlip and RandomShift: active in training only, each sample changed for itself, alike on every backend."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Run
from xpnn.random import RandomKey
from xpnn.testing import check_layer

IMAGES = np.arange(40 * 5 * 4 * 2, dtype=np.float64).reshape(40, 5, 4, 2) + 1.0


def key(step=0):
    return RandomKey(3, 7, step)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (xpnn.RandomFlip(), (5, 3, 4, 2)),
        (xpnn.RandomFlip("vertical", rate=0.25), (5, 3, 4, 1)),
        (xpnn.RandomShift(1), (5, 3, 4, 2)),
        (xpnn.RandomShift((2, 0)), (5, 3, 4, 2)),
        (xpnn.RandomShift(3), (5, 6, 1)),
        (xpnn.RandomShift(1), (0, 3, 4, 2)),
        (xpnn.RandomFlip(), (1, 1, 1, 1)),
    ],
    ids=repr,
)
def test_right_on_every_row(backend, dtype, training, layer, shape):
    check_layer(layer, shape, backend, dtype, training=training)


@pytest.mark.parametrize("axis", [-1, -2, -3, 1, 3])
def test_a_flip_mirrors_whole_samples(axis):
    y, _ = xpnn.ops.random_flip(IMAGES, key(), 0.5, axis=axis)
    flipped = [sample for sample in range(40) if not np.array_equal(y[sample], IMAGES[sample])]
    for sample in flipped:
        place = axis - 1 if axis > 0 else axis
        assert np.array_equal(y[sample], np.flip(IMAGES[sample], axis=place))
    assert 8 <= len(flipped) <= 32


@pytest.mark.parametrize("axis", [0, 4, -4, 9])
def test_a_flip_of_another_axis_is_refused(axis):
    with pytest.raises(ShapeError, match=f"axis {axis} is none of those of one sample"):
        xpnn.ops.random_flip(IMAGES, key(), 0.5, axis=axis)


def shifted(sample, rows, columns):
    """The sample read from (rows, columns) on, zeros outside."""
    padded = np.pad(sample, ((9, 9), (9, 9), (0, 0)))
    return padded[9 + rows : 9 + rows + sample.shape[0], 9 + columns : 9 + columns + sample.shape[1]]


def test_a_shift_is_a_crop_of_the_padded_sample_and_all_shifts_occur():
    images = np.tile(IMAGES, (10, 1, 1, 1))
    y, vjp = xpnn.ops.random_shift(images, key(), largest=(2, 1))
    found = []
    for sample, result in zip(images, y, strict=True):
        matches = [(a, b) for a in range(-2, 3) for b in range(-1, 2) if np.array_equal(shifted(sample, a, b), result)]
        assert len(matches) == 1
        found += matches
    counts = [found.count((a, b)) for a in range(-2, 3) for b in range(-1, 2)]
    # 400 samples over 15 shifts: 26.7 each, with a standard deviation of 5
    assert min(counts) >= 8
    assert max(counts) <= 50
    dy = np.random.default_rng(0).standard_normal(y.shape)
    (dx,) = vjp(dy)
    for (a, b), moved, back in zip(found, dy, dx, strict=True):
        assert np.array_equal(shifted(moved, -a, -b), back)


def test_the_layer_is_the_identity_outside_of_training():
    for layer in (xpnn.RandomFlip(), xpnn.RandomShift(2)):
        y, backward = layer.forward(IMAGES, {}, Run())
        assert y is IMAGES
        assert backward(y) == (y, {})


def test_each_step_and_each_layer_draws_anew(backend, dtype):
    x = backend.asarray(IMAGES, dtype)
    twice = xpnn.Sequential(xpnn.RandomShift(2), xpnn.RandomShift(2))
    _, tree = twice.build((5, 4, 2))

    def result(layer, step):
        values, _ = layer.forward(x, tree, Run(True, 3, step, input_gradient=False))
        return backend.to_host(values)

    one = result(xpnn.RandomShift(2), 0)
    assert (one != result(xpnn.RandomShift(2), 1)).any()
    assert (one != result(twice, 0)).any()
    host, _ = twice.forward(IMAGES, tree, Run(True, 3, 4, input_gradient=False))
    assert np.array_equal(result(twice, 4), host)


def losses(backend, dtype, layers, **options):
    network = xpnn.Network(*layers, xpnn.Flatten(), xpnn.Dense(3), backend=backend, dtype=dtype, seed=1)
    x, y = np.sin(IMAGES), np.arange(40) % 3
    history = network.fit(
        x, y, loss="cross_entropy", optimizer="adam", epochs=4, batch_size=16, verbose=False, **options
    )
    return history["loss"]


def test_a_training_is_the_same_on_every_row(backend, dtype):
    layers = [xpnn.RandomFlip(), xpnn.RandomShift(1)]
    got = losses(backend, dtype, layers)
    want = losses(xpnn.get_backend("numpy:readonly"), "float64", layers)
    assert got == pytest.approx(want, rel=1e-4 if dtype == "float32" else 1e-10)
    assert got != pytest.approx(losses(backend, dtype, []), rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xpnn.RandomFlip("sideways"), 'choose "horizontal" or "vertical"'),
        (lambda: xpnn.RandomFlip(rate=1.0), r"a probability in \[0, 1\)"),
        (lambda: xpnn.RandomShift(0), "a shift of RandomShift"),
        (lambda: xpnn.RandomShift(-1), "a shift of RandomShift"),
        (lambda: xpnn.RandomShift(1.5), "a shift of RandomShift"),
        (lambda: xpnn.RandomShift(()), "give shifts of at most 16383"),
        (lambda: xpnn.RandomShift(20000), "give shifts of at most 16383"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (xpnn.RandomFlip(), (64,), r"wants images \(height, width, channels\)"),
        (xpnn.RandomFlip(), (8, 8), "wants images"),
        (xpnn.RandomShift(1), (64,), r"wants samples \(\*spatial, channels\)"),
        (xpnn.RandomShift((1, 1)), (8, 3), "with 2 spatial axes and channels"),
        (xpnn.RandomShift(4), (8, 4, 3), "a shift of 4 would move all of axis 1 out of sight; give at most 3"),
    ],
)
def test_samples_of_another_shape(layer, shape, message):
    with pytest.raises(ShapeError, match=message):
        xpnn.Network(layer, input_shape=shape)


def test_saved_and_loaded(tmp_path):
    network = xpnn.Network(
        xpnn.RandomShift((1, 2)),
        xpnn.RandomFlip("vertical", 0.25),
        xpnn.Flatten(),
        xpnn.Dense(2),
        input_shape=(4, 5, 1),
    )
    network.save(tmp_path / "m.safetensors")
    same = xpnn.Network.load(tmp_path / "m.safetensors")
    assert same.root.layers[:2] == network.root.layers[:2]
    assert repr(same.root.layers[0]) == "RandomShift(largest=(1, 2))"
