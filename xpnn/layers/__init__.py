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
from xpnn.layers.dense import Dense
from xpnn.layers.dropout import Dropout
from xpnn.layers.embedding import Embedding
from xpnn.layers.function import Lambda
from xpnn.layers.layer import Buffer, Layer, Parameter, Run
from xpnn.layers.parallel import Parallel
from xpnn.layers.prelu import PReLU
from xpnn.layers.residual import Residual
from xpnn.layers.sequential import Sequential
from xpnn.layers.shapes import Flatten, Reshape
from xpnn.layers.softmax import LogSoftmax, Softmax

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "Activation",
    "Buffer",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "HardSigmoid",
    "HardSwish",
    "Lambda",
    "Layer",
    "LeakyReLU",
    "LogSigmoid",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "Parallel",
    "Parameter",
    "ReLU",
    "Reshape",
    "Residual",
    "Run",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmeLU",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
]
