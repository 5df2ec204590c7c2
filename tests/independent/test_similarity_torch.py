"""Dice, focal, triplet and contrastive losses against PyTorch, or plain formulas under its autograd."""

import numpy as np
import pytest

from xpnn import ops

torch = pytest.importorskip("torch")
F = torch.nn.functional

RNG = np.random.default_rng(6)
WEIGHT = RNG.uniform(0.5, 2.0, 6)


def normal(*shape):
    return RNG.standard_normal(shape)


def compare(result, function, *arrays):
    """Value and gradients of the first arguments of an op are those of `function` under PyTorch's autograd."""
    value, vjp = result
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    want = function(*tensors)
    np.testing.assert_allclose(value, want.item(), rtol=1e-12)
    for mine, other in zip(vjp(1.5), torch.autograd.grad(1.5 * want, tensors), strict=False):
        np.testing.assert_allclose(mine, other.numpy(), rtol=1e-11, atol=1e-13)


def weighted(losses):
    return (losses.mean(dim=tuple(range(1, losses.ndim))) @ torch.tensor(WEIGHT)) / WEIGHT.sum()


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("integers", [False, True])
def test_dice(squared, integers):
    scores = normal(6, 4, 5, 3)
    p = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    labels = RNG.integers(0, 3, (6, 4, 5))
    masks = np.eye(3)[labels]

    def formula(p):
        y = torch.tensor(masks)
        sizes = p**2 + y**2 if squared else p + y
        return weighted(1 - (2 * (p * y).sum(dim=(1, 2)) + 0.5) / (sizes.sum(dim=(1, 2)) + 0.5))

    given = labels if integers else masks
    compare(ops.dice(p, given, WEIGHT, smooth=0.5, squared=squared), formula, p)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
def test_binary_focal(gamma, alpha):
    logits, labels = 3.0 * normal(6, 4), (RNG.uniform(size=(6, 4)) > 0.5).astype(float)

    def formula(z):
        y = torch.tensor(labels)
        entropy = F.binary_cross_entropy_with_logits(z, y, reduction="none")
        right = torch.where(y == 1, torch.sigmoid(z), torch.sigmoid(-z))
        losses = (1 - right) ** gamma * entropy
        if alpha is not None:
            losses = losses * torch.where(y == 1, alpha, 1.0 - alpha)
        return losses.mean()

    compare(ops.binary_focal(logits, labels, gamma=gamma, alpha=alpha), formula, logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal(gamma):
    logits, labels = 2.0 * normal(6, 4), np.array([0, 3, 1, 1, 2, 3])
    class_weights = (0.5, 2.0, 1.0, 3.0)

    def formula(z):
        log_p = F.log_softmax(z, dim=-1)[torch.arange(6), torch.tensor(labels)]
        counts = torch.tensor(class_weights, dtype=torch.float64)[torch.tensor(labels)] * (torch.tensor(labels) != 1)
        weight = counts * torch.tensor(WEIGHT)
        return (-((1 - log_p.exp()) ** gamma) * log_p * weight).sum() / weight.sum()

    result = ops.focal(logits, labels, WEIGHT, gamma=gamma, class_weights=class_weights, ignore_index=1)
    compare(result, formula, logits)


def test_focal_of_soft_labels():
    logits, rows = normal(6, 4), RNG.dirichlet(np.ones(4), 6)

    def formula(z):
        log_p = F.log_softmax(z, dim=-1)
        return -(torch.tensor(rows) * (1 - log_p.exp()) ** 2 * log_p).sum(dim=-1).mean()

    compare(ops.focal(logits, rows), formula, logits)


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_triplet(margin, reduction):
    arrays = [normal(6, 4) for _ in range(3)]
    result = ops.triplet(*arrays, margin=margin, reduction=reduction)
    compare(result, lambda *x: F.triplet_margin_loss(*x, margin=margin, eps=0.0, reduction=reduction), *arrays)


def test_triplet_at_the_kink():
    anchor, positive, negative = np.zeros((1, 2)), np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])
    result = ops.triplet(anchor, positive, negative, margin=1.0)
    compare(result, lambda *x: F.triplet_margin_loss(*x, margin=1.0, eps=0.0), anchor, positive, negative)


def test_triplet_of_squared_distances():
    arrays = [normal(6, 4) for _ in range(3)]

    def formula(a, p, n):
        return F.relu(((a - p) ** 2).sum(dim=-1) - ((a - n) ** 2).sum(dim=-1) + 2.0).mean()

    compare(ops.triplet(*arrays, margin=2.0, squared=True), formula, *arrays)


@pytest.mark.parametrize("mining", ["hard", "semihard"])
@pytest.mark.parametrize("squared", [False, True])
def test_mined_triplets(mining, squared):
    """Against loops over all rows. The label 7 occurs once."""
    x, labels = normal(9, 4), np.array([0, 1, 0, 2, 1, 0, 2, 7, 1])

    def formula(x):
        losses = []
        for a in range(9):
            distances = ((x[a] - x) ** 2).sum(dim=-1)
            if not squared:
                distances = distances.clamp_min(1e-300).sqrt()
            same = torch.tensor(labels == labels[a])
            others = [i for i in range(9) if same[i] and i != a]
            if not others:
                continue
            near = distances[others].max()
            far = distances[~same]
            if mining == "semihard":
                farther = far[far > near]
                far = farther.min() if len(farther) else far.max()
            else:
                far = far.min()
            losses.append(F.relu(near - far + 0.8))
        assert len(losses) == 8
        return torch.stack(losses).mean()

    compare(ops.triplet_mining(x, labels, margin=0.8, mining=mining, squared=squared), formula, x)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce(temperature, symmetric):
    arrays = normal(6, 4), normal(6, 4)

    def formula(first, second):
        scores = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T / temperature
        numbers = torch.arange(6)
        loss = F.cross_entropy(scores, numbers)
        return 0.5 * (loss + F.cross_entropy(scores.T, numbers)) if symmetric else loss

    options = {"temperature": temperature, "symmetric": symmetric}
    compare(ops.info_nce(*arrays, **options), formula, *arrays)
    views = np.stack(arrays, axis=1)
    compare(ops.info_nce_of_views(views, **options), lambda v: formula(v[:, 0], v[:, 1]), views)
