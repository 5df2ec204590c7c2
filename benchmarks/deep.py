"""The same convolutional, recurrent and attention networks in each library, and their bare matrix products.

Inputs have their channels last. PyTorch gets images with its channels first, once, before anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple


class Deep(NamedTuple):
    """One network with its loss and batch; Adam (rate 0.001), float32.

    Attributes:
        name: its name on the command line.
        title: its name in the table.
        input_shape: of a sample.
        loss: "cross_entropy" with ten classes, or "mse" with targets of the input's shape.
        batch: samples in a batch.
        xpnn: () -> list of xpnn's layers.
        torch: () -> torch.nn.Module.
        jax: () -> (parameters, forward(parameters, x)).
        products: batch -> the matrix products of a step: (how many, m, k, n).
    """

    name: str
    title: str
    input_shape: tuple[int, ...]
    loss: str
    batch: int
    xpnn: Callable[[], list[Any]]
    torch: Callable[[], Any]
    jax: Callable[[], tuple[Any, Callable[[Any, Any], Any]]]
    products: Callable[[int], list[tuple[int, int, int, int]]]

    optimizer: str = "adam"

    @property
    def is_image(self) -> bool:
        """True if PyTorch wants the channels of its inputs in front."""
        return len(self.input_shape) == 3


CLASSES = 10


def _three(rows: int, inner: int, columns: int, input_gradient: bool = True) -> list[tuple[int, int, int, int]]:
    """The products of a linear map: forward, the weight's gradient, and the input's."""
    found = [(1, rows, inner, columns), (1, inner, rows, columns)]
    return [*found, (1, rows, columns, inner)] if input_gradient else found


class _JaxParameters:
    """Makes parameters with JAX's Glorot initializer, one key for each."""

    def __init__(self) -> None:
        import jax

        self.key = jax.random.key(0)

    def weight(self, *shape: int) -> Any:
        import jax

        self.key, key = jax.random.split(self.key)
        return jax.nn.initializers.glorot_uniform()(key, shape, "float32")

    def dense(self, features: int, units: int) -> tuple[Any, Any]:
        import jax.numpy as jnp

        return self.weight(features, units), jnp.zeros(units, "float32")


def _jax_conv(x: Any, weight: Any, stride: int = 1, padding: Any = "SAME") -> Any:
    import jax

    return jax.lax.conv_general_dilated(
        x, weight, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# LeNet: LeCun, Bottou, Bengio and Haffner (1998), with ReLU and max-pooling


def _lenet_xpnn() -> list[Any]:
    import xpnn

    return [
        xpnn.Conv2D(6, 5, padding="same"),
        xpnn.ReLU(),
        xpnn.MaxPool2D(2),
        xpnn.Conv2D(16, 5),
        xpnn.ReLU(),
        xpnn.MaxPool2D(2),
        xpnn.Flatten(),
        xpnn.Dense(120),
        xpnn.ReLU(),
        xpnn.Dense(84),
        xpnn.ReLU(),
        xpnn.Dense(CLASSES),
    ]


def _lenet_torch() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, CLASSES),
    )


def _lenet_jax() -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    make = _JaxParameters()
    parameters = [
        (make.weight(5, 5, 1, 6), jnp.zeros(6, "float32")),
        (make.weight(5, 5, 6, 16), jnp.zeros(16, "float32")),
        make.dense(400, 120),
        make.dense(120, 84),
        make.dense(84, CLASSES),
    ]

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def forward(parameters: Any, x: Any) -> Any:
        first, second, *dense = parameters
        x = pool(jax.nn.relu(_jax_conv(x, first[0]) + first[1]))
        x = pool(jax.nn.relu(_jax_conv(x, second[0], padding="VALID") + second[1]))
        x = x.reshape(x.shape[0], -1)
        for index, (weight, bias) in enumerate(dense):
            x = x @ weight + bias
            if index < len(dense) - 1:
                x = jax.nn.relu(x)
        return x

    return parameters, forward


def _lenet_products(batch: int) -> list[tuple[int, int, int, int]]:
    return [
        *_three(batch * 784, 25, 6, input_gradient=False),
        *_three(batch * 100, 150, 16),
        *_three(batch, 400, 120),
        *_three(batch, 120, 84),
        *_three(batch, 84, CLASSES),
    ]


# A residual network: He, Zhang, Ren and Sun (2016), with three stages of one block each

_STAGES = ((16, 1), (32, 2), (64, 2))
"""Channels and stride of each block."""


def _resnet_xpnn() -> list[Any]:
    import xpnn

    def conv(channels: int, kernel: int, stride: int = 1) -> Any:
        return xpnn.Conv2D(channels, kernel, stride=stride, padding=kernel // 2, bias=False)

    layers: list[Any] = [conv(16, 3), xpnn.BatchNorm(), xpnn.ReLU()]
    before = 16
    for channels, stride in _STAGES:
        body = [conv(channels, 3, stride), xpnn.BatchNorm(), xpnn.ReLU(), conv(channels, 3), xpnn.BatchNorm()]
        shortcut = None if stride == 1 and channels == before else [conv(channels, 1, stride), xpnn.BatchNorm()]
        layers += [xpnn.Residual(body, shortcut=shortcut), xpnn.ReLU()]
        before = channels
    return [*layers, xpnn.GlobalAveragePool2D(), xpnn.Dense(CLASSES)]


def _resnet_torch() -> Any:
    from torch import nn

    def conv(before: int, channels: int, kernel: int, stride: int = 1) -> Any:
        return nn.Conv2d(before, channels, kernel, stride, padding=kernel // 2, bias=False)

    class Block(nn.Module):
        """Two convolutions with a shortcut."""

        def __init__(self, before: int, channels: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                conv(before, channels, 3, stride),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                conv(channels, channels, 3),
                nn.BatchNorm2d(channels),
            )
            plain = stride == 1 and before == channels
            self.shortcut = (
                nn.Identity() if plain else nn.Sequential(conv(before, channels, 1, stride), nn.BatchNorm2d(channels))
            )

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.shortcut(x) + self.body(x), inplace=True)

    layers: list[Any] = [conv(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    before = 16
    for channels, stride in _STAGES:
        layers.append(Block(before, channels, stride))
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def _resnet_jax() -> tuple[Any, Any]:
    """Without running statistics, which the others keep."""
    import jax
    import jax.numpy as jnp

    make = _JaxParameters()

    def unit(before: int, channels: int, kernel: int) -> Any:
        ones, zeros = jnp.ones(channels, "float32"), jnp.zeros(channels, "float32")
        return make.weight(kernel, kernel, before, channels), ones, zeros

    def apply(unit: Any, x: Any, stride: int = 1) -> Any:
        weight, scale, shift = unit
        half = weight.shape[0] // 2
        x = _jax_conv(x, weight, stride, ((half, half), (half, half)))
        mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        return (x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + shift

    parameters: list[Any] = [unit(3, 16, 3)]
    before = 16
    for channels, stride in _STAGES:
        shortcut = None if stride == 1 and before == channels else unit(before, channels, 1)
        parameters.append((unit(before, channels, 3), unit(channels, channels, 3), shortcut))
        before = channels
    parameters.append(make.dense(64, CLASSES))

    def forward(parameters: Any, x: Any) -> Any:
        stem, *blocks, (weight, bias) = parameters
        x = jax.nn.relu(apply(stem, x))
        for (first, second, shortcut), (_, stride) in zip(blocks, _STAGES, strict=True):
            inside = apply(second, jax.nn.relu(apply(first, x, stride)))
            x = jax.nn.relu(inside + (x if shortcut is None else apply(shortcut, x, stride)))
        return jnp.mean(x, (1, 2)) @ weight + bias

    return parameters, forward


def _resnet_products(batch: int) -> list[tuple[int, int, int, int]]:
    found = _three(batch * 1024, 27, 16, input_gradient=False)
    before, pixels = 16, batch * 1024
    for channels, stride in _STAGES:
        pixels //= stride**2
        found += _three(pixels, 9 * before, channels) + _three(pixels, 9 * channels, channels)
        if stride > 1:
            found += _three(pixels, before, channels)
        before = channels
    return found + _three(batch, 64, CLASSES)


# An LSTM: 64 steps of 128 features, 128 units, the last output classified

_UNITS, _STEPS = 128, 64


def _lstm_xpnn() -> list[Any]:
    import xpnn

    return [xpnn.LSTM(_UNITS), xpnn.Dense(CLASSES)]


def _lstm_torch() -> Any:
    from torch import nn

    class Last(nn.Module):
        """The last output of an LSTM, classified."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(_UNITS, _UNITS, batch_first=True)
            self.dense = nn.Linear(_UNITS, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.dense(self.lstm(x)[0][:, -1])

    return Last()


def _lstm_jax() -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    make = _JaxParameters()
    hidden = make.weight(_UNITS, 4 * _UNITS)
    parameters = (make.dense(_UNITS, 4 * _UNITS), hidden, make.dense(_UNITS, CLASSES))

    def forward(parameters: Any, x: Any) -> Any:
        (weight, bias), recurrent, (out, out_bias) = parameters
        given = jnp.swapaxes(x @ weight + bias, 0, 1)

        def step(state: Any, gates: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(gates + h @ recurrent, 4, axis=1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zeros = jnp.zeros((x.shape[0], _UNITS), "float32")
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), given)
        return h @ out + out_bias

    return parameters, forward


def _lstm_products(batch: int) -> list[tuple[int, int, int, int]]:
    gates, rows = 4 * _UNITS, batch * _STEPS
    return [
        *_three(rows, _UNITS, gates, input_gradient=False),
        (_STEPS, batch, _UNITS, gates),
        (_STEPS, batch, gates, _UNITS),
        (1, _UNITS, rows, gates),
        *_three(batch, _UNITS, CLASSES),
    ]


# A transformer block: Vaswani et al. (2017), the norms in front, GELU


class _Block(NamedTuple):
    """The sizes of a transformer block: features, heads, time steps, units of the part that is dense."""

    width: int
    heads: int
    length: int
    inner: int


def _transformer_xpnn(block: _Block) -> list[Any]:
    import xpnn

    return [xpnn.TransformerEncoderBlock(block.heads, block.inner, dropout=0.0, activation="gelu", norm_first=True)]


def _transformer_torch(block: _Block) -> Any:
    from torch import nn

    return nn.TransformerEncoderLayer(
        block.width, block.heads, block.inner, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def _transformer_jax(block: _Block) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    make = _JaxParameters()
    width, heads = block.width, block.heads
    ones, zeros = jnp.ones(width, "float32"), jnp.zeros(width, "float32")
    parameters = (
        [make.dense(width, width) for _ in range(4)],
        (ones, zeros),
        (jnp.array(ones), jnp.array(zeros)),
        make.dense(width, block.inner),
        make.dense(block.inner, width),
    )

    def norm(x: Any, scale: Any) -> Any:
        mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale[0] + scale[1]

    def forward(parameters: Any, x: Any) -> Any:
        projections, first, second, widen, narrow = parameters
        normal = norm(x, first)
        size = width // heads
        query, key, value = (
            (normal @ weight + bias).reshape(*x.shape[:2], heads, size) for weight, bias in projections[:3]
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / size**0.5
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value).reshape(x.shape)
        x = x + mixed @ projections[3][0] + projections[3][1]
        inside = jax.nn.gelu(norm(x, second) @ widen[0] + widen[1], approximate=False)
        return x + inside @ narrow[0] + narrow[1]

    return parameters, forward


def _transformer_products(block: _Block, batch: int) -> list[tuple[int, int, int, int]]:
    width, length = block.width, block.length
    rows, size = batch * length, width // block.heads
    projections = 4 * _three(rows, width, width)
    wide = _three(rows, width, block.inner) + _three(rows, block.inner, width)
    # Forward: scores and mixture; backward: two products for each of them.
    heads = batch * block.heads
    attention = [(3 * heads, length, size, length), (3 * heads, length, length, size)]
    return projections + wide + attention


def transformer(name: str, batch: int, width: int, heads: int, length: int, inner: int) -> Deep:
    """A transformer block of these sizes."""
    block = _Block(width, heads, length, inner)
    return Deep(
        name,
        f"transformer block {width}, {heads} heads, length {length}, Adam, batch {batch}",
        (length, width),
        "mse",
        batch,
        partial(_transformer_xpnn, block),
        partial(_transformer_torch, block),
        partial(_transformer_jax, block),
        partial(_transformer_products, block),
    )


DEEP = {
    deep.name: deep
    for deep in (
        Deep(
            "lenet",
            "LeNet, 28x28x1, Adam, batch 64",
            (28, 28, 1),
            "cross_entropy",
            64,
            _lenet_xpnn,
            _lenet_torch,
            _lenet_jax,
            _lenet_products,
        ),
        Deep(
            "resnet",
            "residual network of 3 blocks, 32x32x3, Adam, batch 64",
            (32, 32, 3),
            "cross_entropy",
            64,
            _resnet_xpnn,
            _resnet_torch,
            _resnet_jax,
            _resnet_products,
        ),
        Deep(
            "lstm",
            "LSTM 128 units, 64 steps, Adam, batch 32",
            (_STEPS, _UNITS),
            "cross_entropy",
            32,
            _lstm_xpnn,
            _lstm_torch,
            _lstm_jax,
            _lstm_products,
        ),
        transformer("transformer", 16, width=256, heads=4, length=128, inner=1024),
    )
}
