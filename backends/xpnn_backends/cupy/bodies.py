"""The ops that have faster bodies on CuPy, by family."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Body
from xpnn_backends.cupy import (
    bodies_activations,
    bodies_attention,
    bodies_clipping,
    bodies_convolution,
    bodies_cudnn_normalization,
    bodies_embedding,
    bodies_linear,
    bodies_losses,
    bodies_normalization,
    bodies_optimizers,
    bodies_pooling,
    bodies_random,
    bodies_sums,
)

FAMILIES: tuple[Any, ...] = (
    bodies_activations,
    bodies_attention,
    bodies_clipping,
    bodies_convolution,
    bodies_embedding,
    bodies_linear,
    bodies_losses,
    bodies_normalization,
    bodies_cudnn_normalization,  # where cuDNN is there, in place of the ones before
    bodies_optimizers,
    bodies_pooling,
    bodies_random,
    bodies_sums,
)

BODIES: dict[str, Body] = {name: body for family in FAMILIES for name, body in family.BODIES.items()}
"""Op name -> body."""

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = [kernel for family in FAMILIES for kernel in family.KERNELS]
"""(family, kernel, template parameters) of everything that may be launched; compiled without a GPU in the tests."""
