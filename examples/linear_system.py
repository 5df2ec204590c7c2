"""A system of linear equations A x = b, solved by gradient descent.

The solution is the minimum of

    F(x)      = ||A x - b||^2
    grad F(x) = 2 A^T (A x - b)

and descent goes against the gradient, from a random x_0:

    x_{k+1} = x_k - eta grad F(x_k)

1. with a fixed rate, eta = 0.01, for 5000 steps. It is stable while eta < 1 / (largest eigenvalue of A^T A);
2. with the step of Barzilai and Borwein ("Two-point step size gradient methods", 1988), which measures the curvature
   along the last step, until F falls below a threshold:

    s = x_k - x_{k-1},   g = grad F(x_k) - grad F(x_{k-1}),   eta_k = (s . s) / (s . g)

As a network: x is the weight of a Dense layer without bias; the rows of A are the samples, b holds the targets.
"""

from __future__ import annotations

import argparse
from typing import Any

import xpnn

A = [[4.0, 1.0, 0.0, 1.0], [1.0, 3.0, 1.0, 0.0], [0.0, 1.0, 5.0, 1.0], [1.0, 0.0, 1.0, 4.0]]
b = [[7.0], [6.0], [-2.0], [4.0]]  # the solution is (1, 2, -1, 1)


def unknown(backend: Any) -> xpnn.Network:
    """The network a -> a x, with a random x at first."""
    return xpnn.Network(xpnn.Dense(4, 1, bias=False), backend=backend, dtype="float64", seed=0)


def report(backend: Any, name: str, net: xpnn.Network, steps: int) -> float:
    """Print x and return F(x), computed from A itself."""
    xp = backend.xp
    x = net.parameters["0.weight"]
    residual = backend.asarray(A, "float64") @ x - backend.asarray(b, "float64")
    F = float(xp.sum(residual**2))
    numbers = ", ".join(f"{float(x[j, 0]):.6f}" for j in range(4))
    print(f"{name}: x = ({numbers}) after {steps} steps, F(x) = {F:.1e}")
    return F


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Solve the system twice; return how far gradient and solution are from where they should be."""
    parser = argparse.ArgumentParser(description="A x = b by gradient descent")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--steps", type=int, default=5000, help="of descent with the fixed rate; at most so many of BB")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--threshold", type=float, default=1e-20, help="the Barzilai-Borwein step stops at F below it")
    options = parser.parse_args(arguments)
    backend = xpnn.get_backend(options.backend)
    backend.enable_float64()  # JAX wants to be asked for it
    xp = backend.xp
    F = xpnn.MSE(reduction="sum")

    # The gradient at x_0, from the library and from the formula.
    net = unknown(backend)
    _, gradients = net.loss_and_gradients(A, b, loss=F)
    matrix, right_side, x = backend.asarray(A, "float64"), backend.asarray(b, "float64"), net.parameters["0.weight"]
    closed_form = 2 * matrix.T @ (matrix @ x - right_side)
    gradient_difference = float(xp.max(xp.abs(gradients["0.weight"] - closed_form)))
    print(f"largest difference between the library's gradient and 2 A^T (A x - b): {gradient_difference:.1e}")

    # One epoch is one step: the batch is the whole system.
    history = net.fit(
        A, b, loss=F, optimizer=xpnn.SGD(options.rate), epochs=options.steps, batch_size=None, verbose=False
    )
    descent_F = report(backend, "fixed rate      ", net, len(history["loss"]))

    net = unknown(backend)
    history = net.fit(
        A,
        b,
        loss=F,
        optimizer=xpnn.BarzilaiBorwein(options.rate),
        epochs=options.steps,
        batch_size=None,
        verbose=False,
        callbacks=[xpnn.LambdaCallback(on_epoch_end=lambda step, logs: logs["loss"] < options.threshold)],
    )
    barzilai_borwein_F = report(backend, "Barzilai-Borwein", net, len(history["loss"]))

    x = net.parameters["0.weight"]
    product = matrix @ x
    print("A x against b: " + ", ".join(f"{float(product[i, 0]):.6f} / {b[i][0]:g}" for i in range(4)))
    return {
        "gradient_difference": gradient_difference,
        "descent_F": descent_F,
        "barzilai_borwein_F": barzilai_borwein_F,
        "barzilai_borwein_steps": len(history["loss"]),
        "solution_error": float(xp.max(xp.abs(product - right_side))),
    }


if __name__ == "__main__":
    main()
