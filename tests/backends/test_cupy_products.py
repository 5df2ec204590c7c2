"""Matrix products on CuPy against NumPy's in float64: through cublasLt, and through CuPy alone."""

import contextlib
import sys
import threading

import numpy as np
import pytest

from xpnn.errors import BackendError

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
WIDE_EPS = {"float64": 2.0**-52}
"""Of the type in which products are summed; float32's where it is not named."""

SHAPES = [
    ((3, 4), (4, 5)),
    ((1, 1), (1, 1)),
    ((1, 7), (7, 1)),
    ((7, 1), (1, 7)),
    ((1, 16), (16, 9)),
    ((17, 33), (33, 15)),
    ((64, 100), (100, 80)),
    ((5,), (5,)),
    ((5,), (5, 3)),
    ((3, 5), (5,)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((2, 3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (6, 4, 5)),
    ((1, 3, 4), (2, 4, 5)),
    ((2, 3, 5, 4), (2, 3, 4, 6)),
    ((2, 3, 5, 4), (3, 4, 6)),
    ((2, 1, 5, 4), (3, 4, 6)),
]
LAYOUTS = ("rows", "columns", "sliced", "reversed")


@pytest.fixture(params=["cublasLt", "CuPy alone"])
def way(request, products, monkeypatch):
    """The two ways in which products are computed."""
    if request.param == "CuPy alone":
        monkeypatch.setattr(products, "library", lambda: "nvmath is not installed")
    elif products.why_not() is not None:
        pytest.skip(f"no cublasLt here: {products.why_not()}")
    return request.param


def to_host(x):
    return np.asarray(x.get(), dtype=np.float64)


def random_array(cupy, seed, shape, dtype, layout="rows"):
    """Random numbers on the device, whose last two axes lie in memory as `layout` says."""
    numbers = np.random.default_rng(seed)

    def make(shape):
        return cupy.asarray(numbers.standard_normal(shape).astype(np.float32)).astype(dtype)

    if layout == "columns" and len(shape) > 1:
        return cupy.swapaxes(make((*shape[:-2], shape[-1], shape[-2])), -1, -2)
    if layout == "sliced":
        return make(tuple(2 * length + 1 for length in shape))[tuple(slice(1, 2 * length, 2) for length in shape)]
    if layout == "reversed":
        return make(shape)[..., ::-1]
    return make(shape)


def assert_product(got, a, b, dtype=None):
    """got is a b, up to one rounding to its dtype and the roundings of sums in the wide dtype."""
    a_host, b_host = to_host(a), to_host(b)
    wanted = np.matmul(a_host, b_host)
    magnitude = np.matmul(abs(a_host), abs(b_host))
    dtype = str(a.dtype) if dtype is None else dtype
    assert str(got.dtype) == dtype
    assert got.shape == wanted.shape
    wide = WIDE_EPS.get(dtype, EPS["float32"])
    bound = 2 * EPS[dtype] * abs(wanted) + (a_host.shape[-1] + 1) * wide * magnitude
    assert np.all(abs(to_host(got) - wanted) <= bound)


def assert_may_refuse():
    """A GPU's cublasLt may have no algorithm for an epilogue; the emulated one has one for all that is asked of it."""
    assert "emulated_gpu.cublaslt" not in sys.modules


@contextlib.contextmanager
def captured(cupy, products):
    """A block that is captured; gives a list that holds the graph afterwards."""
    stream = cupy.cuda.Stream(non_blocking=True)
    graphs = []
    with stream:
        products.prepare()
        stream.begin_capture()
        try:
            yield graphs
        finally:
            graphs.append(stream.end_capture())
            graphs.append(stream)


def replay(graphs):
    graph, stream = graphs
    graph.launch(stream=stream)
    stream.synchronize()


# Products


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_all_layouts(cupy, products, way, shapes, dtype):
    for number, layout in enumerate(LAYOUTS):
        for other in LAYOUTS:
            a = random_array(cupy, number, shapes[0], dtype, layout)
            b = random_array(cupy, number + 10, shapes[1], dtype, other)
            assert_product(products.matmul(a, b), a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_arrays(cupy, products, way, dtype):
    for first, second in [((0, 3), (3, 2)), ((3, 0), (0, 2)), ((2, 0, 3), (3, 4)), ((0,), (0,)), ((0, 2, 3), (3, 1))]:
        y = products.matmul(cupy.ones(first, dtype), cupy.ones(second, dtype))
        wanted = np.matmul(np.ones(first), np.ones(second))
        assert y.shape == wanted.shape
        assert str(y.dtype) == dtype
        assert np.array_equal(to_host(y), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_of_one_long_vector(cupy, products, way, dtype):
    theta = random_array(cupy, 3, (4000,), dtype)
    x = random_array(cupy, 4, (9, 20), dtype)
    each = 256 // theta.dtype.itemsize  # parameters start every 256 bytes; the other offsets are nobody's
    for offset in (0, each, 3 * each, 1, 2, 7, 8):
        weight = theta[offset : offset + 20 * 30].reshape(20, 30)
        assert_product(products.matmul(x, weight), x, weight)
        assert_product(products.matmul(weight.T, x.T), weight.T, x.T)


def test_batches_that_share_a_matrix_or_do_not_lie_evenly(cupy, products, way):
    a = random_array(cupy, 5, (4, 3, 6, 5), "float32")
    b = random_array(cupy, 6, (4, 3, 5, 7), "float32")
    heads = a.transpose(1, 0, 2, 3)  # uneven: the batch axes do not follow each other
    assert_product(products.matmul(heads, b.transpose(1, 0, 2, 3)), heads, b.transpose(1, 0, 2, 3))
    assert_product(products.matmul(a[:, :1], b), a[:, :1], b)
    assert_product(products.matmul(a[:1], b[0]), a[:1], b[0])
    assert_product(products.matmul(a[:, :, ::2], b[0, 0]), a[:, :, ::2], b[0, 0])
    every_second = a[::2, 1]
    assert_product(products.matmul(every_second, b[0, 0]), every_second, b[0, 0])
    spread = cupy.broadcast_to(b[0, 0], (4, 3, 5, 7))
    assert_product(products.matmul(a, spread), a, spread)


def test_out(cupy, products, way):
    a = random_array(cupy, 7, (6, 5), "float32")
    b = random_array(cupy, 8, (5, 4), "float32")
    theta = cupy.zeros(200, "float32")
    for out in (theta[64:88].reshape(6, 4), cupy.zeros((4, 6), "float32").T, cupy.zeros((6, 8), "float32")[:, ::2]):
        assert products.matmul(a, b, out) is out
        assert_product(out, a, b)
    assert float(abs(theta[:64]).sum() + abs(theta[88:]).sum()) == 0.0
    vector = cupy.ones(6, "float32")
    assert products.matmul(a, b[:, 0], vector) is vector
    assert_product(vector, a, b[:, 0])
    empty = cupy.ones((6, 4), "float32")
    products.matmul(a[:, :0], b[:0], empty)
    assert float(abs(empty).sum()) == 0.0
    with pytest.raises(ValueError, match=r"out is float32 of shape \(4, 4\)"):
        products.matmul(a, b, cupy.zeros((4, 4), "float32"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_factors_and_a_float32_product(cupy, products, way, dtype):
    a = random_array(cupy, 9, (2, 6, 50), dtype)
    b = random_array(cupy, 10, (50, 4), dtype)
    assert_product(products.matmul(a, b, out_dtype="float32"), a, b, "float32")


def test_wrong_arguments(cupy, products, way):
    a = cupy.ones((3, 4), "float32")
    with pytest.raises(ValueError, match="4 columns, 3 rows"):
        products.matmul(a, a)
    with pytest.raises(ValueError, match="batch axes"):
        products.matmul(cupy.ones((2, 3, 4), "float32"), cupy.ones((3, 4, 3), "float32"))
    with pytest.raises(BackendError, match="not float16"):
        products.matmul(a, a.T, out_dtype="float16")


def test_two_dtypes_and_integers(cupy, products, way):
    a = random_array(cupy, 11, (3, 4), "float32")
    b = random_array(cupy, 12, (4, 5), "float64")
    assert products.matmul(a, b).dtype == np.float64
    half = random_array(cupy, 13, (4, 5), "bfloat16")
    assert_product(products.matmul(a, half), a, half, "float32")
    whole = cupy.arange(6).reshape(2, 3)
    assert np.array_equal(products.matmul(whole, whole.T).get(), whole.get() @ whole.get().T)


# How float32 is rounded


def test_float32_is_float32_unless_tf32_is_asked_for(cupy, lt):
    products = lt
    a = random_array(cupy, 14, (128, 512), "float32")
    b = random_array(cupy, 15, (512, 64), "float32")
    wanted = to_host(a) @ to_host(b)
    magnitude = abs(to_host(a)) @ abs(to_host(b))

    def error():
        return float((abs(to_host(products.matmul(a, b)) - wanted) / magnitude).max())

    strict = error()
    assert products.precision() == "float32"
    with products.computing("tf32"):
        assert products.precision() == "tf32"
        rounded = error()
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append((products.precision(), error())))
        thread.start()
        thread.join()
    assert strict < 1e-6
    assert rounded < 2.0**-10
    assert rounded > 10 * strict
    assert elsewhere == [("float32", strict)]
    assert error() == strict


def test_cupys_own_products_use_tf32_only_inside_the_block(cupy, products, monkeypatch):
    settings = cupy._core._routines_linalg
    multiply, used = cupy.matmul, []

    def watched(a, b):
        used.append(settings.get_compute_type(np.float32))
        return multiply(a, b)

    monkeypatch.setattr(products, "library", lambda: "nvmath is not installed")
    monkeypatch.setattr(cupy, "matmul", watched)
    before = settings.get_compute_type(np.float32)
    x = cupy.ones((4, 4), "float32")
    products.matmul(x, x)
    with products.computing("tf32"):
        products.matmul(x, x)
        products.matmul(x.astype("float64"), x.astype("float64"))
    products.matmul(x, x)
    assert used == [before, settings.COMPUTE_TYPE_TF32, before, before]
    assert settings.get_compute_type(np.float32) == before


def test_tf32_touches_no_other_dtype(cupy, products, way):
    for dtype in ("float64", "float16"):
        a = random_array(cupy, 16, (20, 30), dtype)
        with products.computing("tf32"):
            assert_product(products.matmul(a, a.T), a, a.T)


# Bias, rectifier and column sums in the product


def test_bias_in_the_product(cupy, lt):
    for dtype in DTYPES:
        a = random_array(cupy, 17, (9, 20), dtype)
        b = random_array(cupy, 18, (20, 12), dtype)
        bias = random_array(cupy, 19, (12,), dtype)
        sums = to_host(a) @ to_host(b) + to_host(bias)
        magnitude = abs(to_host(a)) @ abs(to_host(b)) + abs(to_host(bias))
        bound = (EPS[dtype] + 22 * WIDE_EPS.get(dtype, EPS["float32"])) * magnitude
        y = lt.with_bias(a, b, bias)
        rectified = lt.with_bias(a, b, bias, relu=True)
        for found, wanted in ((y, sums), (rectified, np.maximum(sums, 0))):
            if found is None:
                assert_may_refuse()
            else:
                assert str(found.dtype) == dtype
                assert np.all(abs(to_host(found) - wanted) <= bound)


def test_column_sums_in_the_product(cupy, lt):
    for dtype in DTYPES:
        x = random_array(cupy, 20, (33, 8), dtype)
        dy = random_array(cupy, 21, (33, 16), dtype)
        found = lt.with_column_sums(x.T, dy)
        if found is None:
            assert_may_refuse()
            continue
        assert_product(found[0], x.T, dy)
        ones = cupy.ones((1, 33), dtype)
        assert_product(found[1][None], ones, dy)


def test_the_compute_types_that_are_asked_for(cupy, lt, emulated, plans):
    types = plans.library().cublas.ComputeType
    for dtype, computing, wanted in [
        ("float32", "float32", types.COMPUTE_32F),
        ("float32", "tf32", types.COMPUTE_32F_FAST_TF32),
        ("float32", "bfloat16", types.COMPUTE_32F),
        ("float64", "tf32", types.COMPUTE_64F),
        ("float16", "tf32", types.COMPUTE_32F),
        ("bfloat16", "bfloat16", types.COMPUTE_32F),
    ]:
        x = cupy.ones((8, 8), dtype)
        with lt.computing(computing):
            lt.matmul(x, x)
            found = [emulated.last_compute_type()]
            lt.with_bias(x, x, x[0])
            found.append(emulated.last_compute_type())
            lt.with_column_sums(x, x)
            found.append(emulated.last_compute_type())
        assert found == [wanted] * 3


def test_what_no_epilogue_is_asked_for(cupy, lt):
    a, b = cupy.ones((4, 6), "float32"), cupy.ones((6, 8), "float32")
    bias = cupy.ones(9, "float32")
    assert lt.with_bias(a, b, bias[1:]) is None  # not on 16 bytes
    assert lt.with_bias(a, b, cupy.ones(16, "float32")[::2]) is None
    assert lt.with_bias(a, b, cupy.ones(8, "float64")) is None
    assert lt.with_bias(a[:, :1], b[:1], bias[:8]) is None  # an inner length of 1
    assert lt.with_bias(a, b[:, :1], bias[:1]) is None  # a single column
    assert lt.with_bias(a[:, ::2], b[::2], bias[:8]) is None  # not in one piece
    assert lt.with_bias(a[:0], b, bias[:8]) is None
    assert lt.with_activation(a, b, bias[1:], "gelu_tanh") is None
    assert lt.with_activation(a[:, :1], b[:1], bias[:8], "gelu_tanh") is None
    assert lt.with_column_sums(b.T, cupy.ones((8, 6), "float32").T) is None  # summed where it is transposed
    with pytest.raises(ValueError, match="do not fit"):
        lt.with_bias(a, a, bias[:6])


def test_without_cublaslt_nothing_is_fused(cupy, products, monkeypatch):
    monkeypatch.setattr(products, "library", lambda: "nvmath is not installed")
    x = cupy.ones((4, 4), "float32")
    assert products.with_bias(x, x, x[0]) is None
    assert products.with_column_sums(x.T, x) is None
    assert products.with_activation(x, x, x[0], "gelu_tanh") is None
    products.prepare()


def test_rectified_nan_stays_nan(cupy, lt):
    x = cupy.full((8, 8), float("nan"), "float32")
    y = lt.with_bias(x, x, x[0], relu=True)
    assert y is None or bool(cupy.isnan(y).all())


def test_an_epilogue_that_loses_nan_is_not_used(cupy, fresh, emulated):
    x = cupy.ones((8, 8), "float32")
    with emulated.swallowing_nan():
        assert fresh.with_bias(x, x, x[0], relu=True) is None
        assert fresh.with_bias(x, x, x[0]) is not None
    # What was found out counts from then on.
    assert fresh.with_bias(x, x, x[0], relu=True) is None


def test_no_trial_in_a_capture(cupy, fresh):
    x = cupy.ones((8, 8), "float32")
    with captured(cupy, fresh):
        assert fresh.with_bias(x, x, x[0], relu=True) is None


def test_refused_epilogues(cupy, fresh, emulated, plans):
    epilogues = plans.library().lt.Epilogue
    x = cupy.ones((8, 8), "float32")
    with emulated.refusing(epilogues.BIAS, epilogues.RELU_BIAS, epilogues.BGRADA):
        assert fresh.with_bias(x, x, x[0]) is None
        assert fresh.with_bias(x, x, x[0], relu=True) is None
        assert fresh.with_column_sums(x.T, x) is None
        assert_product(fresh.matmul(x, x), x, x)


def test_the_right_epilogue_is_asked_for(cupy, lt, emulated, plans):
    epilogues = plans.library().lt.Epilogue
    x = cupy.ones((8, 8), "float32")
    relu, gelu = (lt.with_activation(x, x, x[0], name) for name in ("relu", "gelu_tanh"))  # with the trials
    for name, call in {
        "DEFAULT": lambda: lt.matmul(x, x),
        "BIAS": lambda: lt.with_bias(x, x, x[0]),
        "RELU_BIAS": lambda: lt.with_bias(x, x, x[0], relu=True),
        "BGRADA": lambda: lt.with_column_sums(x.T, x),
        "RELU_AUX_BIAS": lambda: lt.with_activation(x, x, x[0], "relu"),
        "GELU_AUX_BIAS": lambda: lt.with_activation(x, x, x[0], "gelu_tanh"),
        "DRELU_BGRAD": lambda: lt.through_activation(x, x, relu[1], "relu"),
        "DGELU_BGRAD": lambda: lt.through_activation(x, x, gelu[1], "gelu_tanh"),
    }.items():
        before = emulated.products()
        assert call() is not None
        assert emulated.products() > before
        assert emulated.last_epilogue() == epilogues[name]


# Plans


def test_products_that_cublaslt_refuses_go_to_cupy(cupy, fresh, emulated, plans):
    a = random_array(cupy, 22, (5, 6), "float32")
    with emulated.refusing(plans.library().lt.Epilogue.DEFAULT):
        before = emulated.products()
        assert_product(fresh.matmul(a, a.T), a, a.T)
        out = cupy.zeros((5, 5), "float32")
        assert fresh.matmul(a, a.T, out) is out
        assert_product(out, a, a.T)
        assert emulated.products() == before


def test_refused_products_are_an_error_in_a_capture(cupy, fresh, emulated, plans):
    a = random_array(cupy, 23, (5, 6), "float32")
    with (
        emulated.refusing(plans.library().lt.Epilogue.DEFAULT),
        captured(cupy, fresh),
        pytest.raises(BackendError, match=r"\(5, 6\) and \(6, 5\) cannot be captured .* no algorithm"),
    ):
        fresh.matmul(a, a.T)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_algorithms_that_do_not_run(cupy, fresh, emulated, failing):
    a = random_array(cupy, 24, (5, 6), "float32")
    before = emulated.products()
    with emulated.failing_first(failing):
        for _ in range(2):
            assert_product(fresh.matmul(a, a.T), a, a.T)
    # With all three failing, CuPy computes.
    assert emulated.products() - before == (0 if failing == 3 else 2)


def test_a_plan_is_made_once(cupy, fresh, emulated, plans):
    theta = random_array(cupy, 25, (4096,), "float32")
    x = random_array(cupy, 26, (7, 20), "float32")
    before = emulated.heuristics()
    for start in (0, 64, 128, 1024):
        weight = theta[start : start + 600].reshape(20, 30)
        for _ in range(3):
            assert_product(fresh.matmul(x, weight), x, weight)
    assert emulated.heuristics() - before == 1
    assert plans.products_here().plan_count == 1
    fresh.matmul(x, theta[1:601].reshape(20, 30))  # another alignment
    with fresh.computing("tf32"):
        fresh.matmul(x, weight)
    assert plans.products_here().plan_count == 3


def test_old_plans_are_forgotten(cupy, fresh, plans, monkeypatch):
    monkeypatch.setattr(plans, "MOST_PLANS", 3)
    for rows in (2, 3, 4, 5, 6, 2):
        a = random_array(cupy, rows, (rows, 5), "float32")
        assert_product(fresh.matmul(a, a.T), a, a.T)
        assert plans.products_here().plan_count <= 3


def test_batches_of_more_matrices_than_one_call_takes(cupy, fresh, plans, monkeypatch):
    monkeypatch.setattr(plans, "MOST_BATCHES", 3)
    a = random_array(cupy, 27, (8, 4, 5), "float64")
    b = random_array(cupy, 28, (8, 5, 2), "float64")
    assert_product(fresh.matmul(a, b), a, b)
    assert_product(fresh.matmul(a[0], b), a[0], b)


def test_the_same_product_has_the_same_bits(cupy, lt):
    a = random_array(cupy, 29, (60, 700), "float32")
    b = random_array(cupy, 30, (700, 50), "float32")
    first = lt.matmul(a, b).get()
    for _ in range(5):
        assert np.array_equal(lt.matmul(a, b).get(), first)


def test_threads(cupy, gpu, fresh):
    x = random_array(cupy, 31, (16, 16), "float32")
    wrong = []

    def work(number):
        with gpu.context(), cupy.cuda.Stream(non_blocking=True) as stream:
            bias = cupy.full(16, float(number), "float32")
            plain = fresh.matmul(x, x)
            for _ in range(30):
                y = fresh.with_bias(x, x, bias)
                if float(abs(y - plain - number).max()) > 1e-3:
                    wrong.append(number)
            stream.synchronize()

    cupy.cuda.get_current_stream().synchronize()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(0, 80, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_capture_and_replay_with_other_numbers(cupy, lt):
    for dtype in DTYPES:
        # The large one needs a workspace.
        for rows, inner, columns in ((5, 6, 8), (96, 80, 64)):
            a = random_array(cupy, 32, (rows, inner), dtype)
            b = random_array(cupy, 33, (inner, columns), dtype)
            bias = random_array(cupy, 34, (columns,), dtype)

            def compute(a=a, b=b, bias=bias):
                return lt.matmul(a, b), lt.matmul(a[None], b[None]), lt.with_bias(a, b, bias), lt.with_column_sums(a, b)

            compute()
            cupy.cuda.get_current_stream().synchronize()
            with captured(cupy, lt) as graphs:
                plain, batched, biased, sums = compute()
            for seed in (35, 36):
                a[...] = random_array(cupy, seed, a.shape, dtype)
                bias[...] = seed
                cupy.cuda.get_current_stream().synchronize()
                replay(graphs)
                assert_product(plain, a, b)
                assert_product(batched, a[None], b[None])
                if sums is not None:
                    assert_product(sums[0], a, b)
                if biased is not None:
                    difference = to_host(biased) - to_host(a) @ to_host(b) - seed
                    assert np.all(abs(difference) <= 4 * EPS[dtype] * (seed + abs(to_host(a)) @ abs(to_host(b))))
                if biased is None or sums is None:
                    assert_may_refuse()


def test_without_cublaslt_a_capture_is_refused_in_words(cupy, products, monkeypatch):
    products.prepare()
    monkeypatch.setattr(products, "library", lambda: "nvmath is not installed; pip install it")
    x = cupy.ones((4, 4), "float32")
    with captured(cupy, products), pytest.raises(BackendError, match="nvmath is not installed; pip install it"):
        products.matmul(x, x)


def test_why_not_names_the_remedy(gpu, plans, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="nvmath")

    def broken(name):
        raise RuntimeError("CUDA driver is not found")

    monkeypatch.setattr(plans.importlib, "import_module", missing)
    assert plans.library.__wrapped__().startswith("nvmath is not installed; pip install ")
    monkeypatch.setattr(plans.importlib, "import_module", broken)
    reason = plans.library.__wrapped__()
    assert "CUDA driver is not found" in reason
    assert "-fast]" in reason
