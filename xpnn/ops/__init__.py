"""Every op: a pure function of arrays that returns its value and its vjp.

>>> y, vjp = xpnn.ops.tanh(x)
>>> (dx,) = vjp(dy)

The arrays of one call are all float32 or all float64; labels and indices are integers. An op converts nothing: what a
mixture gives, or an activation of integers, is up to the library (NumPy answers in float64, PyTorch refuses). A network
converts what it is given to its own dtype.
"""

from xpnn.dispatch import OPS
from xpnn.ops.absolute_error import huber, mae
from xpnn.ops.adafactor import adafactor, adafactor_factored
from xpnn.ops.adagrad import adadelta, adagrad
from xpnn.ops.adam import adam, amsgrad, nadam
from xpnn.ops.add_to_sums import add_to_sums
from xpnn.ops.attention import attention
from xpnn.ops.augmentation import random_flip, random_shift
from xpnn.ops.barzilai_borwein import barzilai_borwein, secant_products
from xpnn.ops.batch_norm import batch_norm, batch_norm_inference
from xpnn.ops.binary_cross_entropy import binary_cross_entropy, binary_cross_entropy_from_probabilities
from xpnn.ops.clipping import clip_by_global_norm, clip_by_norm, clip_by_value, global_norm
from xpnn.ops.connectionist_temporal_classification import ctc
from xpnn.ops.convolution import conv, conv_transpose
from xpnn.ops.cosine_distance import cosine_distance
from xpnn.ops.cross_entropy import cross_entropy, cross_entropy_from_probabilities, nll
from xpnn.ops.dice import dice
from xpnn.ops.dropout import dropout
from xpnn.ops.embedding import embedding, scatter_add
from xpnn.ops.erf import erf, normal_cdf
from xpnn.ops.focal import binary_focal, focal
from xpnn.ops.gates import gelu, gelu_tanh, hard_swish, mish, silu
from xpnn.ops.group_norm import group_norm
from xpnn.ops.gru import gru
from xpnn.ops.hinge import categorical_hinge, hinge
from xpnn.ops.info_nce import info_nce, info_nce_of_views
from xpnn.ops.kl_divergence import kl_divergence
from xpnn.ops.lamb import lamb, lars
from xpnn.ops.layer_norm import layer_norm, rms_norm
from xpnn.ops.lbfgs import (
    absolute_sum,
    add_multiple,
    inner_product,
    lbfgs_length,
    lbfgs_remember,
    lbfgs_scale,
    lbfgs_weight,
    multiple,
)
from xpnn.ops.linear import linear
from xpnn.ops.linear_chain import linear_chain
from xpnn.ops.lion import lion
from xpnn.ops.local_response_norm import local_response_norm
from xpnn.ops.lstm import lstm
from xpnn.ops.mse import mse
from xpnn.ops.muon import muon, orthogonalize
from xpnn.ops.normal_quantile import normal_quantile
from xpnn.ops.pack import pack
from xpnn.ops.padding import crop, pad
from xpnn.ops.pooling import adaptive_average_pool, average_pool, global_average_pool, global_max_pool, max_pool
from xpnn.ops.positions import add_positions
from xpnn.ops.random_mask import random_mask
from xpnn.ops.rectifiers import celu, elu, leaky_relu, prelu, relu, selu, smelu, softplus
from xpnn.ops.resampling import upsample_bilinear, upsample_nearest
from xpnn.ops.rmsprop import rmsprop, rmsprop_centered
from xpnn.ops.rnn import rnn
from xpnn.ops.rotary import rotary
from xpnn.ops.scan import scan
from xpnn.ops.sequences import fold_time, padding_mask, unfold_time
from xpnn.ops.sgd import sgd, sgd_momentum
from xpnn.ops.shapes import add, concatenate, flatten, reshape
from xpnn.ops.sigmoids import hard_sigmoid, log_sigmoid, sigmoid, softsign, tanh
from xpnn.ops.softmax import log_softmax, softmax
from xpnn.ops.triplet import triplet, triplet_mining
from xpnn.ops.weight_decay import add_weight_decay, moving_average
from xpnn.ops.weight_norm import weight_norm

__all__ = [
    "OPS",
    "absolute_sum",
    "adadelta",
    "adafactor",
    "adafactor_factored",
    "adagrad",
    "adam",
    "adaptive_average_pool",
    "add",
    "add_multiple",
    "add_positions",
    "add_to_sums",
    "add_weight_decay",
    "amsgrad",
    "attention",
    "average_pool",
    "barzilai_borwein",
    "batch_norm",
    "batch_norm_inference",
    "binary_cross_entropy",
    "binary_cross_entropy_from_probabilities",
    "binary_focal",
    "categorical_hinge",
    "celu",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "concatenate",
    "conv",
    "conv_transpose",
    "cosine_distance",
    "crop",
    "cross_entropy",
    "cross_entropy_from_probabilities",
    "ctc",
    "dice",
    "dropout",
    "elu",
    "embedding",
    "erf",
    "flatten",
    "focal",
    "fold_time",
    "gelu",
    "gelu_tanh",
    "global_average_pool",
    "global_max_pool",
    "global_norm",
    "group_norm",
    "gru",
    "hard_sigmoid",
    "hard_swish",
    "hinge",
    "huber",
    "info_nce",
    "info_nce_of_views",
    "inner_product",
    "kl_divergence",
    "lamb",
    "lars",
    "layer_norm",
    "lbfgs_length",
    "lbfgs_remember",
    "lbfgs_scale",
    "lbfgs_weight",
    "leaky_relu",
    "linear",
    "linear_chain",
    "lion",
    "local_response_norm",
    "log_sigmoid",
    "log_softmax",
    "lstm",
    "mae",
    "max_pool",
    "mish",
    "moving_average",
    "mse",
    "multiple",
    "muon",
    "nadam",
    "nll",
    "normal_cdf",
    "normal_quantile",
    "orthogonalize",
    "pack",
    "pad",
    "padding_mask",
    "prelu",
    "random_flip",
    "random_mask",
    "random_shift",
    "relu",
    "reshape",
    "rms_norm",
    "rmsprop",
    "rmsprop_centered",
    "rnn",
    "rotary",
    "scan",
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
    "triplet",
    "triplet_mining",
    "unfold_time",
    "upsample_bilinear",
    "upsample_nearest",
    "weight_norm",
]
