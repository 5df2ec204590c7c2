"""MultiHeadAttention, positions, and the blocks of transformers."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Run
from xpnn.parameters import Layout, collect

RNG = np.random.default_rng(5)


def normal(*shape):
    return RNG.standard_normal(shape)


def build(layer, *shapes):
    """(forward, names of the parameters): forward(x, **of the run) with random parameters, in float64."""
    structure = collect(layer, layer.build(shapes if len(shapes) > 1 else shapes[0])[1])
    layout = Layout(structure, "float64", blocked=False)
    theta, buffers = layout.initialize(3, xpnn.get_backend("numpy"))

    def forward(x, mask=None, **options):
        run = Run(**options)
        run.mask = mask
        y, backward = layer.forward(x, layout.tree(theta, buffers), run)
        return y, backward, layout

    return forward, [entry.name for entry in structure.entries]


def test_names_and_shapes_of_parameters():
    network = xpnn.Network(
        xpnn.LearnedPositions(7),
        xpnn.MultiHeadAttention(4, head_size=3, key_value_heads=2, output=5),
        xpnn.TransformerEncoderBlock(5, 9, bias=False),
        input_shape=(6, 8),
    )
    shapes = {name: value.shape for name, value in network.parameters.items()}
    assert shapes == {
        "0.weight": (7, 8),
        "1.query.weight": (8, 12),
        "1.query.bias": (12,),
        "1.key.weight": (8, 6),
        "1.key.bias": (6,),
        "1.value.weight": (8, 6),
        "1.value.bias": (6,),
        "1.output.weight": (12, 5),
        "1.output.bias": (5,),
        "2.attention.query.weight": (5, 5),
        "2.attention.key.weight": (5, 5),
        "2.attention.value.weight": (5, 5),
        "2.attention.output.weight": (5, 5),
        "2.attention_norm.weight": (5,),
        "2.attention_norm.bias": (5,),
        "2.feed_forward.expand.weight": (5, 9),
        "2.feed_forward.contract.weight": (9, 5),
        "2.feed_forward_norm.weight": (5,),
        "2.feed_forward_norm.bias": (5,),
    }
    assert network.predict(np.zeros((2, 6, 8))).shape == (2, 6, 5)
    network.summary()


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (xpnn.MultiHeadAttention(2), [(3, 4)]),
        (xpnn.MultiHeadAttention(2), [(3, 4), (5, 6)]),
        (xpnn.TransformerEncoderBlock(2, 5), [(3, 4)]),
        (xpnn.TransformerDecoderBlock(2, 5), [(3, 4), (5, 6)]),
        (xpnn.TransformerDecoderBlock(2, 5), [(3, 4), (5, 6), (5,)]),
        (xpnn.LearnedPositions(3), [(3, 4)]),
        (xpnn.SinusoidalPositions(), [(3, 4)]),
    ],
)
def test_an_empty_batch(layer, shapes):
    forward, _ = build(layer, *shapes)
    arrays = tuple(np.zeros((0, *shape)) for shape in shapes)
    y, backward, layout = forward(arrays if len(shapes) > 1 else arrays[0], training=True)
    assert y.shape == (0, 3, 4)
    dx, gradients = backward(y)
    for gradient, array in zip(dx if len(shapes) > 1 else (dx,), arrays, strict=True):
        assert gradient is None or gradient.shape == array.shape
    layout.check_gradients(gradients)
    assert all((gradient == 0).all() for gradient in layout.gather(gradients).values())


@pytest.mark.parametrize("layer", [xpnn.MultiHeadAttention(2), xpnn.TransformerEncoderBlock(2, 5, dropout=0.0)])
def test_steps_that_the_mask_leaves_out_are_not_looked_at(layer):
    forward, _ = build(layer, (5, 4))
    x = normal(2, 5, 4)
    mask = np.array([[True, True, True, False, False], [True, False, True, True, True]])
    other = np.where(mask[..., None], x, 100.0)
    y, y_other = forward(x, mask)[0], forward(other, mask)[0]
    np.testing.assert_allclose(y[mask], y_other[mask], rtol=1e-12)
    assert not np.allclose(y[mask], forward(x)[0][mask])
    np.testing.assert_allclose(y[:1, :3], forward(x[:1, :3])[0], rtol=1e-12)


def test_a_decoder_looks_at_no_later_step_and_not_behind_the_mask_of_the_memory():
    forward, _ = build(xpnn.TransformerDecoderBlock(2, 5), (4, 6), (3, 6), (3,))
    x, memory = normal(2, 4, 6), normal(2, 3, 6)
    mask = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    y = forward((x, memory, mask))[0]
    later = x.copy()
    later[:, 2:] = 7.0
    np.testing.assert_array_equal(forward((later, memory, mask))[0][:, :2], y[:, :2])
    hidden = np.where(mask[..., None] != 0, memory, 7.0)
    np.testing.assert_allclose(forward((x, hidden, mask))[0], y, rtol=1e-12)
    assert not np.allclose(forward((x, memory + 1.0, mask))[0], y)


def test_a_mask_that_is_not_the_inputs():
    forward, _ = build(xpnn.MultiHeadAttention(2), (5, 4))
    with pytest.raises(ShapeError, match=r"MultiHeadAttention\(heads=2\): got a mask of shape \(2, 4\) for an input"):
        forward(normal(2, 5, 4), np.ones((2, 4), dtype=bool))


def test_decoder_blocks_in_a_row():
    blocks = xpnn.Sequential(
        xpnn.TransformerDecoderBlock(2, 5, return_memory=True), xpnn.TransformerDecoderBlock(2, 5, norm_first=False)
    )
    xpnn.testing.check_gradients(blocks, ((2, 3, 4), (2, 5, 6)))


@pytest.mark.parametrize(
    "layer",
    [
        xpnn.MultiHeadAttention(2, dropout=0.3),
        xpnn.LearnedPositions(9),
        xpnn.TransformerEncoderBlock(2, 5, dropout=0.3),
        xpnn.TransformerEncoderBlock(2, 5, dropout=0.3, norm_first=False),
    ],
)
def test_gradients_of_parameters_are_the_same_without_an_input_gradient(layer):
    forward, names = build(layer, (5, 4))
    x, dy = normal(3, 5, 4), normal(3, 5, 4)
    found = []
    for wanted in (True, False):
        _, backward, layout = forward(x, training=True, input_gradient=wanted)
        dx, gradients = backward(dy)
        assert (dx is not None) is wanted or isinstance(layer, xpnn.LearnedPositions)
        found.append(layout.gather(gradients))
    for name in names:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_dropout_acts_in_training_only():
    forward, _ = build(xpnn.TransformerEncoderBlock(2, 5, dropout=0.5), (5, 4))
    x = normal(2, 5, 4)
    still = forward(x)[0]
    assert not np.allclose(forward(x, training=True)[0], still)
    np.testing.assert_array_equal(forward(x, training=True, seed=1)[0], forward(x, training=True, seed=1)[0])
    assert not np.allclose(forward(x, training=True, seed=1)[0], forward(x, training=True, seed=2)[0])
    without, _ = build(xpnn.TransformerEncoderBlock(2, 5, dropout=0.0), (5, 4))
    np.testing.assert_array_equal(without(x, training=True)[0], still)


def test_a_transformer_learns_which_step_to_look_at(backend, dtype):
    """The answer is the first symbol, which only attention can bring to the last step."""
    tokens = np.array([[a, b, c] for a in range(3) for b in range(3) for c in range(3)])
    network = xpnn.Network(
        xpnn.Embedding(3, 8),
        xpnn.LearnedPositions(3),
        xpnn.TransformerEncoderBlock(2, 16, dropout=0.1, causal=True),
        xpnn.LayerNorm(),
        xpnn.Dense(3),
        backend=backend,
        dtype=dtype,
        seed=1,
    )
    labels = np.repeat(tokens[:, :1], 3, axis=1)
    history = network.fit(
        tokens, labels, loss="cross_entropy", optimizer=xpnn.Adam(0.02), epochs=20, batch_size=None, verbose=False
    )
    losses = np.array(history["loss"])
    assert losses[-1] < 0.3 * losses[0]
    reference = xpnn.Network(*network.root.layers, backend="numpy", dtype="float64", seed=1)
    want = reference.fit(
        tokens, labels, loss="cross_entropy", optimizer=xpnn.Adam(0.02), epochs=5, batch_size=None, verbose=False
    )
    np.testing.assert_allclose(losses[:5], want["loss"], rtol=1e-8 if dtype == "float64" else 1e-3)


def test_learned_positions_start_small():
    network = xpnn.Network(xpnn.LearnedPositions(50), input_shape=(40, 60))
    weight = network.parameters["0.weight"]
    assert weight.shape == (50, 60)
    assert 0.019 < weight.std() < 0.021


MISTAKES = {
    "heads": (xpnn.MultiHeadAttention(4), [(5, 6)], "6 features, which 4 heads do not divide"),
    "no features": (xpnn.MultiHeadAttention(4), [(5, 0)], "0 features"),
    "axes": (xpnn.MultiHeadAttention(2), [(6,)], r"shape \(6,\); .* are \(time, features\) each"),
    "rotary": (xpnn.MultiHeadAttention(2, rotary=True), [(5, 6)], "pairs of features, and a head has 3"),
    "values": (xpnn.MultiHeadAttention(2), [(5, 6), (4, 6), (3, 6)], "4 keys and 3 values"),
    "mask": (
        xpnn.MultiHeadAttention(2),
        [(5, 6), (4, 6), (4, 6), (5, 5)],
        r"mask of samples of shape \(5, 5\) for 5 queries and 4 keys; .* \(4,\), \(5, 4\), \(1, 5, 4\), \(2, 5, 4\)",
    ),
    "five inputs": (xpnn.MultiHeadAttention(2), [(5, 6)] * 5, "got 5 inputs"),
    "block": (xpnn.TransformerEncoderBlock(4, 5), [(5, 6)], r"attention MultiHeadAttention\(.*6 features, which 4"),
    "block's axes": (xpnn.TransformerEncoderBlock(2, 5), [(6,)], r"shape \(6,\), wants sequences"),
    "decoder": (xpnn.TransformerDecoderBlock(2, 5), [(5, 6)], "wants two inputs"),
    "decoder's mask": (
        xpnn.TransformerDecoderBlock(2, 5),
        [(5, 6), (4, 6), (5,)],
        r"a mask of samples of shape \(5,\) for a memory of shape \(4, 6\)",
    ),
    "sinusoids": (xpnn.SinusoidalPositions(), [(5,)], "wants sequences"),
    "long": (xpnn.LearnedPositions(4), [(5, 6)], r"5 time steps, and has 4 positions; give LearnedPositions\(5\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_shapes_that_do_not_fit_are_named_when_built(mistake):
    layer, shapes, message = MISTAKES[mistake]
    with pytest.raises(ShapeError, match=message) as caught:
        layer.build(tuple(shapes) if len(shapes) > 1 else shapes[0])
    assert repr(layer) in str(caught.value) or mistake == "block"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xpnn.MultiHeadAttention(0), "heads=0"),
        (lambda: xpnn.MultiHeadAttention(6, key_value_heads=4), "key_value_heads=4 does not divide heads=6"),
        (lambda: xpnn.MultiHeadAttention(2, dropout=1.0), "dropout=1.0"),
        (lambda: xpnn.MultiHeadAttention(2, rotary_base=0.0), "rotary_base=0.0"),
        (lambda: xpnn.MultiHeadAttention(2, head_size=0), "head_size=0"),
        (lambda: xpnn.MultiHeadAttention(2, weight_initializer="big"), "'big' is unknown"),
        (lambda: xpnn.TransformerEncoderBlock(2, 0), "feed_forward=0"),
        (lambda: xpnn.TransformerEncoderBlock(2, 4, activation="softmax"), "activation='softmax' is unknown here"),
        (lambda: xpnn.TransformerDecoderBlock(2, 4, dropout=-0.1), "dropout=-0.1"),
        (lambda: xpnn.SinusoidalPositions(-1.0), "base=-1.0"),
        (lambda: xpnn.LearnedPositions(0), "length=0"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_saving_brings_every_setting_back(tmp_path):
    network = xpnn.Network(
        xpnn.SinusoidalPositions(100.0),
        xpnn.TransformerEncoderBlock(4, 5, 0.2, "silu", False, True, 2, True, False, 1e-3),
        xpnn.MultiHeadAttention(2, head_size=4, rotary=True, rotary_base=50.0, output=3),
        input_shape=(5, 8),
        dtype="float64",
    )
    network.save(tmp_path / "network.safetensors")
    again = xpnn.Network.load(tmp_path / "network.safetensors")
    assert again.root == network.root
    x = normal(2, 5, 8)
    np.testing.assert_array_equal(again.predict(x), network.predict(x))
