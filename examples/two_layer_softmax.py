"""A two-layer softmax classifier on three spiral arms, by mini-batch gradient descent.

    z      = X W_1 + b_1               X: (n, 2), W_1: (2, 100)
    h      = max(z, 0)
    scores = h W_2 + b_2               W_2: (100, 3)
    p      = softmax(scores)           p_k = exp(scores_k) / sum_j exp(scores_j)
    L      = -1/n sum_i log p_i[y_i]   categorical cross-entropy, y_i the label of sample i

Its gradient at the scores is the probability less one at the label, and the others follow by the chain rule:

    dscores = (p - 1[y]) / n
    dW_2 = h^T dscores                 db_2 = sum over the rows of dscores
    dz   = dscores W_2^T where z > 0, else 0
    dW_1 = X^T dz                      db_1 = sum over the rows of dz

These are compared with the library's, before training and after it.
"""

from __future__ import annotations

import argparse
import math

import xpnn

CLASSES = 3


def spirals(samples_per_class: int, seed: int = 0) -> tuple[list[list[float]], list[int]]:
    """Points on three spiral arms with noise in the angle, and the number of the arm."""
    noise = xpnn.random.uniform(seed, xpnn.random.stream(xpnn.random.TESTING), 0, (CLASSES, samples_per_class))
    points, labels = [], []
    for arm in range(CLASSES):
        for i in range(samples_per_class):
            radius = i / (samples_per_class - 1)
            angle = 4 * (arm + radius) + 0.7 * (float(noise[arm, i]) - 0.5)
            points.append([radius * math.sin(angle), radius * math.cos(angle)])
            labels.append(arm)
    return points, labels


def check_gradients(net: xpnn.Network, points: list[list[float]], labels: list[int]) -> dict[str, float]:
    """The largest difference between the library's gradients and the closed forms, for the scores and each weight."""
    backend = net.backend
    xp = backend.xp
    X, y = backend.asarray(points, "float64"), backend.asarray(labels, "int64")
    W1, b1, W2, b2 = (net.parameters[name] for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
    n = X.shape[0]

    z = X @ W1 + b1
    h = xp.maximum(z, xp.zeros_like(z))
    scores = h @ W2 + b2
    e = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
    p = e / xp.sum(e, axis=1, keepdims=True)
    one_at_label = xp.astype(y[:, None] == xp.arange(CLASSES, device=backend.device)[None, :], p.dtype)

    dscores = (p - one_at_label) / n
    dW2, db2 = h.T @ dscores, xp.sum(dscores, axis=0)
    dz = xp.where(z > 0, dscores @ W2.T, xp.zeros_like(z))
    dW1, db1 = X.T @ dz, xp.sum(dz, axis=0)

    _, vjp = xpnn.CrossEntropy()(scores, y)
    _, gradients = net.loss_and_gradients(X, y, loss="cross_entropy")
    pairs = {
        "scores": (vjp(1.0)[0], dscores),
        "W_1": (gradients["0.weight"], dW1),
        "b_1": (gradients["0.bias"], db1),
        "W_2": (gradients["2.weight"], dW2),
        "b_2": (gradients["2.bias"], db2),
    }
    return {name: float(xp.max(xp.abs(mine - formula))) for name, (mine, formula) in pairs.items()}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Check the gradients, train, check them again; return the differences, the loss and the accuracies."""
    parser = argparse.ArgumentParser(description="Two-layer softmax classifier on spirals")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--samples", type=int, default=200, help="per class")
    options = parser.parse_args(arguments)
    backend = xpnn.get_backend(options.backend)
    backend.enable_float64()  # JAX wants to be asked for it

    points, labels = spirals(options.samples)
    new_points, new_labels = spirals(options.samples, seed=1)
    net = xpnn.Network(
        xpnn.Dense(2, 100), xpnn.ReLU(), xpnn.Dense(100, CLASSES), backend=backend, dtype="float64", seed=0
    )
    before = check_gradients(net, points, labels)
    history = net.fit(
        points,
        labels,
        loss="cross_entropy",
        optimizer=xpnn.SGD(0.5),
        epochs=options.epochs,
        batch_size=32,
        validation_data=(new_points, new_labels),
        metrics=["accuracy"],
        verbose=False,
    )
    after = check_gradients(net, points, labels)

    print("largest difference from the closed form, before training and after:")
    for name in before:
        print(f"  {name:6s} {before[name]:.1e}  {after[name]:.1e}")
    last = {name: values[-1] for name, values in history.items()}
    print(f"epoch {options.epochs}: loss {last['loss']:.4f}, accuracy {last['accuracy']:.3f}")
    print(f"on new points: loss {last['val_loss']:.4f}, accuracy {last['val_accuracy']:.3f}")
    worst = max(*before.values(), *after.values())
    return {"gradient_difference": worst, "first_loss": history["loss"][0], **last}


if __name__ == "__main__":
    main()
