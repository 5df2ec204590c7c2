"""The ONNX project's node test cases: xpnn's ops give the outputs that ONNX expects, in float32, on every row."""

from typing import NamedTuple

import numpy as np
import pytest

from xpnn.backend import host

from .onnx_cases import NotClaimed, collect
from .onnx_mapping import MAPPINGS, answer
from .onnx_unclaimed import COMPLETE_UP_TO, UNCLAIMED, UNCLAIMED_OUTPUTS

OP_TYPES = (
    "Adagrad",
    "Adam",
    "Attention",
    "AveragePool",
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "GRU",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LogSoftmax",
    "MaxPool",
    "Momentum",
    "NegativeLogLikelihoodLoss",
    "RMSNormalization",
    "RNN",
    "RotaryEmbedding",
    "Softmax",
    "SoftmaxCrossEntropyLoss",
)

EPS = 2.0**-23


class Onnx(NamedTuple):
    """The cases of `OP_TYPES` by name, and the version of onnx that they are from."""

    cases: dict
    version: str

    def of(self, op_type):
        return [case for case in self.cases.values() if case.op_type == op_type]

    @property
    def is_newer_than_the_table(self):
        return tuple(map(int, self.version.split(".")[:2])) > COMPLETE_UP_TO


@pytest.fixture(scope="module")
def onnx():
    # Here and not where the module is loaded: making the cases takes some seconds.
    return Onnx(*collect(OP_TYPES))


def caller(backend):
    """A function that runs an op, or anything else that gives (value, vjp), on the backend: host in, host out."""

    def call(function, *arguments, **settings):
        places = [i for i, argument in enumerate(arguments) if isinstance(argument, np.ndarray)]
        arrays = [backend.asarray(arguments[i], arguments[i].dtype.name) for i in places]

        def stand_in(*given):
            mixed = list(arguments)
            for place, array in zip(places, given, strict=True):
                mixed[place] = array
            return function(*mixed, **settings)

        with backend.context(), backend.discipline():
            value, _ = backend.evaluate(stand_in, *arrays)
        return tuple(map(backend.to_host, value)) if isinstance(value, tuple) else backend.to_host(value)

    return call


def errors_of(case, call):
    """Output name -> the error in units of what is accepted."""
    outputs, terms = answer(case, call)
    return {
        name: error_of(outputs[name], wanted, terms)
        for name, wanted in case.expected.items()
        if name in outputs
    }

def error_of(got, wanted, terms):
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    scale = np.max(np.abs(wanted), initial=0.0)
    worst = np.max(np.abs(got.astype(np.float64) - wanted), initial=0.0)
    return worst / (EPS * scale) if scale else worst
