"""Cases of the normalisations."""

from xpnn.testing.cases.case import Case, Reals

_IMAGES = Reals((2, 3, 4, 6))
_VARIANCE = Reals((6,), 0.25, 2.0)


def _channels(count: int) -> tuple[Reals, Reals]:
    return Reals((count,), 0.5, 1.5), Reals((count,))


CASES = (
    Case("batch_norm", (Reals((7, 4)), *_channels(4)), terms=7),
    Case("batch_norm", (_IMAGES, *_channels(6)), label="images", terms=24),
    Case("batch_norm", (Reals((5, 3)), None, None), label="plain", terms=5),
    # A large epsilon, so that it is not lost beside the variance.
    Case("batch_norm", (Reals((7, 4)), *_channels(4)), {"epsilon": 0.5, "activation": "tanh"}, label="tanh", terms=7),
    Case("batch_norm", (_IMAGES, *_channels(6)), {"activation": "silu"}, label="silu", terms=24),
    Case("batch_norm", (Reals((1, 4)), *_channels(4)), label="one-sample"),
    # Mean and variance take part, with the signs of the derivatives on their own.
    Case("batch_norm_inference", (Reals((7, 4)), Reals((4,)), Reals((4,), 0.25, 2.0), *_channels(4)), terms=7),
    Case("batch_norm_inference", (_IMAGES, Reals((6,)), _VARIANCE, *_channels(6)), label="images", terms=24),
    Case("batch_norm_inference", (_IMAGES, Reals((6,)), _VARIANCE, None, None), label="plain", terms=24),
    Case(
        "batch_norm_inference",
        (Reals((7, 6)), Reals((6,)), _VARIANCE, *_channels(6)),
        {"activation": "sigmoid"},
        label="sigmoid",
        terms=7,
    ),
    Case("layer_norm", (Reals((5, 8)), *_channels(8)), terms=8),
    Case("layer_norm", (Reals((2, 5, 8)), *_channels(8)), {"epsilon": 0.5}, label="sequence", terms=10),
    Case("layer_norm", (Reals((3, 4, 5)), Reals((4, 5)), Reals((4, 5))), {"axes": 2}, label="two-axes", terms=20),
    Case("layer_norm", (Reals((5, 8)), None, None), label="plain", terms=8),
    Case("layer_norm", (Reals((9,)), *_channels(9)), label="no-batch", terms=9),
    Case("rms_norm", (Reals((5, 8)), Reals((8,))), terms=8),
    Case("rms_norm", (Reals((2, 5, 8)), Reals((8,))), {"epsilon": 0.5}, label="sequence", terms=10),
    Case("rms_norm", (Reals((3, 4, 5)), Reals((4, 5))), {"axes": 2}, label="two-axes", terms=20),
    Case("rms_norm", (Reals((5, 8)), None), label="plain", terms=8),
    Case("group_norm", (_IMAGES, *_channels(6)), {"groups": 2}, terms=36),
    Case("group_norm", (_IMAGES, *_channels(6)), {"groups": 6, "epsilon": 0.5}, label="instance", terms=24),
    Case("group_norm", (_IMAGES, None, None), {"groups": 1}, label="plain", terms=72),
    Case("group_norm", (Reals((3, 8)), *_channels(8)), {"groups": 2}, label="features", terms=4),
    Case("weight_norm", (Reals((5, 4)), Reals((4,))), terms=5),
    Case("weight_norm", (Reals((3, 3, 2, 4)), Reals((4,))), label="kernel", terms=18),
    Case("weight_norm", (Reals((3, 4, 5)), Reals((4,))), {"axis": -2}, label="inner-axis", terms=15),
    Case("weight_norm", (Reals((6,), avoid=(0.0,)), Reals((6,))), label="one-axis"),
)
