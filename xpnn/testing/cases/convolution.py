"""Cases of convolution and transposed convolution."""

from typing import Any

from xpnn.testing.cases.case import Case, Reals


def _settings(
    axes: int, *, stride: int = 1, padding: tuple[int, int] = (0, 0), dilation: int = 1, **others: Any
) -> dict[str, Any]:
    """The same settings along each axis."""
    return {"stride": (stride,) * axes, "padding": (padding,) * axes, "dilation": (dilation,) * axes, **others}


CASES = (
    Case("conv", (Reals((2, 5, 3)), Reals((3, 3, 4)), Reals((4,))), _settings(1), label="1d", exact=True, terms=12),
    Case(
        "conv",
        (Reals((2, 9, 2)), Reals((3, 2, 3)), Reals((3,))),
        _settings(1, padding=(4, 0), dilation=2),
        label="1d-causal",
        exact=True,
        terms=18,
    ),
    Case(
        "conv",
        (Reals((2, 5, 6, 3)), Reals((3, 2, 3, 4)), Reals((4,))),
        _settings(2),
        label="2d",
        exact=True,
        terms=30,
    ),
    Case(
        "conv",
        (Reals((2, 6, 7, 2)), Reals((3, 2, 2, 3))),
        {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (2, 1)},
        label="2d-uneven",
        exact=True,
        terms=18,
    ),
    # No tap ever sees the last row and the last column: their gradient is zero.
    Case(
        "conv",
        (Reals((2, 4, 6, 2)), Reals((1, 1, 2, 3))),
        _settings(2, stride=2),
        label="2d-gaps",
        exact=True,
        terms=12,
    ),
    Case(
        "conv",
        (Reals((2, 5, 4, 4)), Reals((3, 3, 2, 6)), Reals((6,))),
        _settings(2, padding=(1, 1), groups=2),
        label="2d-groups",
        exact=True,
        terms=40,
    ),
    Case(
        "conv",
        (Reals((2, 5, 4, 3)), Reals((3, 3, 1, 6)), Reals((6,))),
        _settings(2, padding=(1, 1), groups=3),
        label="2d-depthwise",
        exact=True,
        terms=40,
    ),
    Case(
        "conv",
        (Reals((2, 3, 4, 3, 2)), Reals((2, 2, 2, 2, 3)), Reals((3,))),
        _settings(3, padding=(1, 0)),
        label="3d",
        exact=True,
        terms=72,
    ),
    Case(
        "conv",
        (Reals((2, 4, 4, 2)), Reals((3, 3, 2, 3)), Reals((3,))),
        _settings(2, activation="tanh"),
        label="tanh",
        terms=18,
    ),
    Case(
        "conv",
        (Reals((2, 4, 4, 2), 0.1, 1.0), Reals((3, 3, 2, 3), 0.1, 1.0), Reals((3,), 0.1, 0.2)),
        _settings(2, activation="relu"),
        label="relu",
        terms=18,
    ),
    Case(
        "conv_transpose",
        (Reals((2, 4, 3)), Reals((3, 2, 3)), Reals((2,))),
        _settings(1, stride=2, output_padding=(1,)),
        label="1d",
        exact=True,
        terms=18,
    ),
    Case(
        "conv_transpose",
        (Reals((2, 3, 4, 3)), Reals((3, 2, 4, 3)), Reals((4,))),
        {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (2, 1), "output_padding": (1, 2)},
        label="2d-uneven",
        exact=True,
        terms=160,
    ),
    Case(
        "conv_transpose",
        (Reals((2, 3, 3, 4)), Reals((2, 3, 3, 4))),
        _settings(2, stride=2, padding=(1, 1), output_padding=(0, 0), groups=2),
        label="2d-groups",
        exact=True,
        terms=24,
    ),
    Case(
        "conv_transpose",
        (Reals((2, 3, 2)), Reals((3, 2, 2)), Reals((2,))),
        _settings(1, output_padding=(0,), activation="sigmoid"),
        label="sigmoid",
        terms=12,
    ),
)
