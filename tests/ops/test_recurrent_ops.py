"""rnn, lstm, gru and ctc: what the matrix does not say about them."""

import itertools

import numpy as np
import pytest

import xpnn
from xpnn import ops
from xpnn.errors import ConfigError, ShapeError
from xpnn.ops.rnn import tanh_step

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
STATES = {"rnn": 1, "lstm": 2, "gru": 1}


def arguments(name, batch=3, time=5, features=2, units=4, seed=0):
    """(x, weights and biases, states) of one of the ops."""
    rng = np.random.default_rng(seed)
    columns = GATES[name] * units
    biases = [rng.standard_normal(columns) for _ in range(2 if name == "gru" else 1)]
    weights = [rng.standard_normal((features, columns)), rng.standard_normal((units, columns)), *biases]
    states = [rng.standard_normal((batch, units)) for _ in range(STATES[name])]
    return rng.standard_normal((batch, time, features)), weights, states


def call(name, x, weights, states, mask=None, **options):
    return ops.OPS[name].function(x, *weights, *states, mask, **options)


@pytest.mark.parametrize("name", GATES)
def test_one_step_after_the_other(name):
    """A scan over all steps is the scan over the first ones, continued with its states."""
    x, weights, states = arguments(name)
    (y, *last), _ = call(name, x, weights, states)
    (first, *between), _ = call(name, x[:, :2], weights, states)
    (rest, *end), _ = call(name, x[:, 2:], weights, between)
    np.testing.assert_allclose(y, np.concatenate([first, rest], axis=1), rtol=1e-14)
    for mine, other in zip(last, end, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-14)
    np.testing.assert_array_equal(last[0], y[:, -1])


@pytest.mark.parametrize("name", GATES)
def test_reverse_is_the_scan_of_the_reversed_sequence(name):
    x, weights, states = arguments(name)
    (y, *last), _ = call(name, x, weights, states, reverse=True)
    (mirrored, *mirrored_last), _ = call(name, x[:, ::-1], weights, states)
    np.testing.assert_array_equal(y, mirrored[:, ::-1])
    for mine, other in zip(last, mirrored_last, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", GATES)
def test_masked_steps_do_not_happen(name, reverse):
    """With masks of any form, results and gradients are those of the sequence without its masked steps."""
    x, weights, states = arguments(name, batch=1)
    for kept in itertools.product([False, True], repeat=x.shape[1]):
        mask = np.asarray([kept])
        steps = np.flatnonzero(mask[0])
        (y, *last), vjp = call(name, x, weights, states, mask, reverse=reverse)
        (short, *short_last), short_vjp = call(name, x[:, steps], weights, states, reverse=reverse)
        np.testing.assert_allclose(y[:, steps], short, rtol=1e-14)
        np.testing.assert_array_equal(y[~mask], 0.0)
        dy = np.random.default_rng(1).standard_normal(y.shape)
        dlast = [np.ones_like(state) for state in last]
        dx, *gradients = vjp((dy, *dlast))
        short_dx, *short_gradients = short_vjp((dy[:, steps], *dlast))
        np.testing.assert_allclose(dx[:, steps], short_dx, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(dx[~mask], 0.0)
        for mine, other in zip([*last, *gradients[:-1]], [*short_last, *short_gradients[:-1]], strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-14)
        assert gradients[-1] is None


@pytest.mark.parametrize("name", GATES)
def test_no_steps_and_no_samples(name):
    x, weights, states = arguments(name, time=0)
    (y, *last), vjp = call(name, x, weights, states)
    assert y.shape == (3, 0, 4)
    for mine, given in zip(last, states, strict=True):
        np.testing.assert_array_equal(mine, given)
    dx, *gradients = vjp((y, *last))
    assert dx.shape == x.shape
    for gradient, weight in zip(gradients, weights, strict=False):
        np.testing.assert_array_equal(gradient, np.zeros_like(weight))
    for gradient, state in zip(gradients[len(weights) : -1], last, strict=True):
        np.testing.assert_array_equal(gradient, state)

    x, weights, states = arguments(name, batch=0)
    (y, *last), vjp = call(name, x, weights, states)
    assert y.shape == (0, 5, 4)
    dx, *gradients = vjp((y, *last))
    assert dx.shape == x.shape
    for gradient, weight in zip(gradients, weights, strict=False):
        np.testing.assert_array_equal(gradient, np.zeros_like(weight))


@pytest.mark.parametrize("name", GATES)
def test_gradients_that_are_not_asked_for(name):
    x, weights, states = arguments(name)
    nothing = [None] * len(states)
    (y, *last), vjp = call(name, x, weights, states, input_gradient=False)
    full = vjp((np.zeros_like(y), *(np.zeros_like(state) for state in last)))
    assert full[0] is None
    for gradient in full[1:-1]:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))

    bare = [*weights[:2], *(None for _ in weights[2:])]
    (y, *_), vjp = call(name, x, bare, nothing)
    dx, dweight_input, dweight_hidden, *others = vjp((np.ones_like(y), *nothing))
    assert dx.shape == x.shape
    assert [dweight_input.shape, dweight_hidden.shape] == [weight.shape for weight in weights[:2]]
    assert others == [None] * len(others)
    with_zeros = vjp((np.ones_like(y), *(np.zeros_like(state) for state in states)))
    np.testing.assert_array_equal(dx, with_zeros[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", GATES)
def test_very_large_numbers(name, dtype):
    x, weights, states = arguments(name)
    x, *weights = (1e4 * array.astype(dtype) for array in (x, *weights))
    states = [np.tanh(state).astype(dtype) for state in states]
    (y, *last), vjp = call(name, x, weights, states)
    assert np.all(np.abs(y) <= 1.0)
    gradients = vjp((np.ones_like(y), *map(np.ones_like, last)))
    for result in (y, *last, *gradients[:-1]):
        assert result.dtype == dtype
        assert np.all(np.isfinite(result))


@pytest.mark.parametrize("name", GATES)
def test_shapes_that_do_not_fit(name):
    x, weights, states = arguments(name)
    with pytest.raises(ShapeError, match=f"{name}: x has shape"):
        call(name, x[0], weights, states)
    with pytest.raises(ShapeError, match=f"{name}: weight_input has shape"):
        call(name, x[:, :, :1], weights, states)
    with pytest.raises(ShapeError, match=f"{name}: weight_hidden has shape"):
        call(name, x, [weights[0], weights[1][:, :-1], *weights[2:]], states)
    with pytest.raises(ShapeError, match=f"{name}: bias(_hidden)? has shape"):
        call(name, x, [*weights[:-1], weights[-1][:-1]], states)
    with pytest.raises(ShapeError, match=f"{name}: hidden has shape"):
        call(name, x, weights, [states[0][:1], *states[1:]])
    with pytest.raises(ShapeError, match=f"{name}: mask has shape"):
        call(name, x, weights, states, np.ones((3, 4), bool))


def test_unknown_activation():
    x, weights, states = arguments("rnn")
    with pytest.raises(ConfigError, match="activation='gelu' of rnn is unknown"):
        call("rnn", x, weights, states, activation="gelu")


# --- connectionist temporal classification ----------------------------------------------------------------------------


def said(sequence, blank):
    """The labels that a sequence of classes stands for."""
    changes = [label for index, label in enumerate(sequence) if index == 0 or label != sequence[index - 1]]
    return [label for label in changes if label != blank]


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("labels", [[], [1], [1, 1], [1, 1, 1], [0, 1], [1, 0, 1], [0, 0]])
def test_ctc_sums_over_all_alignments(labels, blank):
    labels = [label + 1 for label in labels] if blank == 0 else labels
    logits = np.random.default_rng(0).standard_normal((1, 5, 3))
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=1, keepdims=True)
    total = sum(
        np.prod([probabilities[step, label] for step, label in enumerate(sequence)])
        for sequence in itertools.product(range(3), repeat=5)
        if said(sequence, blank) == labels
    )
    targets = np.asarray([[*labels, -1, -1]])
    value, _ = ops.ctc(logits, targets, blank=blank, reduction="sum")
    np.testing.assert_allclose(value, -np.log(total), rtol=1e-13)


def test_ctc_reductions_and_weights():
    logits = np.random.default_rng(0).standard_normal((3, 6, 4))
    targets = np.asarray([[1, 2, 3], [1, -1, -1], [-1, -1, -1]])
    weight = np.asarray([2.0, 0.5, 1.0])
    each = np.asarray([ops.ctc(logits[i : i + 1], targets[i : i + 1], reduction="sum")[0] for i in range(3)])
    lengths = np.asarray([3, 1, 1])
    for reduction, wanted in {
        "sum": (each * weight).sum(),
        "half_sum": (each * weight).sum() / 2,
        "batch_mean": (each * weight).sum() / weight.sum(),
        "half_batch_mean": (each * weight).sum() / weight.sum() / 2,
        "mean": (each / lengths * weight).sum() / weight.sum(),
    }.items():
        np.testing.assert_allclose(ops.ctc(logits, targets, weight, reduction=reduction)[0], wanted, rtol=1e-14)


def test_ctc_without_steps_or_samples():
    value, vjp = ops.ctc(np.zeros((2, 0, 3)), np.asarray([[-1], [1]]), reduction="sum")
    assert value == np.inf  # no steps say no labels, but not one label
    assert vjp(1.0)[0].shape == (2, 0, 3)
    assert ops.ctc(np.zeros((2, 0, 3)), np.full((2, 1), -1), reduction="sum")[0] == 0.0
    value, vjp = ops.ctc(np.zeros((0, 4, 3)), np.zeros((0, 2), np.int64))
    assert value == 0.0
    assert vjp(1.0)[0].shape == (0, 4, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ctc_of_large_logits_and_long_sequences(dtype):
    """Logarithms neither overflow nor lose their digits; the rows of the gradient add up to 0."""
    rng = np.random.default_rng(0)
    for scale, time in ((1e4, 20), (1.0, 400)):
        logits = (scale * rng.standard_normal((2, time, 5))).astype(dtype)
        targets = rng.integers(1, 5, (2, 9))
        value, vjp = ops.ctc(logits, targets, reduction="sum")
        exact, exact_vjp = ops.ctc(logits.astype(np.float64), targets, reduction="sum")
        gradient, exact_gradient = vjp(1.0)[0], exact_vjp(1.0)[0]
        assert value.dtype == gradient.dtype == dtype
        np.testing.assert_allclose(value, exact, rtol=1e-6)
        np.testing.assert_allclose(gradient, exact_gradient, atol=2e-5 if scale == 1.0 else 1e-2)
        np.testing.assert_allclose(gradient.sum(axis=-1), 0.0, atol=1e-5)


def test_ctc_arguments_that_do_not_fit():
    logits = np.zeros((2, 4, 3))
    with pytest.raises(ShapeError, match="the logits have shape"):
        ops.ctc(logits[0], np.ones((2, 1), np.int64))
    with pytest.raises(ShapeError, match="targets of shape"):
        ops.ctc(logits, np.ones(2, np.int64))
    with pytest.raises(ShapeError, match="input_lengths has shape"):
        ops.ctc(logits, np.ones((2, 1), np.int64), None, np.ones((2, 1), np.int64))
    with pytest.raises(ConfigError, match="blank=3 is no class"):
        ops.ctc(logits, np.ones((2, 1), np.int64), blank=3)


# --- steps and padding ------------------------------------------------------------------------------------------------


def test_steps_as_samples():
    x = np.arange(24.0).reshape(2, 3, 4)
    steps, vjp = ops.fold_time(x)
    np.testing.assert_array_equal(steps, x.reshape(6, 4))
    np.testing.assert_array_equal(vjp(steps)[0], x)
    np.testing.assert_array_equal(ops.unfold_time(steps, 2, 3)[0], x)
    with pytest.raises(ShapeError, match="is no 2 sequences of 4 steps"):
        ops.unfold_time(steps, 2, 4)
    with pytest.raises(ShapeError, match="fold_time: x has shape"):
        ops.fold_time(x[0, 0])
    with pytest.raises(ShapeError, match="padding_mask: x has shape"):
        ops.padding_mask(x[0])


@pytest.mark.parametrize(("op", "gates"), [(ops.rnn, 1), (ops.lstm, 4), (ops.gru, 3)])
def test_a_mask_of_numbers_is_refused(op, gates):
    x, mask = np.ones((2, 3, 4)), np.ones((2, 3))
    with pytest.raises(ConfigError, match="the mask has dtype float64; give bools"):
        op(x, np.ones((4, 5 * gates)), np.ones((5, 5 * gates)), mask=mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 4)), np.ones((4, 4)), None, None, np.ones((2, 4))), r"products of shape \(2, 4\) and 1 states"),
        ((np.ones((3, 2, 4)), np.ones((4, 4)), None, None), "and 0 states"),
        ((np.ones((3, 2, 4)), np.ones((4, 5)), None, None, np.ones((2, 4))), r"weight_hidden .* must have \(4, 4\)"),
        ((np.ones((3, 2, 4)), np.ones((4, 4)), np.ones(5), None, np.ones((2, 4))), r"bias_hidden .* must have \(4,\)"),
        ((np.ones((3, 2, 4)), np.ones((4, 4)), None, np.ones((3, 2), bool), np.ones((2, 4))), r"mask .* \(2, 3\)"),
        ((np.ones((3, 2, 4)), np.ones((4, 4)), None, None, np.ones((3, 4))), r"state 0 .* must have \(2, 4\)"),
    ],
)
def test_a_scan_of_arrays_that_do_not_fit(arguments, message):
    with pytest.raises(ShapeError, match=message):
        ops.scan(*arguments, step=tanh_step)


@pytest.mark.xpnn_rows(only=["jax"], dtypes="float64")
@pytest.mark.parametrize("blank", [0, 3])
def test_a_compiled_step_goes_through_the_same_ctc(backend, blank):
    """Under jit, the steps of CTC are one loop; the generic body takes them one by one."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((4, 6, 3))
    labels = np.array([[6, 1, 1, 2], [4, 2, -1, -1], [5, 2, 1, 2], [3, -1, -1, -1]])
    weights = np.array([1.0, 2.0, 0.0, 0.5])
    loss = xpnn.losses.CTC(blank=blank, input_lengths=True, reduction="batch_mean")
    losses = {}
    for spec in ("numpy", backend.spec):
        network = xpnn.Network(xpnn.GRU(5, return_sequences=True), xpnn.Dense(4), backend=spec, dtype="float64")
        options = {"epochs": 5, "batch_size": None, "sample_weight": weights, "verbose": 0}
        history = network.fit(x, labels, loss=loss, optimizer=xpnn.SGD(0.1), **options)
        losses[spec] = history["loss"]
    np.testing.assert_allclose(losses[backend.spec], losses["numpy"], rtol=1e-12)
