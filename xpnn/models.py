"""Networks that are used often, as lists of layers: `xpnn.Network(*xpnn.models.cnn(10))`."""

from __future__ import annotations

from typing import Any

from xpnn import layers
from xpnn.config import check_integer, check_number
from xpnn.errors import ConfigError
from xpnn.layers.layer import Layer


def mlp(outputs: int, hidden: tuple[int, ...] = (64, 32), activation: Any = layers.ReLU) -> list[Layer]:
    """A multilayer perceptron: Dense layers with an activation behind each, and a Dense layer for the outputs.

    Args:
        outputs: how many numbers come out; one for each class.
        hidden: the units of the hidden layers; none for a linear model.
        activation: the class of the activation layers.

    Raises:
        ConfigError: an argument makes no sense.
    """
    found: list[Layer] = []
    for units in hidden:
        found += [layers.Dense(units), activation()]
    return [*found, layers.Dense(outputs)]


def cnn(
    outputs: int,
    filters: tuple[int, ...] = (32, 64),
    units: int = 128,
    dropout: float = 0.5,
    augmentation: tuple[Layer, ...] | list[Layer] = (),
) -> list[Layer]:
    """A convolutional network in the manner of LeNet-5 (LeCun, Bottou, Bengio and Haffner, Proc. IEEE 86, 1998).

    For each number of filters two 3 x 3 convolutions with ReLU, and max-pooling, which halves height and width; then a
    hidden Dense layer with dropout. For images (height, width, channels), whose sides are at least 2 to the power of
    the number of poolings.

    Args:
        outputs: how many numbers come out; one for each class.
        filters: channels of the convolutions before each pooling.
        units: of the hidden Dense layer.
        dropout: the share of these that is dropped in training.
        augmentation: layers that come first, such as RandomShift(1).

    Raises:
        ConfigError: an argument makes no sense.
    """
    _check_filters(filters)
    found: list[Layer] = list(augmentation)
    for channels in filters:
        for _ in range(2):
            found += [layers.Conv2D(channels, 3, padding="same", weight_initializer="he_normal"), layers.ReLU()]
        found.append(layers.MaxPool2D(2))
    found += [layers.Flatten(), layers.Dense(units), layers.ReLU()]
    if check_number("dropout", dropout, "a probability in [0, 1)", lambda rate: 0.0 <= rate < 1.0):
        found.append(layers.Dropout(dropout))
    return [*found, layers.Dense(outputs)]


def resnet(
    outputs: int,
    filters: tuple[int, ...] = (16, 32, 64),
    blocks: int = 1,
    augmentation: tuple[Layer, ...] | list[Layer] = (),
) -> list[Layer]:
    """A residual network for small images (He, Zhang, Ren and Sun, "Deep residual learning for image recognition",
    CVPR 2016, section 4.2).

    A 3 x 3 convolution, then for each number of filters a stage of blocks y = ReLU(s(x) + f(x)), with f two 3 x 3
    convolutions, each with batch normalisation. The first block of each stage but the first halves height and width;
    its shortcut s is a 1 x 1 convolution, elsewhere the identity. At the end the mean over all places, and a Dense
    layer. With three stages of n blocks, 6 n + 2 layers have weights (shortcuts not counted).

    Args:
        outputs: how many numbers come out; one for each class.
        filters: channels of each stage.
        blocks: how many blocks a stage has.
        augmentation: layers that come first, such as RandomFlip().

    Raises:
        ConfigError: an argument makes no sense.
    """
    _check_filters(filters)
    check_integer("blocks", blocks)
    found: list[Layer] = [*augmentation, *_convolution(filters[0]), layers.ReLU()]
    for stage, channels in enumerate(filters):
        for block in range(blocks):
            narrows = stage > 0 and block == 0
            found += [residual_block(channels, 2 if narrows else 1, project=narrows), layers.ReLU()]
    return [*found, layers.GlobalAveragePool2D(), layers.Dense(outputs)]


def residual_block(channels: int, stride: int = 1, project: bool = False) -> Layer:
    """s(x) + f(x), with f two 3 x 3 convolutions that are normalised, and s the identity or a 1 x 1 convolution.

    Args:
        channels: of the result.
        stride: of the first convolution, and of s.
        project: True makes s a 1 x 1 convolution: where the channels change, or the stride is not 1.
    """
    shortcut = list(_convolution(channels, 1, stride)) if project else None
    return layers.Residual(
        *_convolution(channels, 3, stride), layers.ReLU(), *_convolution(channels), shortcut=shortcut
    )


def _convolution(channels: int, kernel: int = 3, stride: int = 1) -> tuple[Layer, Layer]:
    """A convolution and its normalisation, whose bias makes one in the convolution needless."""
    return (
        layers.Conv2D(channels, kernel, stride, padding="same", bias=False, weight_initializer="he_normal"),
        layers.BatchNorm(),
    )


def _check_filters(filters: tuple[int, ...]) -> None:
    if not isinstance(filters, (tuple, list)) or not filters:
        raise ConfigError(f"filters={filters!r} makes no sense; give channels for each stage, as in (16, 32)")
