"""PyTorch's RNN, LSTM, GRU (packed sequences too) and CTC loss agree with xpnn's: values and all gradients."""

import numpy as np
import pytest

import xpnn
from xpnn import ops
from xpnn.layers import Run, recurrent_weights_from_torch

torch = pytest.importorskip("torch")

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}
KINDS = {"rnn": (torch.nn.RNN, xpnn.RNN), "lstm": (torch.nn.LSTM, xpnn.LSTM), "gru": (torch.nn.GRU, xpnn.GRU)}
FEATURES, UNITS = 3, 4


def normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


def torch_module(kind, layers, bidirectional, **options):
    torch.manual_seed(layers)
    return KINDS[kind][0](
        FEATURES, UNITS, layers, bidirectional=bidirectional, batch_first=True, dtype=torch.float64, **options
    )


def in_xpnn(parameters):
    """PyTorch's parameters, or their gradients, by xpnn's names."""
    return recurrent_weights_from_torch({name: value.detach().numpy() for name, value in parameters.items()})


def gradients_in_xpnn(module):
    """The gradients by xpnn's names. Two biases that are added have the same gradient: half of its double."""
    gradients = {name: value.grad for name, value in module.named_parameters()}
    found = in_xpnn(gradients)
    return {name: value / 2 if name.endswith(".bias") or name == "bias" else value for name, value in found.items()}


def compare(module, layer, x, states, lengths=None):
    """Values and all gradients of layer and module are the same, for a random cotangent of every result."""
    time = x.shape[1]
    given = torch.tensor(x, requires_grad=True)
    torch_states = [in_torch(state) for state in states]
    for state in torch_states:
        state.requires_grad_()
    sequence = given
    if lengths is not None:
        sequence = torch.nn.utils.rnn.pack_padded_sequence(given, lengths, batch_first=True, enforce_sorted=False)
    y, last = module(sequence, tuple(torch_states) if len(states) == 2 else torch_states[0])
    if lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=time)
    last = last if isinstance(last, tuple) else (last,)

    run = Run(training=True)
    if lengths is not None:
        run.mask = np.arange(time) < np.asarray(lengths)[:, None]
    results, backward = layer.forward((x, *states), in_xpnn(module.state_dict()), run)
    np.testing.assert_allclose(results[0], y.detach().numpy(), **TOLERANCE)
    for mine, other in zip(results[1:], last, strict=True):
        np.testing.assert_allclose(mine, to_batch_first(other, states[0]), **TOLERANCE)

    cotangents = [normal(result.shape, 10 + index) for index, result in enumerate(results)]
    total = (y * torch.tensor(cotangents[0])).sum()
    for other, cotangent in zip(last, cotangents[1:], strict=True):
        total = total + (other * in_torch(cotangent)).sum()
    total.backward()
    dinputs, gradients = backward(tuple(cotangents))
    np.testing.assert_allclose(dinputs[0], given.grad.numpy(), **TOLERANCE)
    for mine, other in zip(dinputs[1:], torch_states, strict=True):
        np.testing.assert_allclose(mine, to_batch_first(other.grad, states[0]), **TOLERANCE)
    wanted = gradients_in_xpnn(module)
    assert set(gradients) == set(wanted)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], err_msg=name, **TOLERANCE)


def in_torch(state):
    """A state as PyTorch wants it, (layers * directions, batch, units)."""
    state = state if state.ndim == 3 else state[:, None, :]
    return torch.tensor(np.moveaxis(state, 1, 0).copy())


def to_batch_first(state, like):
    return np.moveaxis(state.detach().numpy(), 0, 1).reshape(like.shape)


def states_for(kind, batch, layers, bidirectional):
    count = layers * (2 if bidirectional else 1)
    shape = (batch, UNITS) if count == 1 else (batch, count, UNITS)
    return [normal(shape, 5 + index) for index in range(2 if kind == "lstm" else 1)]


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind, layers, bidirectional, batch):
    module = torch_module(kind, layers, bidirectional)
    layer = KINDS[kind][1](UNITS, layers, bidirectional, return_sequences=True, return_state=True)
    compare(module, layer, normal((batch, 6, FEATURES), 1), states_for(kind, batch, layers, bidirectional))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(kind, layers, bidirectional):
    module = torch_module(kind, layers, bidirectional)
    layer = KINDS[kind][1](UNITS, layers, bidirectional, return_sequences=True, return_state=True)
    states = states_for(kind, 4, layers, bidirectional)
    compare(module, layer, normal((4, 6, FEATURES), 2), states, lengths=[3, 6, 1, 4])


@pytest.mark.parametrize("kind", KINDS)
def test_without_biases(kind):
    module = torch_module(kind, 1, True, bias=False)
    layer = KINDS[kind][1](UNITS, 1, True, return_sequences=True, return_state=True, bias=False)
    compare(module, layer, normal((3, 5, FEATURES), 3), states_for(kind, 3, 1, True))


def test_relu():
    module = torch_module("rnn", 2, False, nonlinearity="relu")
    layer = xpnn.RNN(UNITS, 2, return_sequences=True, return_state=True, activation="relu")
    compare(module, layer, normal((3, 5, FEATURES), 3), states_for("rnn", 3, 2, False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_ends_in_the_last_step(kind):
    """Of two directions: the last step of the one, and the first of the other, which has then seen all steps."""
    module = torch_module(kind, 1, True)
    network = xpnn.Network(KINDS[kind][1](UNITS, bidirectional=True), dtype="float64", input_shape=(5, FEATURES))
    network.set_parameters({f"0.{name}": value for name, value in in_xpnn(module.state_dict()).items()})
    x = normal((3, 5, FEATURES), 4)
    y, _ = module(torch.tensor(x))
    wanted = torch.cat([y[:, -1, :UNITS], y[:, 0, UNITS:]], dim=-1)
    np.testing.assert_allclose(network.predict(x), wanted.detach().numpy(), **TOLERANCE)
    target = normal((3, 2 * UNITS), 5)
    torch.nn.functional.mse_loss(wanted, torch.tensor(target)).backward()
    _, gradients = network.loss_and_gradients(x, target, loss="mse")
    for name, gradient in gradients_in_xpnn(module).items():
        np.testing.assert_allclose(gradients[f"0.{name}"], gradient, err_msg=name, **TOLERANCE)


CTC_SIZES = [(4, 9, 5, 4), (3, 1, 3, 1), (5, 12, 3, 5), (2, 6, 4, 0), (3, 60, 10, 8), (1, 4, 3, 2)]


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("sizes", CTC_SIZES)
def test_ctc(sizes, zero_infinity, reduction, with_lengths):
    batch, time, classes, length = sizes
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.standard_normal((batch, time, classes))
    lengths = np.arange(batch) * 7 % (length + 1)  # with 3 classes there are many repeated labels, and some do not fit
    targets = np.where(np.arange(length) < lengths[:, None], rng.integers(1, classes, (batch, length)), -1)
    input_lengths = np.maximum(time - np.arange(batch), 1)
    given = torch.tensor(logits, requires_grad=True)
    wanted = torch.nn.functional.ctc_loss(
        torch.log_softmax(given, -1).permute(1, 0, 2),
        torch.tensor(np.maximum(targets, 0)),
        torch.tensor(input_lengths if with_lengths else np.full(batch, time)),
        torch.tensor(lengths),
        reduction=reduction,
        zero_infinity=zero_infinity,
    )
    wanted.backward()
    value, vjp = ops.ctc(
        logits, targets, None, input_lengths if with_lengths else None, reduction=reduction, zero_infinity=zero_infinity
    )
    np.testing.assert_allclose(value, wanted.item(), **TOLERANCE)
    np.testing.assert_allclose(vjp(1.0)[0], given.grad.numpy(), **TOLERANCE)


def test_ctc_with_labels_that_do_not_fit():
    """Two equal labels need a blank between them: three steps. PyTorch's gradient is NaN there, without the option."""
    logits = normal((2, 2, 4), 0)
    targets, lengths = np.asarray([[1, 1], [1, 2]]), torch.tensor([2, 2])
    for zero_infinity in (False, True):
        given = torch.tensor(logits, requires_grad=True)
        wanted = torch.nn.functional.ctc_loss(
            torch.log_softmax(given, -1).permute(1, 0, 2),
            torch.tensor(targets),
            lengths,
            lengths,
            reduction="mean",
            zero_infinity=zero_infinity,
        )
        wanted.backward()
        value, vjp = ops.ctc(logits, targets, zero_infinity=zero_infinity)
        assert np.isinf(value) == (not zero_infinity)
        np.testing.assert_allclose(value, wanted.item(), **TOLERANCE)
        np.testing.assert_allclose(vjp(1.0)[0], given.grad.numpy(), **TOLERANCE)
