"""The XOR gate learned by a 2-3-1 network of hyperbolic tangents, one sample at a time.

    a_1 = tanh(x W_1 + b_1)            x: one input as a row, W_1: (2, 3)
    a_2 = tanh(a_1 W_2 + b_2)          W_2: (3, 1)
    E   = mean((a_2 - y)^2)            gradient 2 (a_2 - y) / n, with n = 1 output

    theta <- theta - 0.1 grad E        after every sample; 1000 epochs of four samples in shuffled order

With --plot the output over the square is drawn; the decision boundary is where it is 1/2.
"""

from __future__ import annotations

import argparse

import xpnn

X = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
y = [[0.0], [1.0], [1.0], [0.0]]


def plot_decision_boundary(net: xpnn.Network, path: str, cells: int = 100) -> None:
    """Draw the network's output on a square around the four inputs."""
    from matplotlib.figure import Figure

    ticks = [-0.25 + 1.5 * i / cells for i in range(cells + 1)]
    output = net.predict([[x1, x2] for x2 in ticks for x1 in ticks])
    square = output.reshape(len(ticks), len(ticks))

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    shades = axes.contourf(ticks, ticks, square, levels=20, cmap="RdBu_r", vmin=-0.5, vmax=1.5)
    axes.contour(ticks, ticks, square, levels=[0.5], colors="black")
    for (x1, x2), (target,) in zip(X, y, strict=True):
        axes.plot(x1, x2, marker="o" if target else "s", color="white", markeredgecolor="black", markersize=10)
        axes.annotate(f"{target:.0f}", (x1, x2), xytext=(9, 9), textcoords="offset points")
    axes.set(title="XOR: network output, boundary at 1/2", xlabel="x1", ylabel="x2", aspect="equal")
    figure.colorbar(shades, label="output")
    figure.savefig(path, dpi=120)
    print(f"decision boundary drawn in {path}")


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, print the error as it falls, and return the last error and the worst output."""
    parser = argparse.ArgumentParser(description="XOR with tanh")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--plot", metavar="PATH", help="draw the decision boundary into this file (needs matplotlib)")
    options = parser.parse_args(arguments)

    net = xpnn.Network(xpnn.Dense(2, 3), xpnn.Tanh(), xpnn.Dense(3, 1), xpnn.Tanh(), backend=options.backend, seed=4)
    history = net.fit(
        X, y, loss="mse", optimizer=xpnn.SGD(0.1), epochs=options.epochs, batch_size=1, shuffle=True, verbose=False
    )

    errors = history["loss"]
    for epoch in range(0, options.epochs, 100):
        print(f"epoch {epoch:4d}: error {errors[epoch]:.6f}")
    print(f"epoch {options.epochs:4d}: error {errors[-1]:.6f}")

    worst = 0.0
    for row, target, output in zip(X, y, net.predict(X), strict=True):
        answer = float(output[0])
        print(f"{row[0]:.0f} XOR {row[1]:.0f} = {target[0]:.0f}, network {answer:.3f}")
        worst = max(worst, abs(answer - target[0]))
    if options.plot:
        plot_decision_boundary(net, options.plot)
    return {"first_error": errors[0], "error": errors[-1], "worst": worst}


if __name__ == "__main__":
    main()
