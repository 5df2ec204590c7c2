"""The body of max-pooling for recorded arrays. See `recorded_bodies`."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnn.ops.pooling import check_pooling
from xpnn.ops.windows import output_size
from xpnn_backends.kernels_pooling import MAX_POOL, MAX_POOL_GRADIENT
from xpnn_backends.recorded_bodies import _body
from xpnn_backends.recording import Recorder


@_body
def max_pool(recorder: Recorder, x: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    """One kernel forward and one backward, for images and sequences."""
    check_pooling("max_pool", x, window, stride, padding)
    if len(window) > 2 or not x.size or x.dtype not in (np.float32, np.float64):
        return None
    places = output_size(tuple(x.shape[1:-1]), window, stride, padding, (1,) * len(window))
    flat = len(window) == 1
    rows = (1, 1, 1, 0) if flat else ()  # of a sequence, the image has one row
    settings = []
    for position, lengths in enumerate((places, window, stride, [before for before, _ in padding])):
        settings += [*rows[position : position + 1], *lengths]
    image = (x.shape[0], 1, *x.shape[1:]) if flat else tuple(x.shape)
    given = recorder.reshape(recorder.contiguous(x), image)
    y = recorder.empty((x.shape[0], *((1,) if flat else ()), *places, x.shape[-1]), x.dtype)
    recorder.call(MAX_POOL, given, *settings, y)

    def vjp(dy: Any) -> tuple[Any]:
        dx = recorder.empty(image, x.dtype)
        cotangent = recorder.reshape(recorder.contiguous(dy), y.shape)
        recorder.call(MAX_POOL_GRADIENT, given, y, cotangent, *settings, dx)
        return (recorder.reshape(dx, x.shape),)

    return recorder.reshape(y, (x.shape[0], *places, x.shape[-1])), vjp
