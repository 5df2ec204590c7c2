"""Every op: a pure function of arrays that returns its value and its vjp.

>>> y, vjp = xpnn.ops.tanh(x)
>>> (dx,) = vjp(dy)
"""

from xpnn.dispatch import OPS
from xpnn.ops.dropout import dropout
from xpnn.ops.linear import linear
from xpnn.ops.mse import mse
from xpnn.ops.random_mask import random_mask
from xpnn.ops.rectifiers import relu
from xpnn.ops.sgd import sgd
from xpnn.ops.shapes import add, concatenate, flatten, reshape
from xpnn.ops.sigmoids import sigmoid, tanh

__all__ = [
    "OPS",
    "add",
    "concatenate",
    "dropout",
    "flatten",
    "linear",
    "mse",
    "random_mask",
    "relu",
    "reshape",
    "sgd",
    "sigmoid",
    "tanh",
]
