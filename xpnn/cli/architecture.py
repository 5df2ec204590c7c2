"""Which network `xpnn train` trains: --model, --layers, --activation, --augment."""

from __future__ import annotations

import inspect
from typing import Any

from xpnn import layers as all_layers
from xpnn import models
from xpnn.data import Table
from xpnn.data.table import check_channels_last
from xpnn.errors import ConfigError, DataError

MODELS = ("mlp", "cnn", "resnet")

# What a table gets whose reader proposes nothing better.
_SIZES: dict[str, tuple[int, ...]] = {"mlp": (64, 32), "cnn": (32, 64), "resnet": (16, 32, 64)}
_ACTIVATION = "relu"
_AUGMENTATIONS = ("flip", "shift")


def network_layers(
    table: Table,
    outputs: int,
    model: str | None,
    sizes: str | None,
    activation: str | None,
    augment: str | None,
) -> list[Any]:
    """The layers of the network for a table, whose rows are its inputs.

    Args:
        table: the data.
        outputs: how many numbers come out.
        model: "mlp", "cnn" or "resnet"; None for what suits the data.
        sizes: units of the hidden layers, or channels of the stages, as in "64,32" or "none".
        activation: the name of an activation; for "mlp".
        augment: "flip", "shift", or both with a comma; for "cnn" and "resnet".

    Raises:
        ConfigError: an option makes no sense, alone or with the others.
        DataError: the rows are no images, or too small ones for the network.
    """
    name = table.defaults.get("model", "mlp") if model is None else model.lower()
    if name not in MODELS:
        raise ConfigError(f"--model {model!r} is unknown; choose {', '.join(MODELS)}")
    given = None if sizes is None else _sizes(sizes)
    if name == "mlp":
        if augment is not None:
            raise ConfigError("--augment changes images; it belongs to --model cnn and --model resnet")
        hidden = table.defaults.get("layers", _SIZES["mlp"]) if given is None else given
        kind = activation_class(table.defaults.get("activation", _ACTIVATION) if activation is None else activation)
        return models.mlp(outputs, tuple(hidden), kind)
    if activation is not None:
        raise ConfigError(f"--activation belongs to --model mlp; --model {name} has ReLU")
    shape = table.image_shape
    if shape is None:
        raise DataError(
            f"--model {name} wants images, and these data are none; give a folder of pictures or of IDX files, an NPZ "
            "file with images, or --model mlp"
        )
    check_channels_last(shape)
    filters = _SIZES[name] if given is None else given
    if not filters:
        raise ConfigError(f"--layers none leaves --model {name} without a convolution; give channels as in 32,64")
    changes = _augmentation(augment, shape)
    if name == "cnn":
        _check_size(shape, len(filters))
        return [all_layers.Reshape(*shape), *models.cnn(outputs, filters, augmentation=changes)]
    return [all_layers.Reshape(*shape), *models.resnet(outputs, filters, augmentation=changes)]


def _sizes(text: str) -> tuple[int, ...]:
    if text.strip().lower() == "none":
        return ()
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise ConfigError(f"--layers {text!r} is not understood; write positive whole numbers as in 64,32, or none")
    return sizes


def _augmentation(text: str | None, shape: tuple[int, int, int]) -> list[Any]:
    """The layers that --augment asks for. Images are shifted by an eighth of their sides at most."""
    wanted = [part.strip().lower() for part in (text or "").split(",")] if text is not None else []
    for name in wanted:
        if name not in _AUGMENTATIONS:
            raise ConfigError(f"--augment {text!r} is not understood; write flip, shift, or flip,shift")
    layers: list[Any] = []
    if "flip" in wanted:
        layers.append(all_layers.RandomFlip())
    if "shift" in wanted:
        # A side of a single pixel cannot be shifted.
        layers.append(all_layers.RandomShift(tuple(min(max(side // 8, 1), side - 1) for side in shape[:2])))
    return layers


def _check_size(shape: tuple[int, int, int], poolings: int) -> None:
    smallest = 2**poolings
    if min(shape[:2]) < smallest:
        fitting = min(shape[:2]).bit_length() - 1
        example = ",".join(str(16 * 2**stage) for stage in range(fitting))
        fix = f"give at most {fitting}, as in --layers {example}" if fitting else "take --model resnet"
        raise DataError(
            f"images of {shape[0]} x {shape[1]} pixels are too small for --model cnn with {poolings} poolings, each of "
            f"which halves their sides; {fix}"
        )


def activation_class(name: str) -> Any:
    """The activation layer of a name such as "relu", "leaky_relu" or "LeakyReLU". Raises ConfigError if none has it."""
    table = {}
    for label, each in vars(all_layers).items():
        if inspect.isclass(each) and issubclass(each, all_layers.Activation) and each is not all_layers.Activation:
            table[label.lower()] = each
    wanted = name.lower().replace("_", "").replace("-", "")
    if wanted not in table:
        raise ConfigError(f"--activation {name!r} is unknown; known: {', '.join(sorted(table))}")
    return table[wanted]
