"""Attention, rotary positions and position tables: what must hold whatever the backend."""

import tracemalloc

import numpy as np
import pytest

from xpnn import ops
from xpnn.errors import ConfigError, ShapeError
from xpnn.ops.positions import rotary_tables, sinusoidal_table
from xpnn.random import RandomKey

RNG = np.random.default_rng(8)
KEY = RandomKey(1, 2, 3)


def normal(*shape):
    return RNG.standard_normal(shape)


def arrays(batch=2, queries=5, keys=4, heads=2, size=3):
    return normal(batch, queries, heads, size), normal(batch, keys, heads, size), normal(batch, keys, heads, size)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_do_not_change_the_result(causal):
    given = arrays(queries=7, keys=6)
    mask = RNG.uniform(size=(2, 1, 7, 6)) < 0.6
    want, want_vjp = ops.attention(*given, mask, causal=causal)
    dy = normal(*want.shape)
    for block in (1, 2, 3, 6, 7, 8):
        y, vjp = ops.attention(*given, mask, causal=causal, block=block)
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-14)
        for mine, other in zip(vjp(dy)[:3], want_vjp(dy)[:3], strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("block", [2, 128])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_query_that_may_look_at_nothing_gives_zero(block, dtype):
    given = [array.astype(dtype) for array in arrays()]
    mask = np.ones((5, 4), dtype=bool)
    mask[2] = False
    y, vjp = ops.attention(*given, mask, block=block)
    dy = np.ones_like(y)
    dquery, dkey, dvalue, nothing = vjp(dy)
    assert nothing is None
    assert (y[:, 2] == 0).all()
    assert (dquery[:, 2] == 0).all()
    assert np.isfinite(dkey).all()
    others = [0, 1, 3, 4]
    shorter, shorter_vjp = ops.attention(given[0][:, others], *given[1:])
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(y[:, others], shorter, rtol=0, atol=tolerance)
    want = shorter_vjp(dy[:, others])
    for mine, other in zip((dquery[:, others], dkey, dvalue), want[:3], strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("block", [1, 128])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_scores_pick_one_key(block, dtype):
    query = np.full((1, 2, 1, 1), 1e4, dtype=dtype)
    key = np.array([1e4, -1e4, 1.0], dtype=dtype).reshape(1, 3, 1, 1)
    value = np.array([3.0, 5.0, 7.0], dtype=dtype).reshape(1, 3, 1, 1)
    y, vjp = ops.attention(query, key, value, block=block)
    np.testing.assert_array_equal(y, np.full_like(y, 3.0))
    dquery, dkey, dvalue, _ = vjp(np.ones_like(y))
    np.testing.assert_array_equal(dquery, np.zeros_like(dquery))
    np.testing.assert_array_equal(dkey, np.zeros_like(dkey))
    np.testing.assert_array_equal(dvalue[0, :, 0, 0], [2.0, 0.0, 0.0])


def test_one_score_for_all_keys_gives_the_mean():
    _, key, value = arrays()
    y, _ = ops.attention(np.zeros((2, 3, 2, 3)), key, value)
    np.testing.assert_allclose(y, np.repeat(value.mean(axis=1, keepdims=True), 3, axis=1), rtol=1e-14)


def test_keys_behind_the_last_causal_query_have_no_gradient():
    query, key, value = arrays(queries=2, keys=6)
    y, vjp = ops.attention(query, key, value, causal=True)
    np.testing.assert_allclose(y[:, 0], value[:, 0], rtol=1e-15)
    _, dkey, dvalue, _ = vjp(np.ones_like(y))
    assert (dkey[:, 2:] == 0).all()
    assert (dvalue[:, 2:] == 0).all()
    assert (dvalue[:, :2] != 0).all()


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_nothing_to_look_from_or_at(batch, queries, keys, causal):
    given = arrays(batch, queries, keys)
    y, vjp = ops.attention(*given, causal=causal)
    assert y.shape == (batch, queries, 2, 3)
    assert (y == 0).all()
    gradients = vjp(np.ones_like(y))
    for gradient, array in zip(gradients[:3], given, strict=True):
        np.testing.assert_array_equal(gradient, np.zeros_like(array))


@pytest.mark.parametrize("block", [2, 128])
def test_dropout_drops_weights_and_scales_the_others(block):
    query, key, value = arrays(queries=3, keys=40)
    y, vjp = ops.attention(query, key, value, dropout_key=KEY, dropout_rate=0.25, block=block)
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(3.0)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    masks = []
    for number, start in enumerate(range(0, 3, block)):
        here = weights[:, :, start : start + block]
        masks.append(ops.random_mask(here, KEY._replace(stream=2 + number * 2**40), 0.25)[0])
    mask = np.concatenate(masks, axis=2)
    assert 0.15 < 1.0 - mask.mean() < 0.35
    dropped = weights * mask / 0.75
    np.testing.assert_allclose(y, np.einsum("bhqk,bkhd->bqhd", dropped, value), rtol=1e-12)
    dy = normal(*y.shape)
    np.testing.assert_allclose(vjp(dy)[2], np.einsum("bhqk,bqhd->bkhd", dropped, dy), rtol=0, atol=1e-13)


def test_blocks_draw_different_masks():
    """All queries and all values are the same, so that only the masks make a difference."""
    query, key, value = np.ones((1, 4, 1, 2)), np.zeros((1, 64, 1, 2)), normal(1, 64, 1, 2)
    y, _ = ops.attention(query, key, value, dropout_key=KEY, dropout_rate=0.5, block=1)
    assert len({tuple(row) for row in y[0, :, 0]}) == 4


def peak_memory(time):
    given = [normal(1, time, 1, 8) for _ in range(3)]
    tracemalloc.start()
    y, vjp = ops.attention(*given, causal=True, dropout_key=KEY, dropout_rate=0.1, block=64)
    vjp(y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_grows_with_the_length_and_not_with_its_square():
    ratio = peak_memory(2048) / peak_memory(1024)
    assert ratio < 2.5  # a (time, time) array would make it 4


SHAPES = {
    "three axes": (((2, 5, 3),) * 3, "must be .batch, time, heads, size."),
    "batch": (((2, 5, 2, 3), (1, 4, 2, 3), (1, 4, 2, 3)), "the batch"),
    "values": (((2, 5, 2, 3), (2, 4, 2, 3), (2, 5, 2, 3)), "one value for each key"),
    "size": (((2, 5, 2, 3), (2, 4, 2, 4), (2, 4, 2, 4)), "must have one size"),
    "heads": (((2, 5, 3, 3), (2, 4, 2, 3), (2, 4, 2, 3)), "multiple of the key heads"),
}


@pytest.mark.parametrize("fault", SHAPES)
def test_shapes_that_do_not_fit(fault):
    shapes, message = SHAPES[fault]
    with pytest.raises(ShapeError, match=message) as caught:
        ops.attention(*(np.zeros(shape) for shape in shapes))
    assert all(str(shape) in str(caught.value) for shape in shapes)


@pytest.mark.parametrize("shape", [(3, 1, 5, 4), (2, 3, 5, 4), (4, 4), (2, 4), (5, 5), (1, 2, 1, 5, 4)])
def test_a_mask_of_the_wrong_shape(shape):
    with pytest.raises(ShapeError, match=r"does not broadcast to .* = \(2, 2, 5, 4\)"):
        ops.attention(*arrays(), np.ones(shape, dtype=bool))


def test_settings_that_make_no_sense():
    given = arrays()
    with pytest.raises(ConfigError, match="the mask has dtype float64; give bools"):
        ops.attention(*given, np.ones((5, 4)))
    with pytest.raises(ConfigError, match="there is no dropout_key"):
        ops.attention(*given, dropout_rate=0.5)
    with pytest.raises(ConfigError, match=r"dropout_rate=1\.0"):
        ops.attention(*given, dropout_rate=1.0, dropout_key=KEY)
    with pytest.raises(ConfigError, match="block=0"):
        ops.attention(*given, block=0)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_products_depend_on_the_distance_alone(interleaved):
    query, key = normal(1, 1, 1, 6), normal(1, 1, 1, 6)
    cos, sin = rotary_tables(query, 20, 6)
    turned_query, _ = ops.rotary(np.repeat(query, 20, axis=1), cos, sin, interleaved=interleaved)
    turned_key, _ = ops.rotary(np.repeat(key, 20, axis=1), cos, sin, interleaved=interleaved)
    products = turned_query[0, :, 0] @ turned_key[0, :, 0].T
    for distance in range(-10, 11):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(products[0, 0], (query * key).sum(), rtol=1e-12)
    np.testing.assert_allclose((turned_query**2).sum(axis=-1), (query**2).sum(), rtol=1e-13)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_vjp_turns_back(interleaved):
    x = normal(2, 5, 3, 6)
    cos, sin = rotary_tables(x, 5, 6)
    y, vjp = ops.rotary(x, cos, sin, interleaved=interleaved)
    np.testing.assert_allclose(vjp(y)[0], x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_leaves_further_features_alone(interleaved):
    x = normal(2, 5, 3, 7)
    cos, sin = rotary_tables(x, 5, 4)
    y, _ = ops.rotary(x, cos, sin, interleaved=interleaved)
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(y[..., :4], ops.rotary(x[..., :4], cos, sin, interleaved=interleaved)[0])


def test_rotary_tables_of_each_sample():
    x = normal(2, 3, 1, 4)
    cos, sin = rotary_tables(x, 6, 4)
    positions = np.array([[0, 1, 2], [3, 4, 5]])
    y, _ = ops.rotary(x, cos[positions], sin[positions])
    np.testing.assert_array_equal(y[1:], ops.rotary(x[1:], cos[3:], sin[3:])[0])


@pytest.mark.parametrize(
    ("x", "cos", "sin", "message"),
    [
        ((2, 3, 4), (3, 2), (3, 2), "x must be"),
        ((2, 3, 1, 4), (3, 2), (3, 1), "one shape"),
        ((2, 3, 1, 4), (4, 2), (4, 2), "the tables must be"),
        ((2, 3, 1, 4), (1, 3, 2), (1, 3, 2), "the tables must be"),
        ((2, 3, 1, 4), (3, 3), (3, 3), "3 pairs need 6 features"),
    ],
)
def test_rotary_shapes_that_do_not_fit(x, cos, sin, message):
    with pytest.raises(ShapeError, match=message):
        ops.rotary(np.zeros(x), np.zeros(cos), np.zeros(sin))


def test_angles_of_far_positions_are_right_in_float32():
    length = 100_001
    cos, sin = rotary_tables(np.zeros(1, dtype="float32"), length, 4)
    assert cos.dtype == sin.dtype == np.float32
    angles = 100_000.0 * np.array([1.0, 0.01])
    np.testing.assert_allclose(cos[-1], np.cos(angles), rtol=0, atol=6e-8)
    np.testing.assert_allclose(sin[-1], np.sin(angles), rtol=0, atol=6e-8)
    table = sinusoidal_table(np.zeros(1, dtype="float32"), length, 4)
    np.testing.assert_allclose(table[-1, 0::2], np.sin(angles), rtol=0, atol=6e-8)
    np.testing.assert_allclose(table[-1, 1::2], np.cos(angles), rtol=0, atol=6e-8)


def test_tables_on_every_backend(backend, dtype):
    like = backend.asarray(np.zeros(1), dtype)
    for table in (*rotary_tables(like, 5, 4), sinusoidal_table(like, 5, 2)):
        assert table.dtype == backend.dtype(dtype)
        assert tuple(table.shape) == (5, 2)
    want = np.cos(np.arange(5.0)[:, None] * np.array([1.0, 0.01]))
    np.testing.assert_allclose(backend.to_host(rotary_tables(like, 5, 4)[0]), want, rtol=1e-6)


@pytest.mark.parametrize(("x", "positions"), [((3, 4), (3, 4)), ((2, 3, 4), (2, 4)), ((2, 3, 4), (3, 5))])
def test_positions_that_do_not_fit(x, positions):
    with pytest.raises(ShapeError, match="add_positions"):
        ops.add_positions(np.zeros(x), np.zeros(positions))
