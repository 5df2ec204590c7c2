"""Attention by products and kernels against the generic body on NumPy in float64: the same masks, the same numbers."""

import math

import numpy as np
import pytest

import xpnn
from xpnn.dispatch import OPS
from xpnn.errors import ConfigError, ShapeError
from xpnn.random import RandomKey

EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
DTYPES = tuple(EPS)
KEY = RandomKey(2**63 + 11, (2 << 32) + 5, 7)
LENGTHS = ((1, 1), (1, 15), (15, 17), (17, 15), (33, 130), (130, 64), (3, 1023), (9, 1024))
"""(queries, keys): rows that are a multiple of a pack and others, fewer and more keys than queries."""

LONG = {"float32": (1025, 5003, 8201), "float64": (513, 2501, 4100), "float16": (1030, 8196), "bfloat16": (1029, 8193)}
"""dtype -> keys that a block holds, and more than it can hold."""

MASKS = ((5, 17, 13), (1, 17, 13), (5, 1, 13), (5, 17, 1), (1, 1, 13), (5, 1, 1), None)
"""(heads, queries, keys) of masks for each of the samples; None: two axes, (queries, keys)."""


@pytest.fixture
def bodies(gpu):
    from xpnn_backends.cupy import bodies_attention

    return bodies_attention


@pytest.fixture(params=["one tile", "tiles", "rows"])
def tiled(request, bodies, monkeypatch):
    """Tiles as they are, tiles of a few heads with a part of their queries, and tiles of single queries."""
    limits = {"tiles": 1500, "rows": 4}
    if request.param in limits:
        monkeypatch.setattr(bodies, "_TILE_BYTES", limits[request.param])
        monkeypatch.setattr(bodies, "_QUERIES", 4)
    return request.param


@pytest.fixture
def in_tiles(bodies, monkeypatch):
    """in_tiles(bytes, queries): smaller tiles."""

    def choose(byte_count, queries=4):
        monkeypatch.setattr(bodies, "_TILE_BYTES", byte_count)
        monkeypatch.setattr(bodies, "_QUERIES", queries)

    return choose


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-2.0, 2.0, shape)


def bools(*shape, seed=3):
    """A mask that lets a query look at two of three keys, and the first query at none."""
    found = np.random.default_rng(seed).random(shape) < 0.67
    found[..., :1, :] = False
    return found


def arrays(batch=2, queries=17, keys=13, heads=4, groups=4, size=8, value_size=6):
    return (
        numbers(batch, queries, heads, size, seed=1),
        numbers(batch, keys, groups, size, seed=2),
        numbers(batch, keys, groups, value_size, seed=4),
    )


def on_device(gpu, x, dtype):
    """x in a dtype on the device; and what it is there, in float64 on the host."""
    there = gpu.asarray(np.asarray(x, np.float32 if dtype != "float64" else np.float64)).astype(gpu.dtype(dtype))
    return there, on_host(gpu, there)


def on_host(gpu, x):
    return gpu.to_host(x.astype(np.float64))


def check_close(gpu, got, want, dtype, label, roundings, floor=1e-30):
    want = np.asarray(want)
    mine = on_host(gpu, got)
    assert mine.shape == want.shape, label
    assert got.dtype == gpu.dtype(dtype), label
    scale = max(np.abs(want).max(initial=0.0), floor)
    error = np.abs(mine - want).max(initial=0.0) / scale / EPS[dtype]
    assert error <= roundings, f"{label}: off by {error:.1f} eps"


def check(gpu, bodies, given, mask=None, dtype="float64", label="", roundings=None, one_key_wins=False, **options):
    """Value and gradients against the generic body on NumPy; and the same bits when they are asked for again."""
    if roundings is None:
        # Half precision: weights and gradients of scores are rounded for their products, then the results are.
        roundings = 3.0 if dtype in ("float16", "bfloat16") else 64.0
    pairs = [on_device(gpu, x, dtype) for x in given]
    here, reference = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    want, want_vjp = OPS["attention"].generic(*reference, mask, **options)
    got, got_vjp = bodies.by_products(*here, None if mask is None else gpu.asarray(mask), **options)
    check_close(gpu, got, want, dtype, f"{label} y", roundings)
    dy, dy_reference = on_device(gpu, numbers(*want.shape, seed=9), dtype)
    gradients = got_vjp(dy)
    assert gradients[3] is None
    wanted = want_vjp(dy_reference)[:3]
    # Where one key has all the weight, the gradient for the scores is what is left of numbers of order one.
    floor = 1.0 if given[1].shape[1] == 1 or one_key_wins else 1e-30
    for name, mine, reference in zip(("dquery", "dkey", "dvalue"), gradients, wanted, strict=False):
        check_close(gpu, mine, reference, dtype, f"{label} {name}", roundings, floor)
    again = got_vjp(dy)
    for first, second in zip(gradients[:3], again[:3], strict=True):
        assert np.array_equal(on_host(gpu, first), on_host(gpu, second)), f"{label}: another gradient"
    return got, gradients


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_any_number_of_queries_and_keys(gpu, bodies, dtype, causal, in_tiles):
    for tile_bytes in (bodies._TILE_BYTES, 6000):
        in_tiles(tile_bytes)
        for queries, keys in LENGTHS:
            given = arrays(queries=queries, keys=keys, heads=2, groups=2)
            check(gpu, bodies, given, None, dtype, f"{queries}, {keys} in {tile_bytes}", causal=causal)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("drops", [False, True])
def test_long_rows(gpu, bodies, dtype, drops, in_tiles):
    options = {"dropout_key": KEY, "dropout_rate": 0.3} if drops else {}
    for tile_bytes in (bodies._TILE_BYTES, 1000):
        in_tiles(tile_bytes)
        for keys in LONG[dtype]:
            given = arrays(batch=1, queries=2, keys=keys, heads=1, groups=1, size=4, value_size=3)
            check(gpu, bodies, given, bools(2, keys) | (np.arange(2)[:, None] == 0), dtype, f"{keys}", **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_masks_of_any_shape_that_broadcasts(gpu, bodies, tiled, causal, drops):
    options = {"dropout_key": KEY, "dropout_rate": 0.3, "block": 6} if drops else {}
    given = arrays(batch=3, queries=17, keys=13, heads=5, groups=5)
    for shape in MASKS:
        samples = () if shape is None else (3 if shape != (1, 17, 13) else 1,)
        mask = bools(*samples, *(shape or (17, 13)))
        check(gpu, bodies, given, mask, "float64", f"mask {mask.shape}", causal=causal, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_groups_of_heads(gpu, bodies, tiled, dtype, causal):
    for heads, groups in ((6, 2), (4, 1)):
        given = arrays(heads=heads, groups=groups)
        label = f"{heads} heads, {groups} groups"
        check(gpu, bodies, given, None, dtype, label, causal=causal)
        options = {"causal": causal, "dropout_key": KEY, "dropout_rate": 0.25, "block": 5}
        check(gpu, bodies, given, bools(2, heads, 17, 13), dtype, label, **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [1, 6, 8, 128])
@pytest.mark.parametrize(("queries", "keys"), [(17, 13), (16, 32), (5, 16)])
def test_the_same_weights_are_dropped_as_on_the_host(gpu, bodies, tiled, causal, block, queries, keys):
    # With the identity for values the result is the weights themselves.
    query, key, _ = arrays(batch=2, queries=queries, keys=keys, heads=4, groups=2)
    value = np.broadcast_to(np.eye(keys)[None, :, None], (2, keys, 2, keys))
    options = {"causal": causal, "block": block, "dropout_key": KEY, "dropout_rate": 0.4}
    want, want_vjp = OPS["attention"].generic(query, key, value, **options)
    got, got_vjp = bodies.by_products(*(gpu.asarray(x, "float64") for x in (query, key, value)), **options)
    got = gpu.to_host(got)
    assert np.array_equal(got == 0, want == 0)
    assert 0.2 < np.mean(want == 0) < 0.9
    assert np.allclose(got, want, rtol=1e-13, atol=0)
    dy = numbers(*want.shape)
    for mine, reference in zip(got_vjp(gpu.asarray(dy, "float64"))[:3], want_vjp(dy)[:3], strict=True):
        assert np.allclose(gpu.to_host(mine), reference, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("keys", [1023, 1024, 1040, 4100])
def test_the_same_weights_of_long_rows_are_dropped(gpu, bodies, keys):
    # Rows that a warp, a block, and a block by pieces does: the bits of each begin anywhere in a group of sixteen.
    query, key, value = arrays(batch=1, queries=3, keys=keys, heads=1, groups=1, size=2, value_size=1)
    value[...] = 0.0
    kept = []
    for start in range(0, keys, keys // 3):
        value[0, start, 0, 0] = 1.0
        options = {"dropout_key": KEY, "dropout_rate": 0.5}
        want, _ = OPS["attention"].generic(query, key, value, **options)
        got, _ = bodies.by_products(*(gpu.asarray(x, "float64") for x in (query, key, value)), **options)
        assert np.allclose(gpu.to_host(got), want, rtol=1e-12, atol=0)
        kept.extend((want != 0).ravel())
    assert any(kept)
    # All of them, by the gradient for the values: a weight that is dropped gives none.
    want = OPS["attention"].generic(query, key, value, **options)[1](np.ones((1, 3, 1, 1)))[2]
    got = bodies.by_products(*(gpu.asarray(x, "float64") for x in (query, key, value)), **options)[1]
    got = gpu.to_host(got(gpu.asarray(np.ones((1, 3, 1, 1)), "float64"))[2])
    assert np.array_equal(got == 0, want == 0)
    assert 0 < np.mean(want == 0) < 1


def test_a_query_without_keys_gives_zero_and_no_gradient(gpu, bodies, tiled):
    given = [gpu.asarray(x, "float32") for x in arrays(heads=2, groups=2)]
    mask = np.ones((2, 2, 17, 13), bool)
    mask[1, 0, 3:6] = False
    y, vjp = bodies.by_products(*given, gpu.asarray(mask))
    assert np.all(gpu.to_host(y)[1, 3:6, 0] == 0)
    assert np.all(gpu.to_host(y)[1, 3:6, 1] != 0)
    dy = np.zeros(y.shape, np.float32)
    dy[1, 3:6, 0] = 5.0
    for gradient in vjp(gpu.asarray(dy))[:3]:
        assert np.all(gpu.to_host(gradient) == 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [13, 1030, 8201])
def test_numbers_that_are_not_finite(gpu, bodies, masked, keys):
    query, key, value = (x.astype(np.float32) for x in arrays(1, 9, keys, 1, 1, 2, 2))
    query[0, 2, 0] = np.nan
    query[0, 4, 0] = np.inf  # all scores are infinite, some of them -inf
    query[0, 6, 0] = (3e38, 0.0)  # and here some, by overflow
    mask = None
    if masked:
        mask = np.ones((9, keys), bool)
        mask[3] = mask[2, 1:] = False
    with np.errstate(all="ignore"):
        want, _ = OPS["attention"].generic(query, key, value, mask)
    got, _ = bodies.by_products(*map(gpu.asarray, (query, key, value)), None if mask is None else gpu.asarray(mask))
    got = gpu.to_host(got)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.isnan(want[0, 2]).all()
    assert not np.isnan(want[0, 3]).any()
    finite = ~np.isnan(want)
    assert np.allclose(got[finite], want[finite], rtol=1e-4, atol=1e-5)


def test_scores_may_be_large(gpu, bodies, tiled):
    query, key, value = arrays()
    check(gpu, bodies, (query * 100, key * 100, value), None, "float64", "large", 2.0**20, one_key_wins=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_are_read_as_they_lie(gpu, bodies, tiled, dtype):
    wide = numbers(2, 19, 4, 3 * 8)
    there = on_device(gpu, wide, dtype)[0]
    query, key, value = there[:, 1:18, :, :8], there[:, 3:16, :, 9:17], there[:, ::-1][:, :13, :, 17:]
    mask = gpu.asarray(bools(4, 13, 2, 17)).transpose(2, 0, 3, 1)[:, :, ::-1]
    got, vjp = bodies.by_products(query, key, value, mask, dropout_key=KEY, dropout_rate=0.2, block=7)
    plain = [x.copy(order="C") for x in (query, key, value, mask)]
    want, want_vjp = bodies.by_products(*plain, dropout_key=KEY, dropout_rate=0.2, block=7)
    assert np.array_equal(on_host(gpu, got), on_host(gpu, want))
    dy = on_device(gpu, numbers(*got.shape), dtype)[0]
    for mine, reference in zip(vjp(dy)[:3], want_vjp(dy)[:3], strict=True):
        assert np.array_equal(on_host(gpu, mine), on_host(gpu, reference))


def test_one_sample_at_a_time_is_read_without_a_copy(gpu, bodies, cupy, in_tiles, monkeypatch):
    in_tiles(4 * 32 * 24 * 2)  # two heads of a sample
    given = [gpu.asarray(x, "float32") for x in arrays(queries=32, keys=24)]
    y, vjp = bodies.by_products(*given)
    dy = gpu.asarray(numbers(*y.shape), "float32")
    vjp(dy)

    def refuse(*arguments, **options):
        raise AssertionError("an array was copied")

    monkeypatch.setattr(cupy, "ascontiguousarray", refuse)
    bodies.by_products(*given)[1](dy)


@pytest.mark.parametrize("causal", [False, True])
def test_tiles_cover_all_scores_once(bodies, in_tiles, causal):
    for shape in ((3, 4, 1, 33, 20), (3, 4, 2, 20, 33), (1, 1, 1, 1, 1), (2, 5, 3, 7, 64)):
        batch, groups, members, queries, keys = shape
        for byte_count in (1, 400, 3000, 10**9):
            in_tiles(byte_count)
            seen = np.zeros((batch, groups, queries, keys), int)
            for tile in bodies._tiles(shape, 4, causal):
                part = tile.of(seen)[:, :, tile.start : tile.stop, : tile.keys]
                part += 1
                size = members * part.size * 4
                assert size <= byte_count or part.shape[:3] == (1, 1, 1), (shape, tile)
            wanted = np.tril(np.ones((queries, keys), bool)) if causal else np.ones((queries, keys), bool)
            assert seen.max() == 1
            assert np.all(seen[:, :, wanted] == 1)


def test_tiles_of_usual_sizes(bodies):
    head = 1024 * 1024 * 4
    tiles = bodies._tiles((8, 16, 1, 1024, 1024), 4, False)
    assert len(tiles) == math.ceil(8 * 16 * head / bodies._TILE_BYTES)
    assert {(tile.start, tile.stop) for tile in tiles} == {(0, 1024)}
    causal = bodies._tiles((8, 16, 1, 1024, 1024), 4, True)
    assert [tile.keys for tile in causal[:4]] == [1024, 768, 512, 256]
    small = bodies._tiles((8, 4, 1, 128, 128), 4, True)
    assert len(small) == 1


def test_each_tile_has_one_kernel_forward_and_one_backward(gpu, bodies, in_tiles, monkeypatch):
    launched = []
    launch = bodies.launch

    def noted(family, name, *rest):
        launched.append((family, name))
        launch(family, name, *rest)

    monkeypatch.setattr(bodies, "launch", noted)
    in_tiles(4 * 17 * 13 * 4)
    y, vjp = bodies.by_products(*(gpu.asarray(x, "float32") for x in arrays()))
    assert launched == [("attention", "attention_weights")] * 2
    vjp(y)
    assert launched[2:] == [("attention", "attention_gradient")] * 2


def test_memory_does_not_grow_with_the_square_of_the_length(gpu, bodies, in_tiles, monkeypatch):
    in_tiles(1 << 14, 16)
    most = []
    product = bodies.products.matmul

    def noted(*arguments, **options):
        result = product(*arguments, **options)
        most.append(result.nbytes)
        return result

    monkeypatch.setattr(bodies.products, "matmul", noted)
    given = [gpu.asarray(numbers(1, 640, 1, 2, seed=seed), "float32") for seed in range(3)]
    y, vjp = bodies.by_products(*given, causal=True)
    vjp(y)
    assert max(most) <= 1 << 14
    assert 640 * 640 * 4 > 64 * (1 << 14) / 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_over_many_tiles_are_rounded_once(gpu, bodies, in_tiles, dtype):
    in_tiles(4)
    query, key, value = (np.zeros((1, 96, 1, 2)), np.zeros((1, 1, 1, 2)), numbers(1, 1, 1, 2))
    given = [on_device(gpu, x, dtype)[0] for x in (query, key, value)]
    dy, wide = on_device(gpu, 1.0 + numbers(1, 96, 1, 2) / 4, dtype)
    dvalue = on_host(gpu, bodies.by_products(*given)[1](dy)[2])
    assert np.allclose(dvalue, wide.sum(axis=1, keepdims=True), rtol=EPS[dtype] * 0.51, atol=0)


@pytest.mark.parametrize("tile_bytes", [1 << 25, 2000])
def test_products_in_tf32(gpu, bodies, products, in_tiles, tile_bytes):
    in_tiles(tile_bytes)
    with products.computing("tf32"):
        check(gpu, bodies, arrays(), bools(17, 13), "float32", "tf32", roundings=2.0**14)


def test_the_op_takes_the_kernels_for_what_cudnn_does_not_do(gpu, bodies, monkeypatch):
    taken = []
    monkeypatch.setattr(bodies, "launch", lambda *arguments: taken.append(arguments[1]))
    mask = gpu.asarray(bools(17, 13))
    dropout = {"dropout_key": KEY, "dropout_rate": 0.5}
    for dtype, more, options in (
        ("float32", (), {}),
        ("float64", (), {}),
        ("float16", (mask,), {}),
        ("bfloat16", (), dropout),
    ):
        bodies.attention(*(on_device(gpu, x, dtype)[0] for x in arrays()), *more, **options)
    assert taken == ["attention_weights"] * 4


def test_arguments_that_make_no_sense(gpu, bodies):
    given = [gpu.asarray(x, "float32") for x in arrays()]
    with pytest.raises(ConfigError, match="mask has dtype"):
        bodies.attention(*given, gpu.asarray(np.ones((17, 13)), "float32"))
    with pytest.raises(ShapeError, match="does not broadcast"):
        bodies.attention(*given, gpu.asarray(bools(17, 12)))
    with pytest.raises(ShapeError, match="one size"):
        bodies.attention(given[0], given[1][..., :3], given[2])
    with pytest.raises(ConfigError, match="block=0"):
        bodies.attention(*given, block=0)


@pytest.mark.parametrize("tile_bytes", [1 << 25, 1000])
@pytest.mark.parametrize("causal", [False, True])
def test_a_captured_step_equals_the_eager_one(gpu, in_tiles, tile_bytes, causal):
    in_tiles(tile_bytes)
    x = numbers(6, 9, 8).astype(np.float32)
    y = np.arange(6) % 3

    def losses(compiled):
        layers = (
            xpnn.MultiHeadAttention(4, key_value_heads=2, causal=causal, dropout=0.3),
            xpnn.Flatten(),
            xpnn.Dense(3),
        )
        net = xpnn.Network(*layers, backend=gpu, input_shape=(9, 8), seed=3)
        optimizer = xpnn.Adam(0.01)
        step = net.step("cross_entropy", optimizer)
        run = step if compiled else net.backend._as_it_is(step._step)
        state = net.initial_state(optimizer, "cross_entropy")
        batch = net.prepare(x, y, "cross_entropy")
        found = []
        for _ in range(6):
            state, loss = run(state, batch)
            found.append(float(gpu.to_host(loss)))
        return found, gpu.to_host(state.theta[0]), getattr(step, "how", None)

    eager, theta, _ = losses(False)
    captured, captured_theta, how = losses(True)
    assert how == "a CUDA graph"
    assert captured == eager
    assert np.array_equal(theta, captured_theta)
    assert len(set(eager)) == 6
