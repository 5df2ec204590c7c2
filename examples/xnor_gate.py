"""The XNOR gate learned by a 2-3-1 network of sigmoids: full-batch gradient descent on the squared error.

    a_1 = sigma(X W_1 + b_1)           X: the four inputs as rows, W_1: (2, 3)
    a_2 = sigma(a_1 W_2 + b_2)         W_2: (3, 1)
    F   = ||a_2 - y||^2                the sum over the four inputs, with gradient 2 (a_2 - y)

    theta <- theta - 0.1 grad F        10000 times

The loss that is printed is the mean squared error, F / 4: about 0.25 at first, near 0.001 at the end. Which convention
is descended on matters: with the gradient of the mean, a quarter as long, the same 10000 steps end near 0.02.
The weights start as W ~ U(-l, l) with l = sqrt(6 / (inputs + outputs)) (Glorot), the biases at zero.
"""

from __future__ import annotations

import argparse

import xpnn

X = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
y = [[1.0], [0.0], [0.0], [1.0]]


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, print the loss every 1000 epochs, and return the last loss and the worst output."""
    parser = argparse.ArgumentParser(description="XNOR with sigmoids")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--epochs", type=int, default=10000)
    options = parser.parse_args(arguments)

    net = xpnn.Network(
        xpnn.Dense(2, 3), xpnn.Sigmoid(), xpnn.Dense(3, 1), xpnn.Sigmoid(), backend=options.backend, seed=0
    )
    history = net.fit(
        X,
        y,
        loss=xpnn.MSE(reduction="sum"),
        optimizer=xpnn.SGD(0.1),
        epochs=options.epochs,
        batch_size=None,
        verbose=False,
    )

    losses = [F / 4 for F in history["loss"]]
    for epoch in range(0, options.epochs, 1000):
        print(f"epoch {epoch:5d}: loss {losses[epoch]:.6f}")
    print(f"epoch {options.epochs:5d}: loss {losses[-1]:.6f}")

    worst = 0.0
    for row, target, output in zip(X, y, net.predict(X), strict=True):
        answer = float(output[0])
        print(f"{row[0]:.0f} XNOR {row[1]:.0f} = {target[0]:.0f}, network {answer:.3f}")
        worst = max(worst, abs(answer - target[0]))
    return {"first_loss": losses[0], "loss": losses[-1], "worst": worst}


if __name__ == "__main__":
    main()
