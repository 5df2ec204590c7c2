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
    Case("clip_by_value", (Reals(_SHAPE, avoid=(-1.0, 1.0)), 1.0), exact=True),
    Case("clip_by_norm", (Reals((3, 2), 1.0, 2.0), 0.5), label="clipped", terms=6),
    Case("clip_by_norm", (Reals((3, 2), -0.5, 0.5), 10.0), label="short", exact=True),
    Case("clip_by_global_norm", (Reals((3, 2), 1.0, 2.0), _ANY), {"limit": 0.5}, label="clipped", terms=13),
    Case("clip_by_global_norm", (Reals((3, 2)), _ANY), {"limit": 100.0}, label="short", exact=True),
    Case("clip_by_global_norm", (_ANY,), {"limit": 0.5}, label="one-block", terms=7),
    Case("global_norm", (Reals((3, 2)), _ANY), terms=13),
    Case("global_norm", (Values((1.5, -2.0, 0.0)),), label="one-block", terms=3),
)
