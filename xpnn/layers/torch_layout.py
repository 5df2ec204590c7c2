"""Weights between xpnn's layout and PyTorch's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from xpnn.dispatch import Array, namespace
from xpnn.errors import ConfigError, ShapeError


def weight_from_torch(weight: Array, flattened: tuple[int, ...] | None = None) -> Array:
    """A weight of PyTorch's Linear, Conv1d/2d/3d or ConvTranspose1d/2d/3d as xpnn's layers want it.

    PyTorch has the axes (out, in / groups, *kernel), or (in, out / groups, *kernel) if transposed; xpnn reverses the
    first two and puts them last: (*kernel, in / groups, out) and (*kernel, out / groups, in). With no kernel, this is
    Linear's transposition. A bias is the same in both, and so is the weight of an Embedding, which must not be given.

    Args:
        weight: an array, such as `module.weight.detach().numpy()`.
        flattened: for a Linear behind a Flatten of images: the shape (channels, *spatial) that PyTorch flattens. xpnn
            flattens (*spatial, channels), so that the rows of the weight come in another order too.

    Returns:
        An array of the same library with its axes (a view, where the library has views).

    Raises:
        ShapeError: the weight has fewer than two axes, or `flattened` does not fit its inputs.
    """
    _check_weight(weight)
    xp = namespace(weight)
    if flattened is not None:
        _check_flattened(weight, weight.shape[-1], flattened)
        weight = xp.reshape(weight, (weight.shape[0], *flattened))
        rows = math.prod(flattened)
        return xp.reshape(xp.permute_dims(weight, (*range(2, weight.ndim), 1, 0)), (rows, weight.shape[0]))
    return xp.permute_dims(weight, (*range(2, weight.ndim), 1, 0))


def weight_to_torch(weight: Array, flattened: tuple[int, ...] | None = None) -> Array:
    """The inverse of `weight_from_torch`: a weight of one of xpnn's layers in PyTorch's layout.

    Args:
        weight: (*kernel, in / groups, out), (*kernel, out / groups, in) if transposed, or (in, out).
        flattened: for a Dense behind a Flatten of images: the shape (channels, *spatial) that PyTorch will flatten.

    Raises:
        ShapeError: the weight has fewer than two axes, or `flattened` does not fit its inputs.
    """
    _check_weight(weight)
    xp = namespace(weight)
    if flattened is not None:
        _check_flattened(weight, weight.shape[0], flattened)
        channels, *spatial = flattened
        weight = xp.reshape(weight, (*spatial, channels, weight.shape[-1]))
    last = weight.ndim - 1
    reordered = xp.permute_dims(weight, (last, last - 1, *range(last - 1)))
    return reordered if flattened is None else xp.reshape(reordered, (weight.shape[-1], math.prod(flattened)))


def recurrent_weights_from_torch(weights: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters of PyTorch's RNN, LSTM or GRU as those of xpnn's layer of the same name.

    The gates come in the same order in both. PyTorch keeps the matrices transposed, and has two biases everywhere;
    where only their sum has an effect (RNN and LSTM), xpnn has one.

    Args:
        weights: name in PyTorch ("weight_ih_l0") -> array, such as
            `{name: value.numpy() for name, value in module.state_dict().items()}`.

    Returns:
        Name in xpnn ("weight_input", or "0.forward.weight_input") -> array. In a network whose layer 3 this is, the
        names begin with "3.".

    Raises:
        ConfigError: a name is none of these modules', or a weight is missing.
    """
    kinds = "weight_ih|weight_hh|bias_ih|bias_hh"
    matches = {name: re.fullmatch(rf"({kinds})_l(\d+)(_reverse)?", name) for name in weights}
    scans: dict[tuple[int, str], dict[str, Array]] = {}
    for name, match in matches.items():
        if match is None:
            raise ConfigError(f"{name!r} is no parameter of PyTorch's RNN, LSTM or GRU (projections are not supported)")
        scan = (int(match[2]), "reverse" if match[3] else "forward")
        scans.setdefault(scan, {})[match[1]] = weights[name]
    found: dict[str, Array] = {}
    for (layer, direction), own in sorted(scans.items()):
        if "weight_ih" not in own or "weight_hh" not in own or ("bias_ih" in own) != ("bias_hh" in own):
            raise ConfigError(f"of layer {layer}, direction {direction}, there are only: {', '.join(own)}")
        prefix = "" if len(scans) == 1 else f"{layer}.{direction}."
        found[f"{prefix}weight_input"] = weight_from_torch(own["weight_ih"])
        found[f"{prefix}weight_hidden"] = weight_from_torch(own["weight_hh"])
        if "bias_ih" in own:
            gates = own["weight_hh"].shape[0] // own["weight_hh"].shape[1]
            if gates == 3:  # in a GRU the reset gate stands between the two
                found[f"{prefix}bias_input"], found[f"{prefix}bias_hidden"] = own["bias_ih"], own["bias_hh"]
            else:
                found[f"{prefix}bias"] = own["bias_ih"] + own["bias_hh"]
    return found


def _check_weight(weight: Array) -> None:
    if weight.ndim < 2:
        raise ShapeError(
            f"weight has shape {tuple(weight.shape)}; give a matrix or a kernel (a vector, such as a bias, is the same "
            "in both libraries)"
        )


def _check_flattened(weight: Array, inputs: int, flattened: tuple[int, ...]) -> None:
    if weight.ndim != 2 or math.prod(flattened) != inputs:
        raise ShapeError(
            f"flattened={flattened} does not fit the weight of shape {tuple(weight.shape)}; give the (channels, "
            "*spatial) that the Flatten before this layer got, with one product for each input"
        )
