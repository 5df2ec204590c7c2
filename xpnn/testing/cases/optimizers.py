"""Cases of the optimizer updates; the second moments are kept away from 0, where a root has no derivative."""

from xpnn.testing.cases.case import Case, Reals, Values

_SHAPE = (7,)
_ANY = Reals(_SHAPE)
_POSITIVE = Reals(_SHAPE, 0.5, 2.0)
# Mixed so that no sign is near 0 for beta1 = 0.75 or 0.5.
_SIGNED_GRADIENT = Values((1.5, -0.5, 2.0, -2.0, 0.5, -1.5, 1.0))
_SIGNED_MOMENTUM = Values((0.5, -1.0, -0.5, -1.0, 1.5, 1.0, 1.0))
_DECAYS = Values((0.5, 0.5, 0.5, 0.0, 0.0, 0.25, 0.25))

_ADAM = (0.1, 0.9, 0.95, 1e-3, 0.3, 0.2)
_MATRIX = Reals((4, 3))
_LARGE = Reals((4, 3), 0.5, 2.0)
_MOMENTS = (_MATRIX, _LARGE)
_ROW, _COLUMN = Reals((4, 1), 0.5, 2.0), Reals((1, 3), 0.5, 2.0)
_ADAFACTOR = (0.1, 0.05, 0.3, 1e-3, 1e-3)
# Far from singular: the slope at a singular value near 0 is so steep that difference quotients miss it.
_REGULAR = Values(((1.5, -0.5, 0.3), (0.2, 1.2, -0.7), (-0.4, 0.6, -1.4)))
# Five iterations multiply what is rounded in small singular values by up to 3.4445^5 = 485.
_ITERATED = 512.0

CASES = (
    Case("sgd", (_ANY, _ANY, 0.25), exact=True),
    Case("sgd_momentum", (_ANY, _ANY, _ANY, 0.25, 0.5), exact=True),
    Case("sgd_momentum", (_ANY, _ANY, _ANY, 0.25, 0.5, 0.5), label="dampening", exact=True),
    Case("sgd_momentum", (_ANY, _ANY, _ANY, 0.25, 0.5), {"nesterov": True}, label="nesterov", exact=True),
    Case("rmsprop", (_ANY, _ANY, _POSITIVE, None, 0.1, 0.9, 1e-3)),
    Case("rmsprop", (_ANY, _ANY, _POSITIVE, _ANY, 0.1, 0.9, 1e-3, 0.8), label="momentum"),
    Case("rmsprop_centered", (_ANY, _ANY, _POSITIVE, _ANY, None, 0.1, 0.9, 1e-3)),
    Case("rmsprop_centered", (_ANY, _ANY, _POSITIVE, _ANY, _ANY, 0.1, 0.9, 1e-3, 0.8), label="momentum"),
    Case("adagrad", (_ANY, _ANY, _POSITIVE, 0.1, 1e-3)),
    Case("adadelta", (_ANY, _ANY, _POSITIVE, _POSITIVE, 0.7, 0.9, 1e-3)),
    Case("adam", (_ANY, _ANY, _ANY, _POSITIVE, *_ADAM)),
    Case("adam", (_ANY, _ANY, _ANY, _POSITIVE, *_ADAM, 0.3), label="decay"),
    Case("adam", (_ANY, _ANY, _ANY, _POSITIVE, *_ADAM, _DECAYS), label="decays"),
    # The old maximum is far below, or far above, the new second moment.
    Case("amsgrad", (_ANY, _ANY, _ANY, _POSITIVE, Reals(_SHAPE, 0.05, 0.2), *_ADAM), label="new-maximum"),
    Case("amsgrad", (_ANY, _ANY, _ANY, _POSITIVE, Reals(_SHAPE, 3.0, 4.0), *_ADAM, 0.3), label="old-maximum"),
    Case("amsgrad", (_ANY, _ANY, _ANY, _POSITIVE, Reals(_SHAPE, 3.0, 4.0), *_ADAM, _DECAYS), label="decays"),
    Case("nadam", (_ANY, _ANY, _ANY, _POSITIVE, 0.05, 0.08, 0.9, 0.95, 1e-3, 0.2)),
    Case("lion", (_ANY, _SIGNED_GRADIENT, _SIGNED_MOMENTUM, 0.25, 0.75, 0.5), exact=True),
    Case("lion", (_ANY, _SIGNED_GRADIENT, _SIGNED_MOMENTUM, 0.25, 0.75, 0.5, 0.5), label="decay", exact=True),
    Case("lion", (_ANY, _SIGNED_GRADIENT, _SIGNED_MOMENTUM, 0.25, 0.75, 0.5, _DECAYS), label="decays", exact=True),
    Case("secant_products", (_ANY, _ANY, _ANY, _ANY), exact=True, terms=7),
    Case("barzilai_borwein", (Values(3.0), Values(1.7), Values(1.3), 0.1), label="long"),
    Case("barzilai_borwein", (Values(3.0), Values(1.7), Values(1.3), 0.1), {"long": False}, label="short"),
    Case("barzilai_borwein", (Values(3.0), Values(-1.5), Values(1.5), 0.25), label="not-convex", exact=True),
    Case("add_weight_decay", (_ANY, _ANY, 0.25), exact=True),
    Case("add_weight_decay", (_ANY, _ANY, _DECAYS), label="decays", exact=True),
    Case("moving_average", (_ANY, _ANY, 0.75), exact=True),
    Case("add_to_sums", (Reals(()), Reals(()), Reals(()), 0.5), exact=True),
    Case("add_to_sums", (Reals(()), Reals(()), Reals(()), Reals(())), exact=True, label="shares"),
    Case("clip_by_value", (Reals(_SHAPE, avoid=(-1.0, 1.0)), 1.0), exact=True),
    Case("clip_by_norm", (Reals((3, 2), 1.0, 2.0), 0.5), label="clipped", terms=6),
    Case("clip_by_norm", (Reals((3, 2), -0.5, 0.5), 10.0), label="short", exact=True),
    Case("clip_by_global_norm", (Reals((3, 2), 1.0, 2.0), _ANY), {"limit": 0.5}, label="clipped", terms=13),
    Case("clip_by_global_norm", (Reals((3, 2)), _ANY), {"limit": 100.0}, label="short", exact=True),
    Case("clip_by_global_norm", (_ANY,), {"limit": 0.5}, label="one-block", terms=7),
    Case("global_norm", (Reals((3, 2)), _ANY), terms=13),
    Case("global_norm", (Values((1.5, -2.0, 0.0)),), label="one-block", terms=3),
    Case("lamb", (_MATRIX, _MATRIX, *_MOMENTS, *_ADAM), terms=12),
    Case("lamb", (_MATRIX, _MATRIX, *_MOMENTS, *_ADAM, 0.3), label="decay", terms=12),
    Case("lamb", (_ANY, _ANY, _ANY, _POSITIVE, *_ADAM, 0.3), {"adapt": False}, label="not-adapted"),
    Case("lars", (_MATRIX, _MATRIX, _MATRIX, 0.25, 0.5, 0.1), terms=12),
    Case("lars", (_MATRIX, _MATRIX, _MATRIX, 0.25, 0.5, 0.1, 0.3), label="decay", terms=12),
    Case("lars", (_ANY, _ANY, _ANY, 0.25, 0.5, 0.125, 0.5), {"adapt": False}, label="not-adapted", exact=True),
    Case(
        "lars",
        (Values((0.0, 0.0)), Values((1.5, -0.5)), Values((1.0, 2.0)), 0.25, 0.5, 0.125),
        label="at-zero",
        exact=True,
        differentiable=False,
    ),
    # The direction is about as long as its limit 1: cut, or left as it is.
    Case("adafactor", (_ANY, _ANY, _POSITIVE, *_ADAFACTOR, 0.3, 0.2), label="cut", terms=7),
    Case("adafactor", (_ANY, _ANY, _POSITIVE, *_ADAFACTOR, 10.0), label="not-cut", terms=7),
    Case(
        "adafactor",
        (Reals(_SHAPE, -1e-4, 1e-4), _ANY, _POSITIVE, 0.1, 0.05, 0.3, 1e-3, 0.5, 10.0),
        label="small-theta",
        terms=7,
    ),
    Case("adafactor", (_ANY, _ANY, _POSITIVE, 0.1, 0.05, 0.3, 5.0, 1e-3, 10.0), label="least-denominator", terms=7),
    Case("adafactor_factored", (_MATRIX, _MATRIX, _ROW, _COLUMN, *_ADAFACTOR, 0.3, 0.2), label="cut", terms=24),
    Case("adafactor_factored", (_MATRIX, _MATRIX, _ROW, _COLUMN, *_ADAFACTOR, 10.0), label="not-cut", terms=24),
    Case(
        "adafactor_factored",
        (_MATRIX, _MATRIX, _ROW, _COLUMN, 0.1, 0.05, 0.3, 5.0, 1e-3, 10.0),
        label="least-denominator",
        terms=24,
    ),
    Case(
        "adafactor_factored",
        (Reals((2, 4, 3)), Reals((2, 4, 3)), Reals((2, 4, 1), 0.5, 2.0), Reals((2, 1, 3), 0.5, 2.0), *_ADAFACTOR, 10.0),
        label="kernels",
        terms=48,
    ),
    Case("orthogonalize", (_REGULAR,), label="square", terms=9, roundings=_ITERATED),
    Case("orthogonalize", (Reals((5, 2)),), label="tall", terms=10, roundings=_ITERATED),
    Case("orthogonalize", (Reals((2, 5)),), label="wide", terms=10, roundings=_ITERATED),
    Case("orthogonalize", (Reals((3, 1)),), {"iterations": 2}, label="column", terms=3, roundings=_ITERATED),
    Case("orthogonalize", (Values(((1.0,),)),), {"epsilon": 8.0}, label="short", roundings=_ITERATED),
    Case(
        "orthogonalize",
        (_MATRIX,),
        {"coefficients": (1.875, -1.25, 0.375)},
        label="converging",
        terms=12,
        roundings=_ITERATED,
    ),
    Case("orthogonalize", (_MATRIX,), {"iterations": 0}, label="normed", terms=12),
    Case("muon", (_MATRIX, _MATRIX, _MATRIX, 0.1, 0.9), terms=12, roundings=_ITERATED),
    Case(
        "muon",
        (_MATRIX, _MATRIX, _MATRIX, 0.1, 0.9, 1.5, 0.3),
        {"nesterov": False},
        label="decay",
        terms=12,
        roundings=_ITERATED,
    ),
    Case(
        "muon",
        (Reals((2, 2, 3)), Reals((2, 2, 3)), Reals((2, 2, 3)), 0.1, 0.9),
        label="kernels",
        terms=12,
        roundings=_ITERATED,
    ),
    Case("inner_product", (_MATRIX, _MATRIX), exact=True, terms=12),
    Case("add_multiple", (_ANY, _ANY, Values(1.5)), exact=True, terms=7),
    Case("add_multiple", (_ANY, _ANY, -1.0), label="number", exact=True, terms=7),
    Case("multiple", (_ANY, Values(1.5)), exact=True, terms=7),
    Case("absolute_sum", (Reals(_SHAPE, avoid=(0.0,)),), exact=True, terms=7),
    Case("lbfgs_remember", (Values(0.5), _ANY, _ANY, _ANY), label="counts", exact=True),
    Case("lbfgs_remember", (Values(0.0), _ANY, _ANY, _ANY), label="does-not-count", exact=True),
    Case("lbfgs_remember", (Values(0.5), _ANY, _ANY), label="one", exact=True),
    Case("lbfgs_weight", (Values(1.5),), label="counts"),
    Case("lbfgs_weight", (Values(0.5),), {"least": 1.0}, label="too-little", exact=True),
    Case("lbfgs_weight", (Values(-0.5),), label="does-not-count", exact=True),
    Case("lbfgs_scale", (Values(1.5), Values(0.7), Values(2.0)), label="counts"),
    Case("lbfgs_scale", (Values(-0.5), Values(0.5), Values(2.0)), label="does-not-count", exact=True),
    Case("lbfgs_length", (Values(3.0), Values(0.0), 0.5), label="first"),
    Case("lbfgs_length", (Values(0.5), Values(0.0), 0.5), label="first-short", exact=True),
    Case("lbfgs_length", (Values(3.0), Values(1.0), 0.5), label="later", exact=True),
)
