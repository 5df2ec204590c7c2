"""PyTorch's own losses, in float64, agree with ours: values and gradients."""

from __future__ import annotations

import numpy as np
import pytest

from xpnn import ops
from xpnn.dispatch import without_overrides

torch = pytest.importorskip("torch", reason="the independent tier compares with PyTorch: pip install torch==2.13.0")
F = torch.nn.functional

RNG = np.random.default_rng(20)
X, T = RNG.normal(size=(6, 4)) * 2.0, RNG.normal(size=(6, 4)) * 2.0
WEIGHT = RNG.uniform(0.5, 2.0, 6)
LABELS = np.array([0, 3, 1, 1, 2, 3])
BITS = (RNG.uniform(size=(6, 4)) > 0.5).astype(float)
UNIT = RNG.uniform(0.05, 0.95, (6, 4))
ROWS = UNIT / UNIT.sum(axis=1, keepdims=True)
LOG_ROWS = np.log(ROWS)
CLASS_WEIGHTS = (0.5, 2.0, 1.0, 3.0)
POSITIVE_WEIGHTS = (0.5, 2.0, 1.0, 3.0)


def close(got, want):
    got, want = np.asarray(got), np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


def ours(op, *arrays, **options):
    value, vjp = op(*arrays, **options)
    gradients = vjp(1.0)
    with without_overrides():
        generic_value, generic_vjp = op(*arrays, **options)
        close(value, generic_value)
        close(gradients[0], generic_vjp(1.0)[0])
    return value, gradients


def theirs(function, *arrays, wanted=1):
    """The value, and the gradients with respect to the first `wanted` arrays."""
    tensors = [torch.tensor(array, requires_grad=index < wanted) for index, array in enumerate(arrays)]
    value = function(*tensors)
    return value.detach().numpy(), [g.numpy() for g in torch.autograd.grad(value, tensors[:wanted])]


def compare(op, arrays, function, wanted=1, **options):
    value, gradients = ours(op, *arrays, **options)
    their_value, their_gradients = theirs(function, *arrays[:2], wanted=wanted)
    close(value, their_value)
    for mine, other in zip(gradients[:wanted], their_gradients, strict=True):
        close(mine, other)


def weighted_mean(function):
    """Their loss of single elements, averaged with sample weights as we define it."""

    def loss(x, t):
        losses = function(x, t)
        weight = torch.tensor(WEIGHT)
        by_sample = losses.reshape(6, -1).mean(dim=1)
        return (by_sample * weight).sum() / weight.sum()

    return loss


ELEMENTWISE = {
    "mse": (ops.mse, F.mse_loss, (X, T), {}, {}),
    "mae": (ops.mae, F.l1_loss, (X, T), {}, {}),
    "huber": (ops.huber, F.huber_loss, (X, T), {"delta": 0.7}, {"delta": 0.7}),
    "huber-1": (ops.huber, F.smooth_l1_loss, (X, T), {}, {}),
    "binary": (ops.binary_cross_entropy, F.binary_cross_entropy_with_logits, (X, BITS), {}, {}),
    "binary-soft": (ops.binary_cross_entropy, F.binary_cross_entropy_with_logits, (X, UNIT), {}, {}),
    "binary-positive": (
        ops.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        (X, UNIT),
        {"positive_weight": POSITIVE_WEIGHTS},
        {"pos_weight": torch.tensor(POSITIVE_WEIGHTS, dtype=torch.float64)},
    ),
    "binary-probabilities": (
        ops.binary_cross_entropy_from_probabilities,
        F.binary_cross_entropy,
        (UNIT, BITS),
        {},
        {},
    ),
    "kl": (ops.kl_divergence, F.kl_div, (LOG_ROWS, ROWS[::-1].copy()), {}, {}),
    "kl-log": (
        ops.kl_divergence,
        F.kl_div,
        (LOG_ROWS, LOG_ROWS[::-1].copy()),
        {"log_target": True},
        {"log_target": True},
    ),
}
BOTH_DIFFERENTIABLE = {"mse", "mae", "huber", "huber-1", "kl", "kl-log"}


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch_mean", "half_sum"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name, reduction):
    op, function, arrays, options, their_options = ELEMENTWISE[name]
    theirs_reduction = "mean" if reduction == "mean" else "sum"
    scale = {"mean": 1.0, "sum": 1.0, "batch_mean": 1.0 / 6.0, "half_sum": 0.5}[reduction]
    if function is F.kl_div and reduction == "mean":
        theirs_reduction, scale = "sum", 1.0 / 24.0  # PyTorch warns of its own mean, which divides by 24 numbers here

    def their_loss(x, t):
        return scale * function(x, t, reduction=theirs_reduction, **their_options)

    wanted = 2 if name in BOTH_DIFFERENTIABLE else 1
    compare(op, arrays, their_loss, wanted, reduction=reduction, **options)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_weighted(name):
    op, function, arrays, options, their_options = ELEMENTWISE[name]
    loss = weighted_mean(lambda x, t: function(x, t, reduction="none", **their_options))
    compare(op, (*arrays, WEIGHT), loss, reduction="mean", **options)


def test_kl_divergence_is_batchmean_by_default():
    compare(ops.kl_divergence, (LOG_ROWS, ROWS[::-1].copy()), lambda x, t: F.kl_div(x, t, reduction="batchmean"))


def class_kernel(kind):
    return {
        "logits": (ops.cross_entropy, X, F.cross_entropy),
        # PyTorch has no cross-entropy of probabilities: the negative log-likelihood of their logarithm is one
        "probabilities": (
            ops.cross_entropy_from_probabilities,
            ROWS,
            lambda p, t, **options: F.nll_loss(torch.log(p), t, **options),
        ),
        "log_probabilities": (ops.nll, LOG_ROWS, F.nll_loss),
    }[kind]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignore", [None, 3, -100])
@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("kind", ["logits", "probabilities", "log_probabilities"])
def test_integer_labels(kind, class_weights, ignore, reduction):
    op, prediction, function = class_kernel(kind)
    labels = LABELS.copy()
    if ignore == -100:
        labels[1] = -100
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    their_ignore = {} if ignore is None else {"ignore_index": ignore}

    def loss(x, t):
        return function(x, t, weight=weight, reduction=reduction, **their_ignore)

    compare(op, (prediction, labels), loss, class_weights=class_weights, ignore_index=ignore, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignore", [None, 1])
@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_label_smoothing(smoothing, class_weights, ignore, reduction):
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    their_ignore = {} if ignore is None else {"ignore_index": ignore}

    def loss(x, t):
        return F.cross_entropy(x, t, weight=weight, reduction=reduction, label_smoothing=smoothing, **their_ignore)

    compare(
        ops.cross_entropy,
        (X, LABELS),
        loss,
        label_smoothing=smoothing,
        class_weights=class_weights,
        ignore_index=ignore,
        reduction=reduction,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels(smoothing, class_weights, reduction):
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)

    def loss(x, t):
        return F.cross_entropy(x, t, weight=weight, reduction=reduction, label_smoothing=smoothing)

    options = {"label_smoothing": smoothing, "class_weights": class_weights, "reduction": reduction}
    compare(ops.cross_entropy, (X, ROWS), loss, **options)

    # behind a softmax, the cross-entropy of probabilities is the same loss; the chain rule gives its gradient
    def loss_of_probabilities(p, t):
        return F.cross_entropy(torch.log(p), t, weight=weight, reduction=reduction, label_smoothing=smoothing)

    value, (slope, *_) = ours(ops.cross_entropy_from_probabilities, ROWS, ROWS[::-1].copy(), **options)
    their_value, (their_slope,) = theirs(loss_of_probabilities, ROWS, ROWS[::-1].copy())
    close(value, their_value)

    def through_softmax(gradient):
        return ROWS * (gradient - np.sum(gradient * ROWS, axis=1, keepdims=True))

    close(through_softmax(slope), through_softmax(their_slope))


@pytest.mark.parametrize("options", [{}, {"class_weights": CLASS_WEIGHTS}, {"ignore_index": 1}])
def test_labels_at_positions_with_sample_weights(options):
    """(batch, positions, classes) for us, (batch, classes, positions) for PyTorch."""
    logits = RNG.normal(size=(6, 5, 4))
    labels = RNG.integers(0, 4, (6, 5))
    their_options = dict(options)
    effective = np.ones((6, 5)) * WEIGHT[:, None]
    if "class_weights" in options:
        their_options = {"weight": torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)}
        effective = effective * np.array(CLASS_WEIGHTS)[labels]
    if "ignore_index" in options:
        effective = effective * (labels != 1)

    def loss(x, t):
        losses = F.cross_entropy(x.permute(0, 2, 1), t, reduction="none", **their_options)
        return (losses * torch.tensor(WEIGHT)[:, None]).sum() / effective.sum()

    compare(ops.cross_entropy, (logits, labels, WEIGHT), loss, **options)


@pytest.mark.parametrize("eps", [1e-8, 3.0])
def test_cosine(eps):
    def loss(x, t):
        return 1.0 - F.cosine_similarity(x, t, dim=-1, eps=eps)

    wanted = 2 if eps < 1.0 else 1  # PyTorch differentiates through the length even where eps stands in for it
    if wanted == 2:
        compare(ops.cosine_distance, (X, T), lambda x, t: loss(x, t).mean(), wanted, eps=eps)
        compare(ops.cosine_distance, (X, T, WEIGHT), weighted_mean(loss), eps=eps)
    else:
        value, _ = ours(ops.cosine_distance, X, T, eps=eps)
        close(value, theirs(lambda x, t: loss(x, t).mean(), X, T)[0])


def test_cosine_agrees_with_the_embedding_loss():
    value, _ = ours(ops.cosine_distance, X, T)
    want = F.cosine_embedding_loss(torch.tensor(X), torch.tensor(T), torch.ones(6, dtype=torch.float64))
    np.testing.assert_allclose(value, want.numpy(), rtol=1e-10)


def test_hinge():
    signs = 2.0 * BITS - 1.0
    compare(ops.hinge, (X, signs), lambda x, t: torch.clamp(1.0 - t * x, min=0.0).mean())
    loss = weighted_mean(lambda x, t: torch.clamp(1.0 - t * x, min=0.0))
    compare(ops.hinge, (X, signs, WEIGHT), loss)


def test_categorical_hinge():
    def losses(x, t):
        right = torch.nn.functional.one_hot(t, 4).bool()
        rival = torch.max(x.masked_fill(right, float("-inf")), dim=1).values
        return torch.clamp(1.0 + rival - x[right], min=0.0)

    compare(ops.categorical_hinge, (X, LABELS), lambda x, t: losses(x, t).mean())
    compare(ops.categorical_hinge, (X, LABELS, WEIGHT), weighted_mean(losses))


def test_categorical_hinge_of_two_classes_is_their_multi_margin_loss():
    labels = (LABELS > 1).astype(np.int64)
    scores = X[:, :2].copy()
    compare(ops.categorical_hinge, (scores, labels), lambda x, t: 2.0 * F.multi_margin_loss(x, t))
