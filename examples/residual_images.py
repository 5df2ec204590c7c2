"""A small residual network on images: handwritten digits, or a folder or file of your own.

    python examples/residual_images.py
    python examples/residual_images.py photos --resize 32 --flip      one sub-folder of pictures for each class
    python examples/residual_images.py mnist                          a folder of MNIST's IDX files
    python examples/residual_images.py images.npz                     arrays "images" and "labels"

A block of the network adds to its input what two convolutions make of it, so that the gradient reaches the first layer
undiminished (He, Zhang, Ren and Sun, CVPR 2016):

    f(x) = norm(norm-relu(x * K_1) * K_2)      norm: batch normalisation
    y    = max(s(x) + f(x), 0)                 s: the identity; a 1 x 1 convolution where size or channels change

After three stages, each half as high and wide as the one before and with twice the channels, the mean over all places
goes into a Dense layer. In each step of the training the images are shifted by a random number of pixels, and with
--flip half of them are mirrored; the learning rate falls along half a cosine. A fifth of the images is held out.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import xpnn
from xpnn.data import Images, encode_target, load_dataset, read_images, split


def images_from(options: argparse.Namespace) -> Images:
    """What the first argument names; the digits that scikit-learn carries without one."""
    if options.data is None:
        digits = load_dataset("digits")
        target = encode_target(digits.y, digits.target, digits.task, digits.class_names)
        return Images((digits.x / 16).reshape(-1, 8, 8, 1), target.values, target.class_names)
    return read_images(options.data, resize=options.resize)


def held_out_part(images: Images, seed: int) -> tuple[Any, Any, Any, Any]:
    """(x, y) to train on and (x, y) to validate with: the parts of the files, or a fifth chosen by the seed."""
    if images.held_out is not None:
        return images.x, images.y, images.held_out.x, images.held_out.y
    target = encode_target(images.y, "class", "classification", images.class_names)
    rows, others = split(target, 0.2, seed)
    return images.x[rows], images.y[rows], images.x[others], images.y[others]


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, print the accuracy on the images held out, and return the last loss and accuracies."""
    parser = argparse.ArgumentParser(description="a residual network on images")
    parser.add_argument("data", nargs="?", help="a folder of pictures or of IDX files, or an NPZ file; else digits")
    parser.add_argument("--resize", type=int, help="make all pictures of a folder so high and wide")
    parser.add_argument("--flip", action="store_true", help="mirror images at random: not for digits or letters")
    parser.add_argument("--shift", type=int, default=1, help="shift images by up to so many pixels; 0 for none")
    parser.add_argument("--filters", type=int, nargs="+", default=[16, 32, 64], help="channels of each stage")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the network")
    options = parser.parse_args(arguments)

    images = images_from(options)
    x, y, other_x, other_y = held_out_part(images, options.seed)
    mean, deviation = x.mean(), x.std()

    augmentation: list[xpnn.Layer] = [xpnn.RandomFlip()] if options.flip else []
    if options.shift:
        augmentation.append(xpnn.RandomShift(options.shift))
    net = xpnn.Network(
        *xpnn.models.resnet(len(images.class_names), tuple(options.filters), augmentation=augmentation),
        backend=options.backend,
        seed=options.seed,
    )
    steps = options.epochs * math.ceil(len(x) / 32)
    history = net.fit(
        (x - mean) / deviation,
        y,
        loss="cross_entropy",
        optimizer=xpnn.AdamW(xpnn.Cosine(3e-3, steps), weight_decay=1e-2),
        epochs=options.epochs,
        batch_size=32,
        validation_data=((other_x - mean) / deviation, other_y),
        metrics=["accuracy"],
    )
    last = {name: values[-1] for name, values in history.items()}
    print(f"{len(images.class_names)} classes, {len(x)} images of {'x'.join(map(str, x.shape[1:]))} to train on")
    print(f"loss {last['loss']:.4f}, accuracy {last['accuracy']:.4f} in the last epoch of the training")
    print(f"loss {last['val_loss']:.4f}, accuracy {last['val_accuracy']:.4f} on {len(other_x)} images held out")
    return last


if __name__ == "__main__":
    main()
