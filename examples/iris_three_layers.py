"""Fisher's iris flowers, by a network with three weight layers and half the squared error.

    a_1 = tanh(x W_1 + b_1)            x: four measurements of a flower as a row, W_1: (4, 8)
    a_2 = tanh(a_1 W_2 + b_2)          W_2: (8, 8)
    a_3 = a_2 W_3 + b_3                W_3: (8, 3)
    c   = 1/2 ||a_3 - y||^2            y: 1 at the species, 0 elsewhere; gradient a_3 - y

The loss of a batch is the mean of c over its flowers. The measurements are standardised with the mean and the
standard deviation of the 120 flowers that are trained on; 30 others are held out.
"""

from __future__ import annotations

import argparse

import xpnn
from xpnn.data import Scaling, encode_target, load_dataset, split


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, print loss and accuracy on both parts, and return them."""
    parser = argparse.ArgumentParser(description="Iris with three weight layers")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the network")
    options = parser.parse_args(arguments)

    iris = load_dataset("iris")
    species = encode_target(iris.y, iris.target, iris.task, iris.class_names)
    trained_on, held_out = split(species, 0.2, options.seed)
    X = Scaling.of(iris.x[trained_on]).apply(iris.x)
    y = [[float(label == k) for k in range(3)] for label in species.values]
    y_trained_on, y_held_out = [y[i] for i in trained_on], [y[i] for i in held_out]

    net = xpnn.Network(
        xpnn.Dense(4, 8),
        xpnn.Tanh(),
        xpnn.Dense(8, 8),
        xpnn.Tanh(),
        xpnn.Dense(8, 3),
        backend=options.backend,
        seed=options.seed,
    )
    history = net.fit(
        X[trained_on],
        y_trained_on,
        loss=xpnn.MSE(reduction="half_batch_mean"),
        optimizer=xpnn.SGD(0.1),
        epochs=options.epochs,
        batch_size=10,
        validation_data=(X[held_out], y_held_out),
        metrics=["accuracy"],
        verbose=False,
    )
    for epoch in range(0, options.epochs, 10):
        print(f"epoch {epoch + 1:3d}: loss {history['loss'][epoch]:.4f}, held out {history['val_loss'][epoch]:.4f}")
    last = {name: values[-1] for name, values in history.items()}
    print(f"120 flowers trained on: loss {last['loss']:.4f}, accuracy {last['accuracy']:.3f}")
    print(f"30 flowers held out:    loss {last['val_loss']:.4f}, accuracy {last['val_accuracy']:.3f}")
    return last


if __name__ == "__main__":
    main()
