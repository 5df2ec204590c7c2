"""One seed, every backend: the same training run, apart from rounding.

The network has dropout, so that the runs agree only if the initial weights, the order of the data and the dropout
masks do. They are drawn from Philox4x64-10, a function of the seed and a counter, which gives every backend the same
bits. What remains is the order in which each library adds numbers up:

    largest difference = max over the epochs of |loss_backend - loss_numpy| / loss_numpy

It is of the order of the rounding error at first, and grows as the runs drift apart.
"""

from __future__ import annotations

import argparse

import xpnn


def quadrants(samples: int) -> tuple[list[list[float]], list[int]]:
    """Points in a square; the class says whether the two coordinates have the same sign."""
    points = 2 * xpnn.random.uniform(0, xpnn.random.stream(xpnn.random.TESTING), 0, (samples, 2)) - 1
    labels = [int(x1 * x2 > 0) for x1, x2 in points]
    return points, labels


def loss_curve(name: str, dtype: str, epochs: int) -> list[float]:
    """The loss of each epoch of the training run on one backend."""
    backend = xpnn.get_backend(name)
    if dtype == "float64":
        backend.enable_float64()  # JAX wants to be asked for it
    X, y = quadrants(256)
    net = xpnn.Network(
        xpnn.Dense(2, 32),
        xpnn.ReLU(),
        xpnn.Dropout(0.2),
        xpnn.Dense(32),
        xpnn.ReLU(),
        xpnn.Dense(2),
        backend=backend,
        dtype=dtype,
        seed=0,
    )
    history = net.fit(
        X, y, loss="cross_entropy", optimizer=xpnn.Adam(0.01), epochs=epochs, batch_size=32, verbose=False
    )
    return list(history["loss"])


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train on each backend, print and return each one's largest relative difference from NumPy's loss curve."""
    parser = argparse.ArgumentParser(description="The same training run on every backend")
    parser.add_argument("--backend", action="append", help="compare only this one (may be given more than once)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(arguments)

    reasons = xpnn.available_backends()
    names = options.backend or [name for name in reasons if name != "numpy"]
    reference = loss_curve("numpy", options.dtype, options.epochs)
    print(f"{options.dtype}, {options.epochs} epochs; NumPy's loss: first {reference[0]:.6f}, last {reference[-1]:.6f}")

    differences = {}
    for name in names:
        reason = reasons.get(name.partition(":")[0])
        if reason is not None:
            print(f"{name}: not usable here: {reason}")
            continue
        curve = loss_curve(name, options.dtype, options.epochs)
        pairs = zip(curve, reference, strict=True)
        differences[name] = max(abs(loss - numpy_loss) / numpy_loss for loss, numpy_loss in pairs)
        print(f"{name}: last loss {curve[-1]:.6f}, largest relative difference from NumPy's {differences[name]:.1e}")
    return differences


if __name__ == "__main__":
    main()
