"""Handwritten digits: 1797 real images of 8 x 8 pixels, read by a network with one hidden layer.

    h      = max(x W_1 + b_1, 0)       x: the 64 pixels as a row, from 0 to 1; h: 256 units
    scores = h W_2 + b_2               one score for each digit
    L      = -mean log softmax(scores)[label]

trained by Adam on mini-batches, in which each unit of h is dropped with probability 0.3. A fifth of the images, chosen
by the seed, is held out.
"""

from __future__ import annotations

import argparse

import xpnn
from xpnn.data import encode_target, load_dataset, split


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, print the accuracy on the images held out, and return the last loss and accuracies."""
    parser = argparse.ArgumentParser(description="Handwritten digits")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the network")
    options = parser.parse_args(arguments)

    digits = load_dataset("digits")
    images, labels = digits.x / 16, digits.y
    target = encode_target(digits.y, digits.target, digits.task, digits.class_names)
    trained_on, held_out = split(target, 0.2, options.seed)

    net = xpnn.Network(
        xpnn.Dense(256),
        xpnn.ReLU(),
        xpnn.Dropout(0.3),
        xpnn.Dense(10),
        backend=options.backend,
        dtype="float32",
        seed=options.seed,
    )
    history = net.fit(
        images[trained_on],
        labels[trained_on],
        loss="cross_entropy",
        optimizer=xpnn.Adam(2e-3),
        epochs=options.epochs,
        batch_size=32,
        validation_data=(images[held_out], labels[held_out]),
        metrics=["accuracy"],
    )
    last = {name: values[-1] for name, values in history.items()}
    print(f"loss {last['loss']:.4f}, accuracy {last['accuracy']:.4f} on {len(trained_on)} images trained on")
    print(f"loss {last['val_loss']:.4f}, accuracy {last['val_accuracy']:.4f} on {len(held_out)} images held out")

    answers = net.predict(images[held_out[:10]]).argmax(axis=1)
    print(f"the first ten: read as {answers.tolist()}, are {labels[held_out[:10]].tolist()}")
    return last


if __name__ == "__main__":
    main()
