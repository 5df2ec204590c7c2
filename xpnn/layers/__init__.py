"""Every layer."""

from xpnn.layers.activation import (
    CELU,
    ELU,
    GELU,
    SELU,
    Activation,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    LogSigmoid,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    SmeLU,
    Softplus,
    Softsign,
    Tanh,
)
from xpnn.layers.attention import MultiHeadAttention
from xpnn.layers.augmentation import RandomFlip, RandomShift
from xpnn.layers.batch_norm import BatchNorm
from xpnn.layers.convolution import Conv1D, Conv2D, Conv3D, ConvTranspose1D, ConvTranspose2D
from xpnn.layers.dense import Dense
from xpnn.layers.dropout import Dropout
from xpnn.layers.each import Each
from xpnn.layers.embedding import Embedding
from xpnn.layers.function import Lambda
from xpnn.layers.group_norm import GroupNorm, InstanceNorm
from xpnn.layers.layer import Buffer, Layer, Parameter, Run
from xpnn.layers.layer_norm import LayerNorm, RMSNorm
from xpnn.layers.local_response_norm import LocalResponseNorm
from xpnn.layers.parallel import Parallel
from xpnn.layers.pooling import (
    AdaptiveAveragePool1D,
    AdaptiveAveragePool2D,
    AveragePool1D,
    AveragePool2D,
    GlobalAveragePool1D,
    GlobalAveragePool2D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    MaxPool1D,
    MaxPool2D,
)
from xpnn.layers.positions import LearnedPositions, SinusoidalPositions
from xpnn.layers.prelu import PReLU
from xpnn.layers.recurrent import GRU, LSTM, RNN
from xpnn.layers.resampling import (
    Cropping1D,
    Cropping2D,
    UpSampling1D,
    UpSampling2D,
    ZeroPadding1D,
    ZeroPadding2D,
)
from xpnn.layers.residual import Residual
from xpnn.layers.separable import DepthwiseConv1D, DepthwiseConv2D, SeparableConv1D, SeparableConv2D
from xpnn.layers.sequences import Masking, TimeDistributed
from xpnn.layers.sequential import Sequential
from xpnn.layers.shapes import Flatten, Reshape
from xpnn.layers.softmax import LogSoftmax, Softmax
from xpnn.layers.torch_layout import recurrent_weights_from_torch, weight_from_torch, weight_to_torch
from xpnn.layers.transformer import TransformerDecoderBlock, TransformerEncoderBlock
from xpnn.layers.weight_norm import WeightNorm

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "SELU",
    "Activation",
    "AdaptiveAveragePool1D",
    "AdaptiveAveragePool2D",
    "AveragePool1D",
    "AveragePool2D",
    "BatchNorm",
    "Buffer",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose1D",
    "ConvTranspose2D",
    "Cropping1D",
    "Cropping2D",
    "Dense",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "Dropout",
    "Each",
    "Embedding",
    "Flatten",
    "GlobalAveragePool1D",
    "GlobalAveragePool2D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "GroupNorm",
    "HardSigmoid",
    "HardSwish",
    "InstanceNorm",
    "Lambda",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LearnedPositions",
    "LocalResponseNorm",
    "LogSigmoid",
    "LogSoftmax",
    "Masking",
    "MaxPool1D",
    "MaxPool2D",
    "Mish",
    "MultiHeadAttention",
    "PReLU",
    "Parallel",
    "Parameter",
    "RMSNorm",
    "RandomFlip",
    "RandomShift",
    "ReLU",
    "Reshape",
    "Residual",
    "Run",
    "SeparableConv1D",
    "SeparableConv2D",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SinusoidalPositions",
    "SmeLU",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
    "TimeDistributed",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "UpSampling1D",
    "UpSampling2D",
    "WeightNorm",
    "ZeroPadding1D",
    "ZeroPadding2D",
    "recurrent_weights_from_torch",
    "weight_from_torch",
    "weight_to_torch",
]
