"""The gradients of a network with L layers, from the formulas of matrix calculus, against the library's.

A sample is a row x of length n_0, its target a row y. With a_0 = x the network is, for i = 1 ... L,

    z_i = a_{i-1} W_i + b_i            W_i of shape (n_{i-1}, n_i)
    a_i = f(z_i)                       f = tanh, f'(z) = 1 - tanh(z)^2
    c   = 1/2 ||a_L - y||^2

Its Jacobians are dz_{i+1}/da_i = W_{i+1}^T and da_i/dz_i = D_i, the diagonal matrix of f'(z_i). The chain rule is
their product, from the cost back to layer i:

    dc/dz_i = (a_L - y) D_L W_L^T D_{L-1} W_{L-1}^T ... W_{i+1}^T D_i
    dc/dW_i = a_{i-1}^T (dc/dz_i)      an outer product: a column times a row
    dc/db_i = dc/dz_i

Over a batch the cost is the sum over the samples, and so are the gradients. Read from left to right, the product of
Jacobians is backpropagation: delta_L = (a_L - y) * f'(z_L), delta_i = (delta_{i+1} W_{i+1}^T) * f'(z_i).

The case L = 1, n_1 = 1 is the perceptron. With f the logistic function, a = 1 / (1 + exp(-(w . x + b))):

    dc/dw_j = (a - y) a (1 - a) x_j
    dc/db   = (a - y) a (1 - a)
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import xpnn


def jacobian_product(
    backend: Any, weights: list[Any], biases: list[Any], x: Any, y: Any
) -> tuple[list[Any], list[Any]]:
    """dc/dW_i and dc/db_i for one sample: x of shape (1, n_0), y of shape (1, n_L)."""
    xp = backend.xp
    a = [x]
    D = []
    for W, b in zip(weights, biases, strict=True):
        z = a[-1] @ W + b
        a.append(xp.tanh(z))
        slope = 1 - xp.tanh(z) ** 2
        D.append(xp.eye(b.shape[0], dtype=b.dtype, device=backend.device) * slope)

    dW, db = [], []
    dc_dz = (a[-1] - y) @ D[-1]
    for i in reversed(range(len(weights))):
        dW.insert(0, a[i].T @ dc_dz)
        db.insert(0, dc_dz[0, ...])
        if i > 0:
            dc_dz = dc_dz @ weights[i].T @ D[i - 1]
    return dW, db


def largest_difference(xp: Any, first: Any, second: Any) -> float:
    """max |first - second|."""
    return float(xp.max(xp.abs(first - second)))


def compare_layers(backend: Any, widths: list[int], samples: int) -> float:
    """The largest difference between the library's gradients and the closed form's, over all W_i and b_i."""
    xp = backend.xp
    layers = []
    for i in range(1, len(widths)):
        layers += [xpnn.Dense(widths[i - 1], widths[i]), xpnn.Tanh()]
    net = xpnn.Network(layers, backend=backend, dtype="float64", seed=0)
    X, Y = random_rows(samples, widths[0]), random_rows(samples, widths[-1], stream=1)
    _, gradients = net.loss_and_gradients(X, Y, loss=xpnn.MSE(reduction="half_sum"))

    # The names count layers, and every second one is a tanh: W_i is "0.weight", "2.weight", ...
    L = len(widths) - 1
    weights = [net.parameters[f"{2 * i}.weight"] for i in range(L)]
    biases = [net.parameters[f"{2 * i}.bias"] for i in range(L)]
    X, Y = backend.asarray(X), backend.asarray(Y)
    dW = [xp.zeros_like(W) for W in weights]
    db = [xp.zeros_like(b) for b in biases]
    for n in range(samples):
        dW_n, db_n = jacobian_product(backend, weights, biases, X[n : n + 1, ...], Y[n : n + 1, ...])
        dW = [total + part for total, part in zip(dW, dW_n, strict=True)]
        db = [total + part for total, part in zip(db, db_n, strict=True)]

    worst = 0.0
    for i in range(L):
        weight_difference = largest_difference(xp, gradients[f"{2 * i}.weight"], dW[i])
        bias_difference = largest_difference(xp, gradients[f"{2 * i}.bias"], db[i])
        print(f"layer {i + 1}: |difference in dc/dW| <= {weight_difference:.1e}, in dc/db <= {bias_difference:.1e}")
        worst = max(worst, weight_difference, bias_difference)
    return worst


def compare_perceptron(backend: Any) -> float:
    """The same for a single perceptron, computed by hand with Python's own numbers."""
    w, b = [0.5, -1.0, 2.0], 0.25
    x, y = [1.0, 2.0, -0.5], 1.0
    a = 1 / (1 + math.exp(-(sum(w_j * x_j for w_j, x_j in zip(w, x, strict=True)) + b)))
    dc_db = (a - y) * a * (1 - a)
    dc_dw = [dc_db * x_j for x_j in x]

    z = backend.asarray([w], "float64")
    weight, bias = z.T, backend.asarray([b], "float64")
    prediction, vjp = xpnn.ops.linear(backend.asarray([x], "float64"), weight, bias, activation="sigmoid")
    _, loss_vjp = xpnn.ops.mse(prediction, backend.asarray([[y]], "float64"), reduction="half_sum")
    _, dweight, dbias = vjp(loss_vjp(1.0)[0])
    worst = max(abs(float(dweight[j, 0]) - dc_dw[j]) for j in range(3))
    worst = max(worst, abs(float(dbias[0]) - dc_db))
    print(f"perceptron: dc/dw = {[round(d, 6) for d in dc_dw]}, dc/db = {dc_db:.6f}, differences <= {worst:.1e}")
    return worst


def random_rows(rows: int, columns: int, stream: int = 0) -> Any:
    """Random numbers on (-1, 1), the same on every backend."""
    key = xpnn.random.stream(xpnn.random.TESTING, stream)
    return 2 * xpnn.random.uniform(0, key, 0, (rows, columns)) - 1


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Compare, print, and return the largest differences."""
    parser = argparse.ArgumentParser(description="Closed-form gradients against the library's")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 7, 5, 6, 3], help="n_0 n_1 ... n_L")
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args(arguments)
    backend = xpnn.get_backend(options.backend)
    backend.enable_float64()  # JAX wants to be asked for it

    print(f"widths {options.widths}, {options.samples} samples, float64, backend {backend.spec}")
    return {
        "layers": compare_layers(backend, options.widths, options.samples),
        "perceptron": compare_perceptron(backend),
    }


if __name__ == "__main__":
    main()
