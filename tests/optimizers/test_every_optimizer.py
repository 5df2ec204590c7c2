"""What holds for each optimizer and each option, on every backend."""

import jax
import numpy as np
import pytest

import xpnn
from xpnn.config import decode, encode
from xpnn.errors import ConfigError
from xpnn.optimizers import OPTIMIZERS

VARIANTS = {
    **{name: kind() for name, kind in OPTIMIZERS.items()},
    "sgd-momentum": xpnn.SGD(0.1, momentum=0.9, dampening=0.3),
    "sgd-nesterov": xpnn.SGD(0.1, momentum=0.9, nesterov=True),
    "rmsprop-momentum": xpnn.RMSprop(momentum=0.9),
    "rmsprop-centered": xpnn.RMSprop(centered=True),
    "rmsprop-centered-momentum": xpnn.RMSprop(centered=True, momentum=0.5),
    "adagrad-decay": xpnn.Adagrad(learning_rate_decay=0.1, initial_accumulator=0.1),
    "adamw-amsgrad": xpnn.AdamW(amsgrad=True, decay_biases=True),
    "adam-everything": xpnn.Adam(
        xpnn.Warmup(3, xpnn.Cosine(0.1, 20)),
        weight_decay=0.1,
        clip_value=0.5,
        clip_norm=0.9,
        clip_global_norm=1.0,
        ema=0.9,
    ),
    "lion-decay": xpnn.Lion(xpnn.StepDecay(0.1, 2), weight_decay=0.1, ema=0.5),
    "bb-short": xpnn.BarzilaiBorwein(0.1, long=False, weight_decay=0.01),
    "nadam-constant-momentum": xpnn.Nadam(momentum_decay=0.0),
    "lamb-everything": xpnn.LAMB(xpnn.Cosine(0.1, 20), adapt_biases=True, decay_biases=True, clip_norm=0.9, ema=0.9),
    "lars-adapt-biases": xpnn.LARS(momentum=0.0, adapt_biases=True, weight_decay=0.0),
    "adafactor-everything": xpnn.Adafactor(xpnn.Cosine(0.1, 20), -0.5, 1e-3, 1e-2, 0.5, 0.1, ema=0.9),
    "muon-rms": xpnn.Muon(scale="match_rms_adamw", nesterov=False, weight_decay=0.1, ema=0.5),
    "lbfgs-short": xpnn.LBFGS(0.1, history_size=1, least_curvature=1e-20, weight_decay=0.01, ema=0.5),
    "beta-zero": xpnn.Adam(beta1=0.0, beta2=0.0),
}
every_variant = pytest.mark.parametrize("optimizer", VARIANTS.values(), ids=VARIANTS)


def vector(layout, arrays, backend, dtype):
    return tuple(backend.copy(backend.asarray(block, dtype)) for block in layout.join(arrays))


def train(optimizer, layout, draw, backend, dtype, steps=6, as_step=lambda number: number):
    """(theta, slots) as host arrays by name, after some steps with given gradients."""
    theta = vector(layout, draw(layout, 0), backend, dtype)
    slots = optimizer.initial_slots(theta, layout)
    for number in range(steps):
        gradient = vector(layout, draw(layout, 1 + number, scale=0.5), backend, dtype)
        theta, slots = optimizer.apply(theta, gradient, slots, as_step(number), layout)
    vectors = {"theta": theta, **slots}
    return {
        (slot, name): backend.to_host(part)
        for slot, blocks in vectors.items()
        for name, part in optimizer.slot_layout(slot, layout).split(blocks).items()
    }


def assert_close(got, want, rtol):
    assert got.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value, rtol=rtol, atol=rtol * np.abs(value).max(), err_msg=str(key))


@every_variant
def test_every_backend_agrees_with_numpy(optimizer, backend, dtype, make_layout, draw):
    with backend.context():
        got = train(optimizer, make_layout(dtype, backend.blocked), draw, backend, dtype)
    assert all(value.dtype == dtype for value in got.values())
    want = train(optimizer, make_layout(), draw, xpnn.get_backend("numpy"), "float64")
    assert_close(got, want, 1e-12 if dtype == "float64" else 1e-4)


@every_variant
def test_the_step_may_be_an_array(optimizer, backend, dtype, make_layout, draw):
    """Nothing is read from the device, and no dtype grows."""
    layout = make_layout(dtype, backend.blocked)
    with backend.context():
        want = train(optimizer, layout, draw, backend, dtype)
        with backend.discipline():
            got = train(
                optimizer, layout, draw, backend, dtype, as_step=lambda n: backend.asarray(np.asarray(n), "int64")
            )
    assert all(value.dtype == dtype for value in got.values())
    assert_close(got, want, 1e-12 if dtype == "float64" else 1e-4)


@every_variant
def test_blocks_and_one_vector_agree(optimizer, make_layout, draw):
    numpy = xpnn.get_backend("numpy")
    flat = train(optimizer, make_layout(), draw, numpy, "float64", steps=10)
    blocks = train(optimizer, make_layout(blocked=True), draw, numpy, "float64", steps=10)
    assert_close(blocks, flat, 1e-13)


@pytest.mark.xpnn_rows(only=["jax"])
@every_variant
def test_jitted_and_eager_steps_agree(optimizer, backend, dtype, make_layout, draw):
    layout = make_layout(dtype, blocked=True)
    theta = vector(layout, draw(layout, 0), backend, dtype)
    slots = optimizer.initial_slots(theta, layout)
    state = jitted_state = (theta, slots)
    jitted = jax.jit(lambda state, gradient, step: optimizer.apply(state[0], gradient, state[1], step, layout))
    for number in range(5):
        gradient = vector(layout, draw(layout, 1 + number), backend, dtype)
        state = optimizer.apply(state[0], gradient, state[1], number, layout)
        jitted_state = jitted(jitted_state, gradient, number)
    for got, want in zip(jax.tree.leaves(jitted_state), jax.tree.leaves(state), strict=True):
        assert got.dtype == dtype
        scale = float(abs(want).max())
        assert float(abs(got - want).max()) <= (1e-13 if dtype == "float64" else 1e-5) * scale


@every_variant
def test_padding_stays_zero(optimizer, make_layout, draw):
    layout = make_layout()
    theta = vector(layout, draw(layout, 0), xpnn.get_backend("numpy"), "float64")
    padding = np.ones(theta[0].shape, bool)
    for start, stop in layout.spans.values():
        padding[start:stop] = False
    assert padding.any()
    slots = optimizer.initial_slots(theta, layout)
    for number in range(20):
        gradient = layout.join(draw(layout, 1 + number))
        theta, slots = optimizer.apply(theta, gradient, slots, number, layout)
    assert np.all(theta[0][padding] == 0.0)
    assert all(np.all(np.isfinite(block)) for blocks in slots.values() for block in blocks)


@every_variant
def test_slots_share_no_memory_with_theta_or_each_other(optimizer, make_layout, draw):
    layout = make_layout()
    theta = layout.join(draw(layout, 0))
    slots = optimizer.initial_slots(theta, layout)
    blocks = [theta[0], *(block for slot in slots.values() for block in slot)]
    for index, block in enumerate(blocks):
        assert not any(np.shares_memory(block, other) for other in blocks[index + 1 :])


@every_variant
def test_it_can_be_written_down_and_built_again(optimizer):
    again = decode(encode(optimizer))
    assert again == optimizer
    assert type(again) is type(optimizer)
    assert eval(repr(optimizer), vars(xpnn)) == optimizer


@every_variant
def test_it_minimises_a_quadratic(optimizer, make_layout, draw):
    """Adadelta starts with steps of 0.001: what is asked is only that the way goes down."""
    layout = make_layout()
    theta = layout.join(draw(layout, 0))
    first = np.sum(theta[0] ** 2)
    slots = optimizer.initial_slots(theta, layout)
    for number in range(12):
        theta, slots = optimizer.apply(theta, (theta[0] + 0.0,), slots, number, layout)
    assert np.sum(theta[0] ** 2) < first


def test_a_network_without_parameters_is_left_alone():
    optimizer = xpnn.Adam(clip_global_norm=1.0, ema=0.9, weight_decay=0.1)
    layout = xpnn.parameters.Layout(xpnn.parameters.Structure((), {}), "float32", False)
    slots = optimizer.initial_slots((), layout)
    assert optimizer.apply((), (), slots, 0, layout) == ((), slots)


def test_names():
    assert {name: kind.__name__ for name, kind in OPTIMIZERS.items()} == {
        "sgd": "SGD",
        "rmsprop": "RMSprop",
        "adagrad": "Adagrad",
        "adadelta": "Adadelta",
        "adam": "Adam",
        "amsgrad": "AMSGrad",
        "adamw": "AdamW",
        "nadam": "Nadam",
        "lion": "Lion",
        "barzilai_borwein": "BarzilaiBorwein",
        "lamb": "LAMB",
        "lars": "LARS",
        "adafactor": "Adafactor",
        "muon": "Muon",
        "lbfgs": "LBFGS",
    }


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("SGD", {"learning_rate": -1.0}),
        ("SGD", {"learning_rate": float("nan")}),
        ("SGD", {"learning_rate": "fast"}),
        ("SGD", {"learning_rate": True}),
        ("SGD", {"momentum": 1.0}),
        ("SGD", {"dampening": -0.1}),
        ("SGD", {"weight_decay": -0.1}),
        ("SGD", {"clip_value": 0.0}),
        ("SGD", {"clip_norm": -1.0}),
        ("SGD", {"clip_global_norm": float("inf")}),
        ("SGD", {"ema": 1.0}),
        ("SGD", {"ema": 0.0}),
        ("RMSprop", {"alpha": 1.0}),
        ("RMSprop", {"epsilon": 0.0}),
        ("RMSprop", {"momentum": -0.1}),
        ("Adagrad", {"learning_rate_decay": -1.0}),
        ("Adagrad", {"initial_accumulator": -1.0}),
        ("Adagrad", {"epsilon": 0.0}),
        ("Adadelta", {"rho": -0.1}),
        ("Adadelta", {"epsilon": 0.0}),
        ("Adam", {"beta1": 1.0}),
        ("Adam", {"beta2": -0.5}),
        ("Adam", {"epsilon": -1e-8}),
        ("AdamW", {"weight_decay": -1.0}),
        ("AMSGrad", {"beta1": 1.5}),
        ("Nadam", {"momentum_decay": -1.0}),
        ("Nadam", {"beta2": 1.0}),
        ("Lion", {"beta1": None}),
        ("BarzilaiBorwein", {"learning_rate": None}),
        ("LAMB", {"beta1": 1.0}),
        ("LAMB", {"beta2": -0.1}),
        ("LAMB", {"epsilon": 0.0}),
        ("LARS", {"momentum": 1.0}),
        ("LARS", {"trust": 0.0}),
        ("Adafactor", {"beta2_decay": 0.1}),
        ("Adafactor", {"beta2_decay": float("-inf")}),
        ("Adafactor", {"epsilon1": 0.0}),
        ("Adafactor", {"epsilon2": -1.0}),
        ("Adafactor", {"threshold": 0.0}),
        ("Muon", {"momentum": 1.0}),
        ("Muon", {"iterations": -1}),
        ("Muon", {"coefficients": (1.0, 2.0)}),
        ("Muon", {"coefficients": (1.0, 2.0, "three")}),
        ("Muon", {"epsilon": 0.0}),
        ("Muon", {"scale": "none"}),
        ("Muon", {"adam_factor": -1.0}),
        ("Muon", {"adam_beta1": 1.0}),
        ("Muon", {"adam_beta2": -1.0}),
        ("Muon", {"adam_epsilon": 0.0}),
        ("LBFGS", {"history_size": 0}),
        ("LBFGS", {"least_curvature": 0.0}),
        ("LBFGS", {"learning_rate": -1.0}),
    ],
)
def test_what_makes_no_sense_is_refused(kind, arguments):
    (name,) = arguments
    with pytest.raises(ConfigError, match=name):
        getattr(xpnn, kind)(**arguments)


def test_nesterov_needs_plain_momentum():
    with pytest.raises(ConfigError, match="nesterov"):
        xpnn.SGD(nesterov=True)
    with pytest.raises(ConfigError, match="nesterov"):
        xpnn.SGD(momentum=0.9, dampening=0.1, nesterov=True)


def test_numbers_of_numpy_become_floats():
    """A np.float64 among the settings would turn float32 parameters into float64 ones."""
    assert type(xpnn.SGD(np.float64(0.1)).learning_rate) is float
    assert type(xpnn.Adam(beta1=np.float32(0.5)).beta1) is float


def test_equal_options_make_equal_optimizers():
    assert xpnn.Adam(clip_norm=None) == xpnn.Adam()
    assert xpnn.Adam(clip_norm=1) == xpnn.Adam(clip_norm=1.0)
    assert xpnn.Adam(clip_norm=1) != xpnn.Adam()
    assert repr(xpnn.Adam(clip_norm=1)) == "Adam(clip_norm=1.0)"
