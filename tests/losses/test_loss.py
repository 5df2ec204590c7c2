"""Losses as objects: names, settings, what they expect of a network, and how batches make up a data set."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import xpnn
from xpnn.backend import get_backend
from xpnn.config import decode, encode
from xpnn.errors import ConfigError
from xpnn.losses import LOSSES, check_output
from xpnn.ops.reduction import REDUCTIONS

NAMES = [
    "mse",
    "mae",
    "huber",
    "cross_entropy",
    "cross_entropy_from_probabilities",
    "binary_cross_entropy",
    "binary_cross_entropy_from_probabilities",
    "nll",
    "kl_divergence",
    "hinge",
    "categorical_hinge",
    "cosine",
    "ctc",
    "dice",
    "focal",
    "binary_focal",
    "triplet",
    "info_nce",
]
CLASS_LOSSES = (xpnn.CrossEntropy, xpnn.CrossEntropyFromProbabilities, xpnn.NLL, xpnn.Focal)
OF_THE_BATCH = (xpnn.Triplet, xpnn.InfoNCE)
"""Losses that compare samples with each other: those of batches do not make up that of the whole."""


def test_names():
    assert sorted(LOSSES) == sorted(NAMES)
    for name, kind in LOSSES.items():
        assert kind.name == name
        assert getattr(xpnn, kind.__name__) is kind


@pytest.mark.parametrize(
    "loss",
    [
        *(kind() for kind in LOSSES.values()),
        xpnn.MSE(reduction="half_sum"),
        xpnn.Huber(delta=0.5, reduction="sum"),
        xpnn.CrossEntropy(class_weights=[1, 2.5], label_smoothing=0.1, ignore_index=-100),
        xpnn.BinaryCrossEntropy(positive_weight=[2, 3]),
        xpnn.KLDivergence(log_target=True),
        xpnn.CosineDistance(eps=1e-6),
        xpnn.Dice(smooth=0.5, squared=True),
        xpnn.Focal(gamma=1.5, class_weights=[1, 2.5], ignore_index=-1),
        xpnn.BinaryFocal(gamma=0, alpha=None),
        xpnn.Triplet(margin=0.2, mining="semihard", squared=True),
        xpnn.InfoNCE(temperature=0.07, symmetric=False),
    ],
    ids=repr,
)
def test_settings_survive_a_model_file(loss):
    again = decode(encode(loss))
    assert again == loss
    assert type(again) is type(loss)


def test_repr_shows_what_was_set():
    assert repr(xpnn.CrossEntropy()) == "CrossEntropy()"
    assert repr(xpnn.CrossEntropy(class_weights=[1, 2])) == "CrossEntropy(class_weights=(1.0, 2.0))"
    assert repr(xpnn.Huber(0.5)) == "Huber(delta=0.5)"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: xpnn.MSE(reduction="average"), "reduction='average' is unknown; known: mean, sum"),
        (lambda: xpnn.Huber(delta=0.0), "Huber: delta=0.0; give a positive number"),
        (lambda: xpnn.Huber(delta=float("nan")), "delta=nan"),
        (lambda: xpnn.CosineDistance(eps=-1.0), "eps=-1.0"),
        (lambda: xpnn.CrossEntropy(label_smoothing=1.5), "label_smoothing=1.5; give a number from 0 to 1"),
        (lambda: xpnn.CrossEntropy(class_weights=[1.0, -1.0]), "give one finite number >= 0 per class"),
        (lambda: xpnn.NLL(class_weights=[]), "give one finite number >= 0 per class"),
        (lambda: xpnn.NLL(ignore_index=1.0), "ignore_index=1.0; give the integer label"),
        (lambda: xpnn.BinaryCrossEntropy(positive_weight=0.0), "positive_weight=0.0; give a positive number"),
        (lambda: xpnn.Dice(smooth=0.0), "smooth=0.0"),
        (lambda: xpnn.Focal(gamma=-1.0), "gamma=-1.0"),
        (lambda: xpnn.BinaryFocal(alpha=1.5), "alpha=1.5 makes no sense; give a number from 0 to 1"),
        (lambda: xpnn.Triplet(margin=-1.0), "margin=-1.0"),
        (lambda: xpnn.Triplet(mining="soft"), "mining='soft' is unknown; choose 'hard' or 'semihard'"),
        (lambda: xpnn.InfoNCE(temperature=0.0), "temperature=0.0"),
    ],
)
def test_settings_without_sense(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_every_loss_checks_its_reduction():
    for kind in LOSSES.values():
        for reduction in REDUCTIONS:
            loss = kind(reduction=reduction)
            assert loss.averages == reduction.endswith("mean")
        with pytest.raises(ConfigError, match="reduction='nought'"):
            kind(reduction="nought")


# --- what the last layer gives ----------------------------------------------------------------------------------------

FITS = {
    "logits": {"any"},
    "probabilities": {"any", "probabilities"},
    "log_probabilities": {"any", "log_probabilities"},
    "any": {"any", "probabilities", "log_probabilities", "sigmoid"},
}


@pytest.mark.parametrize("kind", ["any", "probabilities", "log_probabilities", "sigmoid"])
@pytest.mark.parametrize("name", NAMES)
def test_output_that_does_not_fit(name, kind):
    loss = LOSSES[name]()
    takes_sigmoid = name in ("binary_cross_entropy_from_probabilities", "dice")
    fits = kind in FITS[loss.expects] or (takes_sigmoid and kind == "sigmoid")
    if fits:
        check_output(loss, kind)
    else:
        with pytest.raises(ConfigError, match=f"loss {type(loss).__name__} wants .* last layer gives .*; write "):
            check_output(loss, kind)


def test_advice_behind_a_softmax():
    with pytest.raises(ConfigError) as error:
        check_output(xpnn.CrossEntropy(), "probabilities")
    assert str(error.value) == (
        "loss CrossEntropy wants logits, and the network's last layer gives probabilities; write "
        'loss="cross_entropy_from_probabilities", or remove the Softmax layer (better: it is faster and more exact)'
    )


@pytest.mark.parametrize(
    "end",
    [
        (xpnn.Softmax(), xpnn.Flatten()),
        (xpnn.Softmax(), xpnn.Reshape(3, 1), xpnn.Flatten()),
        (xpnn.Softmax(), xpnn.Dropout(0.1)),
        (xpnn.Softmax(), xpnn.Sequential()),
        ([xpnn.Dense(3), [xpnn.Softmax(), xpnn.Sequential(xpnn.Flatten())]],),
        (xpnn.Lambda("softmax"),),
        (xpnn.Lambda(xpnn.ops.softmax),),
    ],
    ids=repr,
)
def test_layers_that_keep_the_values_hide_no_softmax(end):
    net = xpnn.Network(xpnn.Dense(2, 3), *end)
    with pytest.raises(ConfigError, match="last layer gives probabilities; write"):
        net.loss_and_gradients([[1.0, 2.0]], [0], loss="cross_entropy")


def test_layers_that_keep_the_values_behind_logits():
    net = xpnn.Network(xpnn.Sequential(), xpnn.Softmax(), xpnn.Dense(2, 3), xpnn.Dropout(0.1), xpnn.Flatten())
    net.check_loss(xpnn.CrossEntropy())
    xpnn.Network(xpnn.Flatten(), input_shape=(3,)).check_loss(xpnn.CrossEntropy())


# --- batches and the data set -----------------------------------------------------------------------------------------


def batches_and_whole(loss, targets, backend, dtype, weighted, cuts=(0, 6, 10)):
    """The loss of ten samples, and the same put together from batches as `total_weight` says."""
    rng = np.random.default_rng(11)
    shape = (10, 2, 3) if isinstance(loss, CLASS_LOSSES) else (10, 3)
    raw = rng.uniform(0.1, 0.9, shape)
    prediction = backend.asarray(raw / raw.sum(axis=-1, keepdims=True), dtype)
    weight = backend.asarray(rng.uniform(0.0, 2.0, 10), dtype) if weighted else None
    target = loss.prepare(targets, shape[1:], backend, dtype)

    def read(x):
        return float(backend.to_host(x)) if backend.owns(x) else float(x)

    whole = read(loss(prediction, target, weight)[0])
    total, total_weight = 0.0, 0.0
    for start, stop in pairwise(cuts):
        rows = (slice(start, stop), ...)
        part = None if weight is None else weight[start:stop]
        with backend.context(), backend.discipline():
            value, _ = loss(prediction[rows], target[rows], part)
            share = loss.total_weight(target[rows], part, value)
        if backend.owns(share):
            assert share.dtype == backend.dtype(dtype)
        total += read(value) * read(share)
        total_weight += read(share)
    return whole, (total / total_weight if loss.averages else total)


def tolerance(dtype):
    return 2e-6 if dtype == "float32" else 1e-13


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "name", [n for n in NAMES if not issubclass(LOSSES[n], (*CLASS_LOSSES, *OF_THE_BATCH, xpnn.CTC))]
)
def test_losses_of_batches_make_up_the_whole(backend, dtype, name, weighted):
    rng = np.random.default_rng(12)
    rows = rng.uniform(0.1, 0.9, (10, 3))
    rows = rows / rows.sum(axis=1, keepdims=True)
    targets = backend.asarray(rng.integers(0, 2, (10, 3)), "int64")
    if name == "categorical_hinge":
        targets = backend.asarray(rng.integers(0, 3, 10), "int64")
    elif name == "kl_divergence":
        targets = backend.asarray(rows, dtype)
    for reduction in ("mean", "batch_mean", "sum"):
        loss = LOSSES[name](reduction=reduction)
        whole, combined = batches_and_whole(loss, targets, backend, dtype, weighted)
        assert combined == pytest.approx(whole, rel=tolerance(dtype))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_index": 1},
        {"class_weights": (0.5, 2.0, 0.0)},
        {"class_weights": (0.5, 2.0, 1.0), "ignore_index": -1},
        {"class_weights": (0.5, 2.0, 1.0), "reduction": "batch_mean"},
        {"ignore_index": 1, "reduction": "sum"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_class_losses_of_batches_make_up_the_whole(backend, dtype, kind, options, weighted):
    labels = np.random.default_rng(13).integers(0, 3, (10, 2))
    labels[6:, :] = options.get("ignore_index", 0)  # the second batch may hold nothing that counts
    whole, combined = batches_and_whole(kind(**options), backend.asarray(labels, "int64"), backend, dtype, weighted)
    assert combined == pytest.approx(whole, rel=tolerance(dtype))
    assert whole != 0.0


def test_soft_labels_count_one_each(backend, dtype):
    rows = np.random.default_rng(14).uniform(0.1, 0.9, (10, 2, 3))
    targets = backend.asarray(rows / rows.sum(axis=-1, keepdims=True), dtype)
    loss = xpnn.CrossEntropy(class_weights=(0.5, 2.0, 1.0), label_smoothing=0.1)
    for weighted in (False, True):
        whole, combined = batches_and_whole(loss, targets, backend, dtype, weighted)
        assert combined == pytest.approx(whole, rel=tolerance(dtype))


def test_total_weight_without_like_takes_the_weights_dtype(backend, dtype):
    loss = xpnn.CrossEntropy(ignore_index=1)
    labels = backend.asarray(np.array([0, 1, 2]), "int64")
    weight = backend.asarray(np.array([1.0, 5.0, 0.5]), dtype)
    assert float(loss.total_weight(labels, weight)) == 1.5
    assert loss.total_weight(labels, weight).dtype == backend.dtype(dtype)
    assert float(loss.total_weight(labels, None)) == 2.0


def test_losses_run_under_jit():
    """One compiled function gives what the eager one gives, with every option that builds arrays inside."""
    jax = pytest.importorskip("jax", reason="only JAX compiles by tracing")
    backend = get_backend("jax")
    logits = backend.asarray(np.random.default_rng(15).normal(size=(5, 3)), "float32")
    labels = backend.asarray(np.array([0, 1, 2, 1, -1]), "int64")
    loss = xpnn.CrossEntropy(class_weights=(0.5, 2.0, 1.0), label_smoothing=0.1, ignore_index=-1)

    def run(logits, labels):
        value, vjp = loss(logits, labels)
        return value, vjp(1.0)[0], loss.total_weight(labels, None, value)

    for eager, compiled in zip(run(logits, labels), jax.jit(run)(logits, labels), strict=True):
        np.testing.assert_allclose(eager, compiled, rtol=1e-6, atol=1e-7)
