"""Handwritten digits read by a convolutional network: convolution, max-pooling, dropout.

    x    : 8 x 8 pixels from 0 to 1, one channel
    a_1  = max(x * K_1 + b_1, 0)           *: 3 x 3 convolution, 32 filters
    p_1  = pool(max(a_1 * K_2 + b_2, 0))   32 filters; pool: the largest of each 2 x 2 places, 4 x 4 are left
    a_2  = max(p_1 * K_3 + b_3, 0)         64 filters
    p_2  = pool(max(a_2 * K_4 + b_4, 0))   64 filters; 2 x 2 places are left
    h    = max(p_2 W_5 + b_5, 0)           128 units, half of them dropped in training
    s    = h W_6 + b_6                     one score for each digit
    L    = -mean log softmax(s)[label]

trained by Adam on mini-batches, with a rate that falls along half a cosine. In each step of the training each image is
shifted by up to one pixel in each direction: a digit beside its place is still that digit. A fifth of the 1797 real
images of scikit-learn, chosen by the seed, is held out.
"""

from __future__ import annotations

import argparse
import math

import xpnn
from xpnn.data import encode_target, load_dataset, split


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, print the accuracy on the images held out, and return the last loss and accuracies."""
    parser = argparse.ArgumentParser(description="Handwritten digits, convolutional")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the network")
    options = parser.parse_args(arguments)

    digits = load_dataset("digits")
    images = (digits.x / 16).reshape(-1, 8, 8, 1)
    target = encode_target(digits.y, digits.target, digits.task, digits.class_names)
    trained_on, held_out = split(target, 0.2, options.seed)

    net = xpnn.Network(
        xpnn.RandomShift(1),
        xpnn.Conv2D(32, 3, padding="same", weight_initializer="he_normal"),
        xpnn.ReLU(),
        xpnn.Conv2D(32, 3, padding="same", weight_initializer="he_normal"),
        xpnn.ReLU(),
        xpnn.MaxPool2D(2),
        xpnn.Conv2D(64, 3, padding="same", weight_initializer="he_normal"),
        xpnn.ReLU(),
        xpnn.Conv2D(64, 3, padding="same", weight_initializer="he_normal"),
        xpnn.ReLU(),
        xpnn.MaxPool2D(2),
        xpnn.Flatten(),
        xpnn.Dense(128),
        xpnn.ReLU(),
        xpnn.Dropout(0.5),
        xpnn.Dense(10),
        backend=options.backend,
        seed=options.seed,
    )
    steps = options.epochs * math.ceil(len(trained_on) / 32)
    history = net.fit(
        images[trained_on],
        target.values[trained_on],
        loss="cross_entropy",
        optimizer=xpnn.Adam(xpnn.Cosine(2e-3, steps)),
        epochs=options.epochs,
        batch_size=32,
        validation_data=(images[held_out], target.values[held_out]),
        metrics=["accuracy"],
    )
    last = {name: values[-1] for name, values in history.items()}
    print(f"loss {last['loss']:.4f}, accuracy {last['accuracy']:.4f} while {len(trained_on)} images were trained on")
    print(f"loss {last['val_loss']:.4f}, accuracy {last['val_accuracy']:.4f} on {len(held_out)} images held out")

    answers = net.predict(images[held_out]).argmax(axis=1)
    wrong = [row for row, answer in zip(held_out, answers, strict=True) if answer != target.values[row]]
    print(f"read wrong: {', '.join(f'image {row} ({target.values[row]})' for row in wrong) or 'none'}")
    return last


if __name__ == "__main__":
    main()
