"""The emulated GPU itself: what CuPy computes on it, and what CUDA forbids."""

import re
import threading

import numpy as np
import pytest

_REASON = "needs the emulated GPU: PYTHONPATH=tests python -m pytest -p emulated_gpu.plugin"
device = pytest.importorskip("emulated_gpu.device", reason=_REASON)
compiler = pytest.importorskip("emulated_gpu.compiler", reason=_REASON)

pytestmark = pytest.mark.skipif(not device.is_installed(), reason=_REASON)


@pytest.fixture
def cp():
    import cupy

    return cupy


@pytest.fixture
def stream(cp):
    with cp.cuda.Stream(non_blocking=True) as stream:
        yield stream


def change(before, name):
    return device.counts()[name] - before[name]


# ------------------------------------------------------------------------------------------------------- computing


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64"])
def test_arithmetic_is_numpys(cp, dtype):
    x = (np.arange(24).reshape(2, 3, 4) - 7).astype(dtype)
    y = np.full((3, 1), 2, dtype=dtype)
    got = (cp.asarray(x) + cp.asarray(y)) * cp.asarray(x)
    np.testing.assert_array_equal(cp.asnumpy(got), (x + y) * x)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 300, 3), (1, 5000)])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_reductions(cp, shape, axis):
    x = np.random.default_rng(0).integers(-50, 50, shape).astype("float64")
    for name in ("sum", "max", "min", "argmax", "mean"):
        got = getattr(cp.asarray(x), name)(axis=axis)
        np.testing.assert_allclose(cp.asnumpy(got), getattr(x, name)(axis=axis), rtol=1e-12, atol=1e-12)


def test_bfloat16_is_rounded_to_even(cp):
    import ml_dtypes

    x = np.float32([1.0, 1.00390625, 1.01171875, 3.1415927, 1e-40])
    got = cp.asarray(x).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(cp.asnumpy(got), x.astype(ml_dtypes.bfloat16))


def test_sorting_and_choosing(cp):
    x = np.random.default_rng(0).normal(size=(4, 9)).astype("float32")
    x[1, 3] = x[1, 6]
    g = cp.asarray(x)
    np.testing.assert_array_equal(cp.asnumpy(cp.sort(g, axis=0)), np.sort(x, axis=0))
    order = cp.argsort(g, axis=1)
    np.testing.assert_array_equal(cp.asnumpy(order), np.argsort(x, axis=1, kind="stable"))
    np.testing.assert_array_equal(cp.asnumpy(cp.take_along_axis(g, order, axis=1)), np.sort(x, axis=1))
    np.testing.assert_array_equal(cp.asnumpy(cp.take(g, cp.asarray([2, 0, 2]), axis=0)), x[[2, 0, 2]])
    np.testing.assert_array_equal(cp.asnumpy(cp.where(g > 0, g, 0)), np.where(x > 0, x, 0))
    np.testing.assert_allclose(cp.asnumpy(cp.cumsum(g, axis=1)), np.cumsum(x, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(cp.asnumpy(g[g > 0]), x[x > 0])


@pytest.mark.parametrize(
    "shapes", [((3, 4), (4, 5)), ((4,), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (3, 4, 5))]
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_products_of_matrices(cp, shapes, dtype):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, shape).astype(dtype) for shape in shapes)
    np.testing.assert_array_equal(cp.asnumpy(cp.asarray(a) @ cp.asarray(b)), a @ b)


def test_transposed_products(cp):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, shape).astype("float32") for shape in ((6, 4), (5, 4)))
    np.testing.assert_array_equal(cp.asnumpy(cp.asarray(a) @ cp.asarray(b).T), a @ b.T)
    np.testing.assert_array_equal(cp.asnumpy(cp.asarray(a).T @ cp.asarray(a)), a.T @ a)


# --------------------------------------------------------------------------------------------------------- kernels

ROW_SUMS = r"""
extern "C" __global__ void __launch_bounds__(128) row_sums(const float* x, float* sums, int columns) {
  extern __shared__ float of_warps[];
  float total = 0;
  for (int column = threadIdx.x; column < columns; column += blockDim.x) total += x[blockIdx.x * columns + column];
  for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_down_sync(0xffffffffu, total, lanes);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < blockDim.x / 32; ++warp) total += of_warps[warp];
    sums[blockIdx.x] = total;
  }
}
"""


def test_barriers_shuffles_and_shared_memory(cp):
    x = np.random.default_rng(0).integers(-9, 9, (5, 300)).astype("float32")
    sums = cp.empty(5, dtype="float32")
    kernel = cp.RawKernel(ROW_SUMS, "row_sums")
    kernel((5,), (128,), (cp.asarray(x), sums, np.int32(300)), shared_mem=16)
    np.testing.assert_array_equal(cp.asnumpy(sums), x.sum(axis=1))


def test_a_missing_barrier_shows(cp):
    kernel = cp.RawKernel(ROW_SUMS.replace("__syncthreads();", ""), "row_sums")
    x = cp.ones((1, 300), dtype="float32")
    sums = cp.empty(1, dtype="float32")
    with device.threads_in_reverse(False):
        kernel((1,), (128,), (x, sums, np.int32(300)), shared_mem=16)
    assert float(sums[0]) != 300


VOTES = r"""
extern "C" __global__ void votes(const int* x, unsigned* ballots, int* least, int* positive) {
  unsigned ballot = __ballot_sync(0xffffffffu, x[threadIdx.x] > 0);
  int smallest = __reduce_min_sync(0xffffffffu, x[threadIdx.x]);
  int count = __syncthreads_count(x[threadIdx.x] > 0);
  if (threadIdx.x % 32 == 0) ballots[threadIdx.x / 32] = ballot;
  if (threadIdx.x % 32 == 0) least[threadIdx.x / 32] = smallest;
  positive[threadIdx.x] = count;
}
"""


def test_votes(cp):
    x = np.random.default_rng(0).integers(-9, 9, 64).astype("int32")
    ballots, least, positive = cp.zeros(2, dtype="uint32"), cp.zeros(2, dtype="int32"), cp.zeros(64, dtype="int32")
    cp.RawKernel(VOTES, "votes")((1,), (64,), (cp.asarray(x), ballots, least, positive))
    bits = (x.reshape(2, 32) > 0).astype("uint64") << np.arange(32, dtype="uint64")
    np.testing.assert_array_equal(cp.asnumpy(ballots), bits.sum(axis=1))
    np.testing.assert_array_equal(cp.asnumpy(least), x.reshape(2, 32).min(axis=1))
    np.testing.assert_array_equal(cp.asnumpy(positive), (x > 0).sum())


TEMPLATE = """
template <typename T, int times> __global__ void scale(T* x, T factor) {
  struct alignas(16) Pack { T at[16 / sizeof(T)]; };
  Pack pack = *reinterpret_cast<Pack*>(x);
  for (int step = 0; step < times; ++step) for (T& entry : pack.at) entry *= factor;
  *reinterpret_cast<Pack*>(x) = pack;
}
"""


def test_templates_by_name_expression(cp):
    names = ("scale<float, 3>", "scale<double, 1>")
    module = cp.RawModule(code=TEMPLATE, options=("-std=c++17",), name_expressions=names)
    x, y = cp.ones(5, dtype="float32"), cp.ones(5)
    module.get_function(names[0])((1,), (1,), (x, np.float32(2)))
    module.get_function(names[1])((1,), (1,), (y, 2.0))
    assert x.tolist() == [8, 8, 8, 8, 1]
    assert y.tolist() == [2, 2, 1, 1, 1]


def test_an_access_that_is_not_aligned(cp):
    kernel = cp.RawModule(code=TEMPLATE, name_expressions=("scale<float, 1>",)).get_function("scale<float, 1>")
    with pytest.raises(cp.cuda.driver.CUDADriverError, match=r"MISALIGNED.*scale<float, 1>.*16 bytes"):
        kernel((1,), (1,), (cp.ones(8, dtype="float32")[1:], np.float32(2)))


def test_an_illegal_address(cp):
    kernel = cp.RawKernel('extern "C" __global__ void put(int* x) { x[threadIdx.x] = 1; }', "put")
    with pytest.raises(cp.cuda.driver.CUDADriverError, match=r"ILLEGAL_ADDRESS.*kernel put"):
        kernel((1,), (1,), (np.uintp(8),))
    x = cp.zeros(3, dtype="int32")
    kernel((1,), (3,), (x,))
    assert x.tolist() == [1, 1, 1]


def test_a_barrier_that_some_threads_never_reach(cp):
    code = 'extern "C" __global__ void stuck() { if (threadIdx.x < 3) __syncwarp(); else __syncthreads(); }'
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="wait for each other forever"):
        cp.RawKernel(code, "stuck")((1,), (64,), ())


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [((1,), (1025,), 0), ((1, 65536), (1,), 0), ((1,), (1, 1, 65), 0), ((1,), (1,), 49153)],
)
def test_launches_beyond_the_limits(cp, grid, block, shared):
    kernel = cp.RawKernel('extern "C" __global__ void nothing() {}', "nothing")
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        kernel(grid, block, (), shared_mem=shared)


SIGNATURE = """
#define NUMBER(name) const double *name##_place, double name##_value
typedef unsigned int u32;
template <typename T, int N>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 1 : 2) fill(T* y, long long count, int each, NUMBER(value)) {
  for (long long i = threadIdx.x; i < count; i += each) y[i] = (T)(value_place ? *value_place : value_value);
}
"""


def test_arguments_that_a_kernel_wants(cp):
    kernel = cp.RawModule(code=SIGNATURE, name_expressions=("fill<float, 4>",)).get_function("fill<float, 4>")
    y = cp.zeros(3, dtype="float32")
    kernel((1,), (32,), (y, 3, np.int32(32), np.uintp(0), 2.5))
    np.testing.assert_array_equal(cp.asnumpy(y), np.float32([2.5, 2.5, 2.5]))
    kernel((1,), (32,), (y, 3, np.int32(32), cp.ones((), dtype="float64"), 0.0))
    np.testing.assert_array_equal(cp.asnumpy(y), np.float32([1, 1, 1]))


def test_lanes_that_have_left_a_loop(cp):
    source = """
    extern "C" __global__ void sums(const int* lengths, int* y) {
      int sum = 0;
      for (int i = 0; i < lengths[threadIdx.x]; ++i) sum += __shfl_xor_sync(0xffffffffu, i, 1);
      y[threadIdx.x] = __shfl_sync(0xffffffffu, sum, 0);
    }"""
    kernel = cp.RawKernel(source, "sums")
    y = cp.zeros(32, dtype="int32")
    kernel((1,), (32,), (cp.full(32, 3, dtype="int32"), y))
    np.testing.assert_array_equal(cp.asnumpy(y), 3)
    with pytest.raises(Exception, match="meet in different calls"):
        kernel((1,), (32,), (cp.arange(32, dtype="int32"), y))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "float64"}, "argument 0, for y, is an array of float64, wants float32"),
        ({0: 0}, "argument 0, for y, is no address"),
        ({1: np.int32(3)}, "argument 1, for count, is a int32, wants a int64"),
        ({2: 32}, "argument 2, for each, is a int64, wants a int32"),
        ({3: 2.5}, "argument 3, for value_place, is no address"),
        ({4: 2}, "argument 4, for value_value, is a int64, wants a float64"),
        ({5: 0.0}, "has 5 parameters, and is given 6 arguments"),
    ],
)
def test_arguments_that_a_kernel_does_not_want(cp, change, message):
    kernel = cp.RawModule(code=SIGNATURE, name_expressions=("fill<float, 4>",)).get_function("fill<float, 4>")
    arguments = dict(enumerate((cp.zeros(3, dtype="float32"), 3, np.int32(32), np.uintp(0), 2.5)))
    arguments |= {place: cp.zeros(3, dtype=x) if isinstance(x, str) else x for place, x in change.items()}
    with pytest.raises(TypeError, match=re.escape(message)):
        kernel((1,), (32,), tuple(arguments.values()))


def test_the_parameters_of_all_our_kernels_are_understood(cp):
    from emulated_gpu.arguments import NUMBERS, parameters
    from xpnn_backends.cupy import kernels
    from xpnn_backends.cupy.bodies import KERNELS

    for family, name, template in KERNELS:
        expression = kernels.expression(name, *template)
        declared = parameters(kernels.source(family), expression)
        assert declared
        assert all(parameter.is_pointer or parameter.type in NUMBERS for parameter in declared), expression


def test_the_compilers_words_are_shown(cp):
    kernel = cp.RawKernel('extern "C" __global__ void wrong() { nonsense(); }', "wrong")
    with pytest.raises(cp.cuda.compiler.CompileException, match=r"kernels\.cu.*'?nonsense"):
        re.sub(r"\s+", " ", str(kernel((1,), (1,), ())))


def test_names_of_kernels_are_found():
    source = """
    // __global__ void comment(int)
    extern "C" __global__ void one(int) {}
    extern "C" { __device__ int help() { return 1; } __global__ void __launch_bounds__(256) two(int) { help(); } }
    template <typename T> __global__ void three(T) {}
    __global__ void four(int) {}
    """
    assert compiler.plain_kernels(source) == ["one", "two"]


# ------------------------------------------------------------------------------------------- memory, devices, counts


def test_fresh_memory_is_no_number(cp):
    assert bool(cp.isnan(cp.empty(1000)).all())
    assert bool((cp.empty(1000, dtype="int32") == -1).all())


def test_devices_are_apart(cp):
    with cp.cuda.Device(1):
        x = cp.arange(3.0)
        assert x.device.id == 1
        doubled = x * 2
    assert doubled.device.id == 1
    assert cp.cuda.Device().id == 0
    np.testing.assert_array_equal(cp.asnumpy(doubled), [0, 2, 4])


def test_a_stream_belongs_to_its_device(cp):
    other = cp.cuda.Device(1)
    with other:
        stream = cp.cuda.Stream(non_blocking=True)
    kernel = cp.RawKernel('extern "C" __global__ void nothing() {}', "nothing")
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="INVALID_HANDLE"):
        kernel((1,), (1,), (), stream=stream)


def test_out_of_memory(cp):
    pool = cp.cuda.MemoryPool()
    with device.memory_limit(1 << 20), pytest.raises(cp.cuda.memory.OutOfMemoryError):
        pool.malloc(1 << 21)
    assert pool.malloc(1 << 21).mem.size == 1 << 21


def test_what_ran_is_counted(cp):
    x = cp.asarray(np.ones(3, dtype="float32"))
    x * 2
    before, kernels = device.counts(), device.kernels()
    x * 2
    assert change(before, "launches") == 1
    assert change(before, "copies_to_host") == change(before, "synchronizations") == 0
    assert sum((device.kernels() - kernels).values()) == 1
    float(x[0])
    assert change(before, "copies_to_host") == 1
    assert change(before, "synchronizations") >= 1


# ---------------------------------------------------------------------------------------------------------- graphs


def test_a_graph_runs_only_when_it_is_launched(cp, stream):
    x = cp.arange(4, dtype="float32")
    y = cp.zeros(4, dtype="float32")
    for warm in (x + 1, cp.add(x, 1, out=y)):
        warm.fill(0)
    stream.begin_capture()
    cp.add(x, 1, out=y)
    x += y
    graph = stream.end_capture()
    assert y.tolist() == [0, 0, 0, 0]
    graph.launch(stream)
    assert y.tolist() == [1, 2, 3, 4]
    assert x.tolist() == [1, 3, 5, 7]
    x.fill(10)
    graph.launch(stream)
    assert x.tolist() == [21] * 4


def test_python_in_a_stream_does_not_lock_other_threads_out(cp, stream):
    from emulated_gpu.cudnn import _enqueue

    waited = []

    def other():
        stream.wait_event(cp.cuda.Event())
        waited.append(True)

    thread = threading.Thread(target=other)

    def job():
        thread.start()
        # The other thread wants the runtime, which this one has; if it kept Python's lock, neither would go on.
        thread.join(0.2)

    _enqueue(stream.ptr, job)
    thread.join(10)
    assert waited == [True]


def test_arguments_of_a_replay_are_those_of_the_capture(cp, stream):
    x = cp.zeros(2)
    step = 3.0
    x + step
    stream.begin_capture()
    cp.add(x, step, out=x)
    step = 100.0
    graph = stream.end_capture()
    graph.launch(stream)
    graph.launch(stream)
    assert x.tolist() == [6, 6]


def test_another_stream_joins_the_capture(cp, stream):
    other = cp.cuda.Stream(non_blocking=True)
    x, y = cp.ones(2), cp.ones(2)
    x * 3
    stream.begin_capture()
    x *= 3
    other.wait_event(stream.record())
    with other:
        cp.multiply(x, 3, out=y)
    stream.wait_event(other.record())
    y *= 2
    graph = stream.end_capture()
    assert y.tolist() == [1, 1]
    graph.launch(stream)
    assert y.tolist() == [18, 18]


def test_a_stream_that_is_not_joined(cp, stream):
    other = cp.cuda.Stream(non_blocking=True)
    x = cp.ones(2)
    x * 3
    stream.begin_capture()
    other.wait_event(stream.record())
    with other:
        x *= 3
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Unjoined"):
        stream.end_capture()


def _synchronize(cp, stream, x):
    stream.synchronize()


def _synchronize_device(cp, stream, x):
    cp.cuda.Device().synchronize()


def _query(cp, stream, x):
    cp.cuda.runtime.streamQuery(stream.ptr)


def _wait_for_an_event(cp, stream, x):
    stream.record().synchronize()


def _wait_for_another_streams_event(cp, stream, x):
    stream.wait_event(cp.cuda.Stream(non_blocking=True).record())


def _copy_from_pageable_memory(cp, stream, x):
    host = np.ones(4)
    cp.cuda.runtime.memcpyAsync(x.data.ptr, host.ctypes.data, 32, 1, stream.ptr)


def _sort(cp, stream, x):
    cp.sort(x)


@pytest.mark.parametrize(
    "forbidden",
    [
        _synchronize,
        _synchronize_device,
        _query,
        _wait_for_an_event,
        _wait_for_another_streams_event,
        _copy_from_pageable_memory,
        _sort,
    ],
)
def test_what_a_capture_forbids(cp, stream, forbidden):
    x = cp.zeros(4)
    cp.sort(x)
    stream.begin_capture()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match=r"cudaErrorStreamCapture|cudaErrorCapturedEvent"):
        forbidden(cp, stream, x)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Invalidated"):
        stream.end_capture()
    assert (x + 1).tolist() == [1, 1, 1, 1]


def test_a_blocking_stream_and_the_default_stream(cp):
    x = cp.zeros(4)
    x + 1
    stream = cp.cuda.Stream()
    with stream:
        stream.begin_capture()
        with cp.cuda.Stream.null, pytest.raises(cp.cuda.driver.CUDADriverError, match="IMPLICIT"):
            x + 1
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Invalidated"):
            stream.end_capture()


def test_values_cannot_be_read_in_a_capture(cp, stream):
    x = cp.zeros(4)
    stream.begin_capture()
    with pytest.raises((RuntimeError, cp.cuda.runtime.CUDARuntimeError)):
        float(x[0])
    with pytest.raises(NotImplementedError):
        cp.ones((2, 2)) @ cp.ones((2, 2))
    stream.end_capture()


def test_pinned_memory_may_be_copied_in_a_capture(cp, stream):
    import cupyx

    host = cupyx.empty_pinned(4, dtype="float64")
    x = cp.zeros(4)
    stream.begin_capture()
    cp.cuda.runtime.memcpyAsync(x.data.ptr, host.ctypes.data, 32, 1, stream.ptr)
    graph = stream.end_capture()
    for value in (3.0, 4.0):
        host[...] = value
        graph.launch(stream)
        assert x.tolist() == [value] * 4
