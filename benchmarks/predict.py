"""How long one prediction takes: 784-512-512-10 with ReLU, a NumPy array in, a NumPy array of logits out.

    python benchmarks/predict.py [--networks 1,32] [--contenders xpnn,torch] [--rounds 9] [--json FILE]

The networks differ by the number of samples in the array.
"""

from __future__ import annotations

import itertools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "backends")]

import models  # noqa: E402
from turns import Calls, Case, Contender, Table, run  # noqa: E402

SIZES = (784, 512, 512, 10)


def samples(count: int) -> Any:
    """The inputs, as a NumPy array."""
    import numpy as np

    return np.random.Generator(np.random.Philox(0)).standard_normal((count, SIZES[0]), dtype=np.float32)


def repeated(predict: Callable[[Any], Any], inputs: Any) -> Calls:
    """Calls of `predict`; what it gives must be a NumPy array of the right shape and dtype."""
    import numpy as np

    def calls(count: int) -> float:
        for _ in range(count):
            outputs = predict(inputs)
        if not isinstance(outputs, np.ndarray) or (outputs.shape, outputs.dtype) != ((len(inputs), 10), np.float32):
            raise TypeError(f"a prediction is {outputs!r}")
        return float(outputs[0, 0])

    return calls


def xpnn(count: int) -> Calls:
    """`Network.predict`."""
    net = models.xpnn_network(SIZES, "relu")
    return repeated(net.predict, samples(count))


def torch_eager(count: int) -> Calls:
    """PyTorch in inference mode; both conversions share memory."""
    return _torch(models.torch_network(SIZES, "relu").eval(), count)


def torch_compile(count: int) -> Calls:
    """The same, compiled."""
    import torch

    return _torch(torch.compile(models.torch_network(SIZES, "relu").eval(), dynamic=False), count)


def torch_autotune(count: int) -> Calls:
    """The same, with its search for the fastest products, and the weights packed for them into the compiled code."""
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    net = models.torch_network(SIZES, "relu").eval()
    return _torch(torch.compile(net, dynamic=False, mode="max-autotune-no-cudagraphs"), count)


def _torch(net: Any, count: int) -> Calls:
    import torch

    def predict(inputs: Any) -> Any:
        with torch.inference_mode():
            return net(torch.from_numpy(inputs)).numpy()

    return repeated(predict, samples(count))


def jax(count: int) -> Calls:
    """JAX: jit, given the NumPy array; np.asarray waits for the result, and shares its memory."""
    import jax
    import numpy as np

    parameters = models.jax_parameters(SIZES)
    forward = jax.jit(lambda parameters, inputs: models.jax_forward(parameters, inputs, SIZES, "relu"))
    return repeated(lambda inputs: np.asarray(forward(parameters, inputs)), samples(count))


def thinc(count: int) -> Calls:
    """thinc's `predict`."""
    return repeated(models.thinc_network(SIZES, "relu", "mse").predict, samples(count))


def sklearn(count: int) -> Calls:
    """scikit-learn's `predict_proba`: it checks the inputs and applies the softmax, too."""
    import numpy as np

    net = models.sklearn_network(SIZES, "relu", "cross_entropy", "adam")
    net.partial_fit(samples(SIZES[-1]), np.arange(SIZES[-1]), classes=np.arange(SIZES[-1]))
    return repeated(net.predict_proba, samples(count))


def bare(count: int) -> Calls:
    """Only the matrix products, with the BLAS kernels that xpnn chooses."""
    import xpnn

    xpnn.get_backend("numpy")
    return bare_default(count)


def bare_default(count: int) -> Calls:
    """Only the matrix products, into existing arrays, with the BLAS kernels that NumPy chooses."""
    import numpy as np

    weights = [np.full((m, n), 0.01, np.float32) for m, n in itertools.pairwise(SIZES)]
    results = [np.zeros((count, n), np.float32) for n in SIZES[1:]]

    def predict(inputs: Any) -> Any:
        for weight, result in zip(weights, results, strict=True):
            inputs = inputs.dot(weight, result)
        return inputs

    return repeated(predict, samples(count))


CONTENDERS = {
    "xpnn": Contender(xpnn, ("numpy",), {"XPNN_FAST": "0"}),
    "xpnn-fast": Contender(xpnn, ("numpy", "numba")),
    "torch": Contender(torch_eager, ("torch",)),
    "torch-compile": Contender(torch_compile, ("torch",)),
    "torch-autotune": Contender(torch_autotune, ("torch",)),
    "jax": Contender(jax, ("jax", "jaxlib")),
    "thinc": Contender(thinc, ("thinc",)),
    "sklearn": Contender(sklearn, ("scikit-learn",)),
    "bare": Contender(bare, ("numpy",)),
    "bare-default": Contender(bare_default, ("numpy",)),
}

TABLE = Table(
    script=__file__,
    description=__doc__,
    call="prediction",
    cases={str(count): Case(f"784-512-512-10, batch {count}", count) for count in (1, 32, 1024)},
    contenders=CONTENDERS,
)

if __name__ == "__main__":
    run(TABLE)
