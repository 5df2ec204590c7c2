"""Every op: a pure function of arrays that returns its value and its vjp.

>>> y, vjp = xpnn.ops.tanh(x)
>>> (dx,) = vjp(dy)

The arrays of one call are all float32 or all float64; labels and indices are integers. An op converts nothing: what a
mixture gives, or an activation of integers, is up to the library (NumPy answers in float64, PyTorch refuses). A network
converts what it is given to its own dtype.
"""

from xpnn.dispatch import OPS
from xpnn.ops.absolute_error import huber, mae
from xpnn.ops.adagrad import adadelta, adagrad
from xpnn.ops.adam import adam, amsgrad, nadam
from xpnn.ops.barzilai_borwein import barzilai_borwein, secant_products
from xpnn.ops.binary_cross_entropy import binary_cross_entropy, binary_cross_entropy_from_probabilities
from xpnn.ops.clipping import clip_by_global_norm, clip_by_norm, clip_by_value, global_norm
from xpnn.ops.cosine_distance import cosine_distance
from xpnn.ops.cross_entropy import cross_entropy, cross_entropy_from_probabilities, nll
from xpnn.ops.dropout import dropout
from xpnn.ops.embedding import embedding, scatter_add
from xpnn.ops.erf import erf, normal_cdf
from xpnn.ops.gates import gelu, hard_swish, mish, silu
from xpnn.ops.hinge import categorical_hinge, hinge
from xpnn.ops.kl_divergence import kl_divergence
from xpnn.ops.linear import linear
from xpnn.ops.lion import lion
from xpnn.ops.mse import mse
from xpnn.ops.normal_quantile import normal_quantile
from xpnn.ops.pack import pack
from xpnn.ops.random_mask import random_mask
from xpnn.ops.rectifiers import celu, elu, leaky_relu, prelu, relu, selu, smelu, softplus
from xpnn.ops.rmsprop import rmsprop, rmsprop_centered
from xpnn.ops.sgd import sgd, sgd_momentum
from xpnn.ops.shapes import add, concatenate, flatten, reshape
from xpnn.ops.sigmoids import hard_sigmoid, log_sigmoid, sigmoid, softsign, tanh
from xpnn.ops.softmax import log_softmax, softmax
from xpnn.ops.weight_decay import add_weight_decay, moving_average

__all__ = [
    "OPS",
    "adadelta",
    "adagrad",
    "adam",
    "add",
    "add_weight_decay",
    "amsgrad",
    "barzilai_borwein",
    "binary_cross_entropy",
    "binary_cross_entropy_from_probabilities",
    "categorical_hinge",
    "celu",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "concatenate",
    "cosine_distance",
    "cross_entropy",
    "cross_entropy_from_probabilities",
    "dropout",
    "elu",
    "embedding",
    "erf",
    "flatten",
    "gelu",
    "global_norm",
    "hard_sigmoid",
    "hard_swish",
    "hinge",
    "huber",
    "kl_divergence",
    "leaky_relu",
    "linear",
    "lion",
    "log_sigmoid",
    "log_softmax",
    "mae",
    "mish",
    "moving_average",
    "mse",
    "nadam",
    "nll",
    "normal_cdf",
    "normal_quantile",
    "pack",
    "prelu",
    "random_mask",
    "relu",
    "reshape",
    "rmsprop",
    "rmsprop_centered",
    "scatter_add",
    "secant_products",
    "selu",
    "sgd",
    "sgd_momentum",
    "sigmoid",
    "silu",
    "smelu",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
]
