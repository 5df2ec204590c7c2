"""Every layer on every row: values, gradients, discipline, an empty batch, and central differences."""

import pytest

import xpnn
from xpnn import layers
from xpnn.layers import Layer

LAYERS = [
    (xpnn.Dense(2), (4, 3)),
    (xpnn.Dense(2, bias=False), (4, 3)),
    (xpnn.Dense(3, 2), (2, 4, 3)),
    (xpnn.CELU(), (4, 3)),
    (xpnn.ELU(), (4, 3)),
    (xpnn.GELU(), (4, 3)),
    (xpnn.SELU(), (4, 3)),
    (xpnn.HardSigmoid(), (4, 3)),
    (xpnn.HardSwish(), (4, 3)),
    (xpnn.LeakyReLU(), (4, 3)),
    (xpnn.LogSigmoid(), (4, 3)),
    (xpnn.Mish(), (4, 3)),
    (xpnn.PReLU(), (4, 3)),
    (xpnn.ReLU(), (4, 3)),
    (xpnn.Sigmoid(), (4, 3)),
    (xpnn.SiLU(), (4, 3)),
    (xpnn.SmeLU(), (4, 3)),
    (xpnn.Softplus(), (4, 3)),
    (xpnn.Softsign(), (4, 3)),
    (xpnn.Tanh(), (4, 3)),
    (xpnn.Softmax(), (4, 3)),
    (xpnn.LogSoftmax(), (4, 3)),
    (xpnn.Dropout(0.4), (4, 3)),
    (xpnn.RandomFlip(), (4, 3, 5, 2)),
    (xpnn.RandomShift(2), (4, 3, 5, 2)),
    (xpnn.Conv1D(3, 2, dilation=2, padding="causal"), (2, 5, 2)),
    (xpnn.Conv2D(3, (3, 2), stride=2, padding="same"), (2, 5, 4, 2)),
    (xpnn.Conv2D(4, 2, padding=((1, 0), (0, 2)), groups=2, bias=False), (2, 3, 4, 4)),
    (xpnn.Conv3D(2, 2), (2, 3, 2, 3, 2)),
    (xpnn.ConvTranspose1D(3, 3, stride=2, padding=1, output_padding=1), (2, 3, 2)),
    (xpnn.ConvTranspose2D(4, (3, 2), stride=(1, 2), groups=2, bias=False), (2, 2, 3, 2)),
    (xpnn.DepthwiseConv1D(3, padding="same", multiplier=2), (2, 4, 3)),
    (xpnn.DepthwiseConv2D(2, stride=2, bias=False), (2, 4, 5, 3)),
    (xpnn.SeparableConv1D(4, 3, padding="causal", bias=False), (2, 4, 3)),
    (xpnn.SeparableConv2D(4, 2, multiplier=2), (2, 3, 4, 2)),
    (xpnn.Sequential(xpnn.Conv2D(3, 2), xpnn.Tanh(), xpnn.Flatten(), xpnn.Dense(2)), (2, 3, 3, 2)),
    (xpnn.LocalResponseNorm(3, alpha=0.5), (2, 3, 5)),
    (xpnn.MaxPool1D(2), (2, 5, 3)),
    (xpnn.MaxPool2D((3, 2), stride=(2, 1), padding="same"), (2, 5, 4, 3)),
    (xpnn.MaxPool2D(2, padding=1), (2, 4, 3, 2)),
    (xpnn.AveragePool1D(3, stride=1, padding=(1, 0)), (2, 5, 3)),
    (xpnn.AveragePool2D(3, stride=2, padding="same", count_padding=False), (2, 4, 5, 2)),
    (xpnn.GlobalMaxPool1D(), (3, 4, 2)),
    (xpnn.GlobalMaxPool2D(), (3, 4, 3, 2)),
    (xpnn.GlobalAveragePool1D(), (3, 4, 2)),
    (xpnn.GlobalAveragePool2D(), (3, 4, 3, 2)),
    (xpnn.AdaptiveAveragePool1D(3), (2, 5, 2)),
    (xpnn.AdaptiveAveragePool2D((2, 3)), (2, 4, 5, 2)),
    (xpnn.UpSampling1D(3, interpolation="linear"), (2, 4, 3)),
    (xpnn.UpSampling2D(2), (2, 3, 4, 2)),
    (xpnn.UpSampling2D((2, 3), interpolation="bilinear"), (2, 3, 2, 2)),
    (xpnn.ZeroPadding1D((2, 1)), (2, 3, 2)),
    (xpnn.ZeroPadding2D(((1, 0), (0, 2))), (2, 3, 4, 2)),
    (xpnn.Cropping1D((1, 0)), (2, 4, 2)),
    (xpnn.Cropping2D(((1, 0), (0, 2))), (2, 3, 4, 2)),
    (xpnn.Sequential(xpnn.Conv2D(3, 2), xpnn.MaxPool2D(2), xpnn.Flatten(), xpnn.Dense(2)), (2, 5, 5, 2)),
    (xpnn.BatchNorm(), (4, 3)),
    (xpnn.BatchNorm(frozen=True), (4, 3)),
    (xpnn.BatchNorm(weight=False, bias=False), (2, 3, 4, 5)),
    (xpnn.LayerNorm(), (4, 3)),
    (xpnn.LayerNorm(axes=2), (2, 3, 4)),
    (xpnn.RMSNorm(), (2, 3, 4)),
    (xpnn.GroupNorm(2), (2, 3, 4, 6)),
    (xpnn.InstanceNorm(), (2, 3, 4)),
    (xpnn.WeightNorm(xpnn.Dense(4)), (4, 3)),
    (xpnn.RNN(4), (3, 4, 2)),
    (xpnn.RNN(3, layers=2, bidirectional=True, return_sequences=True, dropout=0.4), (2, 3, 2)),
    (xpnn.LSTM(4, return_sequences=True), (3, 4, 2)),
    (xpnn.LSTM(3, return_sequences=True, return_state=True), ((2, 3, 2), (2, 3), (2, 3))),
    (xpnn.LSTM(2, layers=2, bidirectional=True, return_state=True), ((2, 3, 2), (2, 4, 2), (2, 4, 2))),
    (xpnn.GRU(4, bidirectional=True), (3, 4, 2)),
    (xpnn.GRU(3, layers=2, bias=False, return_state=True), (2, 3, 2)),
    # Without rotary positions the bias of the keys has gradient 0 (it moves all scores of a query alike), and what
    # rounding leaves of it cannot be compared: no bias there.
    (xpnn.MultiHeadAttention(2, rotary=True), (2, 3, 4)),
    (xpnn.MultiHeadAttention(4, 2, 2, causal=True, dropout=0.3, rotary=True, output=3), (2, 3, 5)),
    (xpnn.MultiHeadAttention(2, bias=False), ((2, 3, 4), (2, 5, 6))),
    (xpnn.MultiHeadAttention(3, head_size=2, bias=False), ((2, 3, 4), (2, 5, 6), (2, 5, 3))),
    (xpnn.SinusoidalPositions(), (2, 3, 5)),
    (xpnn.LearnedPositions(4), (2, 3, 5)),
    (xpnn.TransformerEncoderBlock(2, 5, dropout=0.2, rotary=True), (2, 3, 4)),
    (xpnn.TransformerEncoderBlock(2, 5, activation="tanh", norm_first=False, causal=True, bias=False), (2, 3, 4)),
    (xpnn.TransformerDecoderBlock(2, 5, bias=False), ((2, 3, 4), (2, 4, 5))),
    (xpnn.TransformerDecoderBlock(2, 5, norm_first=False, bias=False, return_memory=True), ((2, 3, 4), (2, 4, 5))),
    (xpnn.Masking(), (2, 3, 2)),
    (xpnn.TimeDistributed(xpnn.Dense(4)), (2, 3, 5)),
    (xpnn.TimeDistributed([xpnn.Flatten(), xpnn.Dense(2)]), (2, 3, 2, 2)),
    (xpnn.Sequential(xpnn.Embedding(3, 2, padding_index=0), xpnn.LSTM(3), xpnn.Dense(2)), (4, 3)),
    (xpnn.Embedding(5, 2), (4, 3)),
    (xpnn.Flatten(), (4, 3, 2)),
    (xpnn.Reshape((2, 3)), (4, 6)),
    (xpnn.Lambda("softplus"), (4, 3)),
    (xpnn.Residual(xpnn.Dense(3), xpnn.Tanh()), (4, 3)),
    (xpnn.Parallel(xpnn.Dense(2), xpnn.Dense(2)), (4, 3)),
    (xpnn.Parallel(xpnn.Dense(2), xpnn.Sequential(), combine="concatenate"), (4, 3)),
    (xpnn.Each([xpnn.Dense(2), xpnn.Tanh()], xpnn.Embedding(5, 2)), ((4, 3), (4, 2))),
    (xpnn.Each(xpnn.Flatten(), xpnn.Dense(2), combine="concatenate"), ((4, 3, 2), (4, 5))),
    (xpnn.Sequential(xpnn.Dense(4), xpnn.Tanh(), xpnn.Dropout(0.5), xpnn.Dense(2), xpnn.Softmax()), (4, 3)),
    (xpnn.Sequential(xpnn.Dense(4, bias=False), xpnn.BatchNorm(), xpnn.Tanh(), xpnn.Dense(2)), (4, 3)),
    (xpnn.Sequential(xpnn.Embedding(5, 2), xpnn.Flatten(), xpnn.Dense(3)), (4, 3)),
]
SHARED = xpnn.Dense(3, 3)
LAYERS.append((xpnn.Sequential(SHARED, xpnn.Tanh(), SHARED), (4, 3)))

ABSTRACT = {"Activation", "Layer"}
"""Base classes, which compute nothing themselves."""


def test_every_layer_has_an_entry():
    public = {
        name
        for name in layers.__all__
        if isinstance(getattr(layers, name), type) and issubclass(getattr(layers, name), Layer)
    }
    assert {type(layer).__name__ for layer, _ in LAYERS} == public - ABSTRACT


@pytest.mark.parametrize(
    ("layer", "input_shape"), [pytest.param(layer, shape, id=f"{layer!r}-{shape}") for layer, shape in LAYERS]
)
def test_layer(layer, input_shape, backend, dtype):
    xpnn.testing.check_layer(layer, input_shape, backend, dtype)
