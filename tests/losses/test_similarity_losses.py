"""Dice, focal, triplet and contrastive losses: limits, targets, and training with them."""

import numpy as np
import pytest

import xpnn
from xpnn import ops
from xpnn.backend import get_backend
from xpnn.errors import ConfigError, DataError, ShapeError

NUMPY = get_backend("numpy")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_losses_of_extreme_logits(gamma, dtype):
    logits = np.array([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]], dtype=dtype)
    value, vjp = ops.focal(logits, np.array([0, 0, 1]), gamma=gamma, reduction="sum")
    np.testing.assert_allclose(value, 2e4 + 0.5**gamma * np.log(2.0), rtol=1e-6)
    slope = 0.5**gamma * (0.5 + 0.5 * gamma * np.log(2.0))
    np.testing.assert_allclose(vjp(1.0)[0], [[0.0, 0.0], [-1.0, 1.0], [slope, -slope]], rtol=1e-6)

    logits = np.array([[1e4], [-1e4], [-1e4], [0.0]], dtype=dtype)
    labels = np.array([[1.0], [0.0], [1.0], [1.0]], dtype=dtype)
    value, vjp = ops.binary_focal(logits, labels, gamma=gamma, alpha=None, reduction="sum")
    np.testing.assert_allclose(value, 1e4 + 0.5**gamma * np.log(2.0), rtol=1e-6)
    np.testing.assert_allclose(vjp(1.0)[0], [[0.0], [0.0], [-1.0], [-slope]], rtol=1e-6)


def test_focal_losses_are_cross_entropies_for_gamma_zero():
    rng = np.random.default_rng(1)
    logits, labels, weight = rng.normal(size=(5, 3)), rng.integers(0, 3, 5), rng.uniform(0.5, 2.0, 5)
    options = {"class_weights": (1.0, 2.0, 0.5), "ignore_index": 1}
    want, want_vjp = ops.cross_entropy(logits, labels, weight, **options)
    value, vjp = ops.focal(logits, labels, weight, gamma=0.0, **options)
    np.testing.assert_allclose(value, want, rtol=1e-14)
    np.testing.assert_allclose(vjp(1.0)[0], want_vjp(1.0)[0], rtol=1e-13, atol=1e-16)
    bits = rng.integers(0, 2, (5, 3)).astype(float)
    want, want_vjp = ops.binary_cross_entropy(logits, bits, weight)
    value, vjp = ops.binary_focal(logits, bits, weight, gamma=0.0, alpha=0.5)
    np.testing.assert_allclose(2.0 * value, want, rtol=1e-14)
    np.testing.assert_allclose(2.0 * vjp(1.0)[0], want_vjp(1.0)[0], rtol=1e-13)


def test_dice_of_right_wrong_and_empty_masks():
    masks = np.array([[[1.0], [1.0], [0.0]], [[1.0], [0.0], [0.0]], [[0.0], [0.0], [0.0]]])
    found = np.array([[[1.0], [1.0], [0.0]], [[0.0], [1.0], [1.0]], [[0.0], [0.0], [0.0]]])
    for rows, want in (((0,), 0.0), ((1,), 1.0 - 1.0 / 4.0), ((2,), 0.0)):
        value, _ = ops.dice(found[list(rows)], masks[list(rows)])
        assert value == want


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (ops.dice, (np.zeros((0, 4, 3)), np.zeros((0, 4, 3)))),
        (ops.focal, (np.zeros((0, 3)), np.zeros(0, int))),
        (ops.binary_focal, (np.zeros((0, 3)), np.zeros((0, 3)))),
        (ops.triplet, (np.zeros((0, 3)),) * 3),
        (ops.triplet_mining, (np.zeros((0, 3)), np.zeros(0, int))),
        (ops.info_nce, (np.zeros((0, 3)),) * 2),
        (ops.info_nce_of_views, (np.zeros((0, 2, 3)),)),
    ],
)
def test_no_samples(call, arguments):
    value, vjp = call(*arguments)
    assert value == 0.0
    assert vjp(1.0)[0].shape == arguments[0].shape


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_triplets_of_equal_rows_have_no_gradient_of_their_own(dtype):
    rows = np.ones((4, 3), dtype=dtype)
    value, vjp = ops.triplet_mining(rows, np.array([0, 0, 1, 1]), margin=0.5)
    assert value == 0.5
    np.testing.assert_array_equal(vjp(1.0)[0], np.zeros((4, 3)))
    value, vjp = ops.triplet(rows, rows, rows, margin=0.25)
    assert value == 0.25
    assert all((gradient == 0).all() for gradient in vjp(1.0)[:3])


def test_rows_without_a_triplet_lose_nothing():
    rows = np.random.default_rng(3).normal(size=(4, 3))
    for labels in ([0, 1, 2, 3], [5, 5, 5, 5]):
        value, vjp = ops.triplet_mining(rows, np.array(labels))
        assert value == 0.0
        np.testing.assert_array_equal(vjp(1.0)[0], np.zeros((4, 3)))
    value, _ = ops.triplet_mining(rows[:1], np.array([0]))
    assert value == 0.0


@pytest.mark.parametrize("mining", ["hard", "semihard"])
def test_triplets_far_from_the_origin_are_chosen_as_near_it(mining):
    """In float32, the squared lengths of such rows have no digits left for their distances."""
    rows = (np.random.default_rng(4).integers(-64, 65, (12, 3)) / 128.0).astype(np.float32)
    labels = np.arange(12) % 3
    near, near_vjp = ops.triplet_mining(rows, labels, mining=mining)
    far, far_vjp = ops.triplet_mining(rows + np.float32(8192.0), labels, mining=mining)
    np.testing.assert_array_equal(far, near)
    np.testing.assert_array_equal(far_vjp(1.0)[0], near_vjp(1.0)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_info_nce_of_vectors_without_length_and_of_any_length(dtype):
    zeros = np.zeros((3, 2), dtype=dtype)
    value, vjp = ops.info_nce(zeros, zeros)
    np.testing.assert_allclose(value, np.log(3.0), rtol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in vjp(1.0)[:2])
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 5, 4)).astype(dtype)
    value, _ = ops.info_nce(first, second)
    longer, vjp = ops.info_nce(np.asarray(1e30 * first, dtype=dtype), second)
    np.testing.assert_allclose(longer, value, rtol=1e-5)
    assert np.isfinite(vjp(1.0)[0]).all()
    # partners that agree exactly, at a temperature as low as any: no overflow
    value, vjp = ops.info_nce(first, first, temperature=1e-4)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    assert np.isfinite(vjp(1.0)[0]).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.dice(np.zeros((2, 3)), np.zeros((2, 2))), ShapeError, "dice: labels of shape"),
        (lambda: ops.dice(np.zeros(2), np.zeros(2)), ShapeError, "give .batch, ..., classes."),
        (lambda: ops.dice(np.zeros((2, 3)), np.zeros((2, 3)), smooth=0.0), ConfigError, "smooth=0.0"),
        (lambda: ops.focal(np.zeros((2, 3)), np.zeros(2, int), gamma=-1.0), ConfigError, "gamma=-1.0"),
        (lambda: ops.binary_focal(np.zeros((2, 3)), np.zeros(2)), ShapeError, "binary_focal"),
        (lambda: ops.triplet(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(2)), ShapeError, "triplet"),
        (lambda: ops.triplet_mining(np.zeros((2, 3)), np.zeros(3, int)), ShapeError, "one label for each"),
        (lambda: ops.triplet_mining(np.zeros((2, 3)), np.zeros(2, int), mining="x"), ConfigError, "mining='x'"),
        (lambda: ops.info_nce(np.zeros((2, 3)), np.zeros((3, 3))), ShapeError, "info_nce"),
        (lambda: ops.info_nce(np.zeros((2, 1, 3)), np.zeros((2, 1, 3))), ShapeError, "give .batch, features."),
        (lambda: ops.info_nce(np.zeros((2, 3)), np.zeros((2, 3)), temperature=0.0), ConfigError, "temperature=0.0"),
        (lambda: ops.info_nce_of_views(np.zeros((2, 3, 3))), ShapeError, "give .batch, 2, features."),
    ],
)
def test_arguments_that_do_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_targets_of_dice():
    labels = xpnn.Dice().prepare(np.array([[0, 2], [1, 1]]), (2, 3), NUMPY, "float32")
    assert labels.dtype == np.int64
    masks = xpnn.Dice().prepare(np.ones((2, 2, 3)), (2, 3), NUMPY, "float32")
    assert masks.dtype == np.float32
    single = xpnn.Dice().prepare(np.ones((2, 4, 4), dtype=np.int64), (4, 4, 1), NUMPY, "float32")
    assert single.shape == (2, 4, 4, 1)
    with pytest.raises(DataError, match="numbers from 255 to 255; scale the masks"):
        xpnn.Dice().prepare(np.full((2, 2, 3), 255.0), (2, 3), NUMPY, "float32")


def test_targets_of_triplets_and_pairs():
    labels = xpnn.Triplet().prepare(np.array([[3.0], [-1.0], [3.0]]), (4,), NUMPY, "float32")
    np.testing.assert_array_equal(labels, [3, -1, 3])
    for lonely in ([3, 1, 2], [3, 3, 3], [3]):
        with pytest.raises(DataError, match="of which no triplet can be made"):
            xpnn.Triplet().prepare(np.array(lonely), (4,), NUMPY, "float32")
    with pytest.raises(ConfigError, match=r"loss Triplet wants one vector .* shape \(4, 5\)"):
        xpnn.Triplet().prepare(np.array([3, 1]), (4, 5), NUMPY, "float32")
    with pytest.raises(DataError, match=r"loss Triplet: y has shape .2, 2.; give one integer label"):
        xpnn.Triplet().prepare(np.ones((2, 2)), (4,), NUMPY, "float32")
    assert xpnn.InfoNCE().prepare(np.zeros(6), (2, 4), NUMPY, "float32").shape == (6,)
    assert xpnn.InfoNCE().prepare(np.zeros((6, 4)), (4,), NUMPY, "float32").shape == (6, 4)
    with pytest.raises(ConfigError, match=r"samples of shape \(3, 4\)"):
        xpnn.InfoNCE().prepare(np.zeros(6), (3, 4), NUMPY, "float32")


def fit(network, x, y, loss):
    history = network.fit(x, y, loss=loss, optimizer=xpnn.Adam(0.02), epochs=30, batch_size=None, verbose=False)
    return history["loss"]


def test_views_of_one_sample_find_each_other(backend, dtype):
    rng = np.random.default_rng(4)
    centers = rng.normal(size=(16, 1, 6))
    views = centers + 0.3 * rng.normal(size=(16, 2, 6))
    network = xpnn.Network(xpnn.Dense(8), xpnn.Tanh(), xpnn.Dense(4), backend=backend, dtype=dtype, seed=2)
    losses = fit(network, views, np.zeros(16), xpnn.InfoNCE(temperature=0.2))
    assert losses[-1] < 0.5 * losses[0]


def test_fixed_partners_are_learned(backend, dtype):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(16, 6))
    partners = x @ rng.normal(size=(6, 4))
    network = xpnn.Network(xpnn.Dense(4), backend=backend, dtype=dtype, seed=2)
    losses = fit(network, x, partners, "info_nce")
    assert losses[-1] < 0.5 * losses[0]


def test_triplets_pull_labels_together(backend, dtype):
    rng = np.random.default_rng(6)
    labels = np.arange(18) % 3
    x = np.eye(3)[labels] + 0.4 * rng.normal(size=(18, 3))
    network = xpnn.Network(xpnn.Dense(8), xpnn.Tanh(), xpnn.Dense(2), backend=backend, dtype=dtype, seed=2)
    losses = fit(network, x, labels, xpnn.Triplet(margin=0.5))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("loss", ["dice", "focal", "binary_focal"])
def test_masks_are_learned(backend, dtype, loss):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(12, 5, 2))
    y = (x.sum(axis=-1, keepdims=True) > 0).astype(int)
    end = {"dice": [xpnn.Dense(1), xpnn.Sigmoid()], "focal": [xpnn.Dense(2)], "binary_focal": [xpnn.Dense(1)]}[loss]
    network = xpnn.Network(*end, backend=backend, dtype=dtype, seed=2)
    losses = fit(network, x, y[..., 0] if loss == "focal" else y, loss)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("metric", ["accuracy", "top_2", "f1", "confusion_matrix"])
@pytest.mark.parametrize(
    ("loss", "inputs", "targets"),
    [
        ("ctc", np.ones((4, 2, 3)), np.array([[1, 2]] * 4)),  # as many labels as steps: the shapes would fit
        ("triplet", np.ones((4, 3)), np.array([0, 0, 1, 1])),
        ("info_nce", np.ones((4, 3)), np.ones((4, 4))),
    ],
)
def test_metrics_of_classes_are_refused(loss, inputs, targets, metric):
    network = xpnn.Network(xpnn.Dense(4))
    with pytest.raises(ConfigError, match=f"metric '{metric}' compares .* has no such targets; leave the metric out"):
        network.fit(inputs, targets, loss=loss, optimizer="sgd", metrics=[metric], verbose=0)
