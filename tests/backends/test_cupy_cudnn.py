"""The bodies that use cuDNN: on a GPU where it is installed, and on the emulated GPU with a stand-in for it."""

import math
import sys
import threading

import numpy as np
import pytest

from xpnn.dispatch import OPS
from xpnn.random import RandomKey

DTYPES = ("float32", "float16", "bfloat16")
HALVES = ("float16", "bfloat16")


@pytest.fixture
def runs(gpu, monkeypatch):
    """The definitions of the cuDNN graphs that were run, in their order."""
    from xpnn_backends.cupy import cudnn_graphs

    reason = cudnn_graphs.why_not()
    if reason is not None:
        pytest.skip(f"cuDNN does not run here: {reason}")
    # Refusals that a test brings about must not be remembered behind its end.
    monkeypatch.setattr(cudnn_graphs, "_plans", {})
    seen = []
    run = cudnn_graphs.Plan.run

    def counted(plan, *arrays):
        seen.append(plan.definition)
        run(plan, *arrays)

    monkeypatch.setattr(cudnn_graphs.Plan, "run", counted)
    return seen


@pytest.fixture
def refuse(monkeypatch):
    """refuse(predicate): from now on, building a graph fails where predicate(definition) holds."""
    from xpnn_backends.cupy import cudnn_graphs

    build = cudnn_graphs.build

    def apply(predicate):
        def refusing(cudnn, definition, **where):
            if predicate(definition):
                raise RuntimeError("no engine")
            return build(cudnn, definition, **where)

        monkeypatch.setattr(cudnn_graphs, "build", refusing)

    return apply


def on_device(x, dtype):
    import cupy

    if x is None or x.dtype == bool:
        return None if x is None else cupy.asarray(x)
    return cupy.asarray(x.astype(numpy_dtype(dtype)))


def numpy_dtype(dtype):
    if dtype == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(dtype)


def epsilon(dtype):
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[dtype]


def reals(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def check(name, arrays, settings, dtype, factor=None, body=None):
    """The body's results and gradients equal those of the generic one on NumPy in float64."""
    import cupy

    from xpnn_backends.cupy.bodies import BODIES

    rounded = [None if x is None else x if x.dtype == bool else x.astype(numpy_dtype(dtype)) for x in arrays]
    wide = [None if x is None else x if x.dtype == bool else x.astype(np.float64) for x in rounded]
    wanted, wanted_vjp = OPS[name].generic(*wide, **settings)
    given = [on_device(x, dtype) for x in rounded]
    found, vjp = (body or BODIES[name])(*given, **settings)
    several = isinstance(wanted, tuple)
    pairs = list(zip(found, wanted, strict=True)) if several else [(found, wanted)]
    cotangents = reals(*(wanted[0] if several else wanted).shape, seed=1).astype(numpy_dtype(dtype))
    back = (cotangents.astype(np.float64), None, None) if several else cotangents.astype(np.float64)
    sent = cupy.asarray(cotangents)
    gradients = vjp((sent, None, None) if several else sent)
    wanted_gradients = wanted_vjp(back)
    for gradient, wanted_gradient, x in zip(gradients, wanted_gradients, given, strict=False):
        assert (gradient is None) == (wanted_gradient is None)
        if gradient is not None:
            assert gradient.dtype == x.dtype
            pairs.append((gradient, wanted_gradient))
    bound = (factor or 4.0) * epsilon(dtype) * (16 if dtype == "float32" else 1)
    for got, want in pairs:
        assert got.shape == want.shape
        scale = np.abs(want).max() if want.size else 0.0
        error = np.abs(cupy.asnumpy(got).astype(np.float64) - want).max() if want.size else 0.0
        assert error <= bound * max(scale, 1.0), f"{error} against {bound * max(scale, 1.0)}"
    return gradients


def kinds(runs):
    """Products or operations that ran."""
    return [getattr(definition, "product", None) or definition.operation for definition in runs]


def window(axes, stride=1, padding=(0, 0), dilation=1, **others):
    return {"stride": (stride,) * axes, "padding": (padding,) * axes, "dilation": (dilation,) * axes, **others}


CONVOLUTIONS = {
    "1d": ((2, 9, 8), (3, 8, 16), window(1)),
    "1d-causal": ((2, 9, 8), (3, 8, 8), window(1, padding=(4, 0), dilation=2)),
    "2d": ((2, 6, 5, 8), (3, 3, 8, 16), window(2, padding=(1, 1), activation="relu")),
    "2d-stem": ((2, 6, 6, 3), (3, 3, 3, 5), window(2, padding=(1, 1), activation="gelu")),
    "2d-uneven": ((2, 6, 7, 2), (3, 2, 2, 3), {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (2, 1)}),
    "2d-1x1": ((3, 5, 5, 8), (1, 1, 8, 8), window(2, stride=2)),
    "2d-one-channel": ((2, 5, 5, 1), (2, 2, 1, 1), window(2)),
    "groups": ((2, 5, 6, 8), (3, 3, 4, 16), window(2, groups=2, activation="tanh")),
    "depthwise": ((2, 5, 6, 4), (3, 3, 1, 8), window(2, padding=(1, 1), groups=4)),
    "3d": ((2, 4, 3, 5, 8), (2, 2, 3, 8, 8), window(3, padding=(1, 0))),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label", CONVOLUTIONS)
def test_convolution(runs, label, dtype):
    x, weight, settings = CONVOLUTIONS[label]
    check("conv", [reals(*x), reals(*weight), reals(weight[-1])], settings, dtype)
    assert kinds(runs) == ["forward", "input", "weight"]
    assert runs[0].bias
    assert all(definition.tensor_cores == (dtype != "float32") for definition in runs)


TRANSPOSED = {
    "1d": ((2, 5, 4), (3, 8, 4), window(1, stride=2, output_padding=(1,))),
    "2d": ((2, 4, 5, 8), (3, 3, 8, 8), window(2, stride=2, padding=(1, 1), output_padding=(1, 0), activation="relu")),
    "2d-uneven": ((2, 4, 3, 3), (3, 2, 2, 3), window(2, padding=(1, 0), dilation=2, output_padding=(0, 0))),
    "groups": ((2, 4, 3, 6), (2, 2, 2, 6), window(2, groups=3, output_padding=(0, 0))),
    "3d": ((1, 3, 2, 2, 4), (2, 2, 2, 3, 4), window(3, stride=2, output_padding=(0, 0, 1))),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label", TRANSPOSED)
def test_transposed_convolution(runs, label, dtype):
    x, weight, settings = TRANSPOSED[label]
    out = weight[-2] * settings.get("groups", 1)
    check("conv_transpose", [reals(*x), reals(*weight), reals(out)], settings, dtype)
    assert kinds(runs) == ["input", "forward", "weight"]


def test_output_padding_that_makes_room_for_the_window_once_more(runs):
    settings = window(1, dilation=3, output_padding=(2,))
    check("conv_transpose", [reals(2, 4, 8), reals(2, 8, 8), reals(8)], settings, "float32")
    assert runs == []


def test_no_bias_and_no_input_gradient(runs):
    arrays = [reals(2, 5, 5, 8), reals(3, 3, 8, 8), None]
    gradients = check("conv", arrays, window(2, input_gradient=False, activation="relu"), "float32")
    assert gradients[0] is None
    assert kinds(runs) == ["forward", "weight"]


def test_views_are_copied_where_cudnn_could_not_read_them(runs):
    import cupy

    from xpnn_backends.cupy.bodies import BODIES

    flat = cupy.asarray(reals(1 + 2 * 5 * 5 * 4).astype(np.float32))
    theta = cupy.asarray(reals(1 + 3 * 3 * 4 * 1 + 1).astype(np.float32))
    x = flat[1:].reshape(2, 5, 5, 4).swapaxes(1, 2)
    weight, bias = theta[1:-1].reshape(3, 3, 4, 1), theta[-1:]
    y, vjp = BODIES["conv"](x, weight, bias, **window(2))
    dy = cupy.asarray(reals(2, 3, 3, 2).astype(np.float32))[..., 1:]
    found = [y, *vjp(dy)]
    wanted, wanted_vjp = OPS["conv"].generic(*map(cupy.asnumpy, (x, weight, bias)), **window(2))
    for got, want in zip(found, [wanted, *wanted_vjp(cupy.asnumpy(dy))], strict=True):
        np.testing.assert_allclose(cupy.asnumpy(got), want, rtol=1e-4, atol=1e-4)
    assert kinds(runs) == ["forward", "input", "weight"]


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_float64_and_empty_batches_go_without_cudnn(runs, name):
    settings = window(1) | ({"output_padding": (0,)} if name == "conv_transpose" else {})
    check(name, [reals(2, 5, 8), reals(2, 8, 8), reals(8)], settings, "float64")
    check(name, [reals(0, 5, 8), reals(2, 8, 8), reals(8)], settings, "float32")
    assert runs == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_gradient_that_only_whole_numbers_of_channels_have(runs, refuse, dtype):
    refuse(lambda definition: definition.product == "weight" and definition.image[1] % 8)
    check("conv", [reals(2, 6, 6, 3), reals(3, 3, 3, 5), reals(5)], window(2), dtype)
    assert kinds(runs) == ["forward", "input", "weight"]
    assert runs[-1].image[1] == runs[-1].weight[0] == 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("refused", ["forward", "input", "weight"])
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_products_that_cudnn_has_not(runs, refuse, name, refused, dtype):
    refuse(lambda definition: definition.product == refused)
    settings = window(2, padding=(1, 0), groups=2, activation="relu")
    settings |= {"output_padding": (0, 0)} if name == "conv_transpose" else {}
    check(name, [reals(2, 5, 6, 8), reals(3, 3, 4, 8), reals(8)], settings, dtype, factor=8.0)
    first = "forward" if name == "conv" else "input"
    assert kinds(runs) == ([] if refused == first else [k for k in _order(name) if k != refused])


def _order(name):
    return ["forward", "input", "weight"] if name == "conv" else ["input", "forward", "weight"]


def test_a_bias_that_cudnn_does_not_add(runs, refuse):
    refuse(lambda definition: definition.bias)
    check("conv", [reals(2, 5, 8), reals(2, 8, 8), reals(8)], window(1, activation="silu"), "float32")
    assert kinds(runs) == ["forward", "input", "weight"]


def test_what_has_no_plan_is_tried_and_told_once(runs, refuse, caplog):
    tries = []
    refuse(lambda definition: tries.append(definition) or True)
    caplog.set_level("INFO", "xpnn")
    for _ in range(2):
        check("conv", [reals(2, 5, 8), reals(2, 8, 8), None], window(1), "float32")
    assert len(tries) == 1
    assert sum("cuDNN has no plan" in record.message for record in caplog.records) == 1


def test_tf32_is_another_plan(runs, gpu):
    from xpnn_backends.cupy import products

    with products.computing("tf32"):
        check("conv", [reals(2, 5, 8), reals(2, 8, 8), None], window(1), "float32", factor=4096.0)
    assert all(definition.tensor_cores for definition in runs)


def test_nan_passes_relu(runs):
    import cupy

    from xpnn_backends.cupy.bodies import BODIES

    x = cupy.full((1, 3, 8), cupy.nan, dtype=cupy.float32)
    y, _ = BODIES["conv"](x, cupy.ones((1, 8, 8), dtype=cupy.float32), None, **window(1, activation="relu"))
    assert bool(cupy.isnan(y).all())
    assert kinds(runs) == ["forward"]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 4, 16)])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
def test_batch_norm(runs, shape, activation, dtype):
    from xpnn_backends.cupy import bodies_cudnn_normalization as bodies

    arrays = [reals(*shape), reals(shape[-1], seed=2), reals(shape[-1], seed=3)]
    check("batch_norm", arrays, {"activation": activation}, dtype, factor=8.0, body=bodies.batch_norm)
    check("batch_norm", [arrays[0], None, None], {"activation": activation}, dtype, 8.0, bodies.batch_norm)
    assert kinds(runs) == ["batch_norm", "batch_norm_backward"] * 2


def test_batch_norm_statistics_have_gradients(runs):
    import cupy

    from xpnn_backends.cupy import bodies_cudnn_normalization as bodies

    x = reals(12, 8).astype(np.float16)
    cotangents = reals(12, 8, seed=1), reals(8, seed=2), reals(8, seed=3)
    (_, mean, variance), vjp = bodies.batch_norm(cupy.asarray(x))
    (_, wanted_mean, wanted_variance), wanted_vjp = OPS["batch_norm"].generic(x.astype(np.float64))
    assert mean.dtype == variance.dtype == np.float32
    np.testing.assert_allclose(cupy.asnumpy(mean), wanted_mean, atol=1e-5)
    np.testing.assert_allclose(cupy.asnumpy(variance), wanted_variance, rtol=1e-5)
    dx = vjp((cupy.asarray(cotangents[0].astype(np.float16)), *(cupy.asarray(c, np.float32) for c in cotangents[1:])))
    np.testing.assert_allclose(cupy.asnumpy(dx[0]), wanted_vjp(cotangents)[0], atol=4 * epsilon("float16"))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("shape", "axes"), [((5, 16), 1), ((2, 3, 4, 5), 2), ((7,), 1)])
def test_layer_norm_and_rms_norm(runs, shape, axes, dtype):
    from xpnn_backends.cupy import bodies_cudnn_normalization as bodies

    x, weight, bias = reals(*shape), reals(*shape[-axes:], seed=2), reals(*shape[-axes:], seed=3)
    check("layer_norm", [x, weight, bias], {"axes": axes}, dtype, factor=8.0, body=bodies.layer_norm)
    check("layer_norm", [x, None, None], {"axes": axes}, dtype, factor=8.0, body=bodies.layer_norm)
    check("rms_norm", [x, weight], {"axes": axes}, dtype, factor=8.0, body=bodies.rms_norm)
    check("rms_norm", [x, None], {"axes": axes}, dtype, factor=8.0, body=bodies.rms_norm)
    assert kinds(runs) == [
        *["layer_norm", "layer_norm_backward"] * 2,
        *["rms_norm", "rms_norm_backward"] * 2,
    ]


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm", "rms_norm"])
def test_normalization_without_cudnn(runs, refuse, name):
    from xpnn_backends.cupy import bodies_cudnn_normalization as bodies

    body = bodies.BODIES[name]
    arrays = [reals(6, 8), reals(8), reals(8)][: 2 if name == "rms_norm" else 3]
    for dtype in ("float32", "float64"):
        check(name, arrays, {}, dtype, body=body)
    assert runs == []
    refuse(lambda definition: definition.operation.endswith("backward"))
    check(name, arrays, {}, "float16", factor=8.0, body=body)
    assert kinds(runs) == [name]
    refuse(lambda definition: True)
    check(name, [reals(9, 8), *arrays[1:]], {}, "float16", factor=8.0, body=body)
    assert kinds(runs) == [name]


ATTENTIONS = {
    "plain": ((2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 8), {}),
    "causal": ((2, 6, 2, 16), (2, 4, 2, 16), (2, 4, 2, 16), {"causal": True, "scale": 0.3}),
    "grouped": ((1, 5, 6, 8), (1, 5, 2, 8), (1, 5, 2, 16), {"causal": True}),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("label", ATTENTIONS)
def test_attention(runs, label, dtype):
    *shapes, settings = ATTENTIONS[label]
    arrays = [reals(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    check("attention", arrays, settings, dtype, factor=8.0)
    assert kinds(runs) == ["forward", "backward"]


def test_slices_of_one_array_are_read_where_they_lie(runs):
    import cupy

    from xpnn_backends.cupy.bodies import BODIES

    packed = cupy.asarray(reals(2, 6, 3, 2, 8).astype(np.float16))
    query, key, value = (packed[:, :, part] for part in range(3))
    y, vjp = BODIES["attention"](query, key, value)
    dy = reals(*y.shape, seed=1)
    gradients = vjp(cupy.asarray(dy.astype(np.float16)))
    wide = [cupy.asnumpy(x).astype(np.float64) for x in (query, key, value)]
    wanted, wanted_vjp = OPS["attention"].generic(*wide)
    for got, want in zip([y, *gradients], [wanted, *wanted_vjp(dy)], strict=True):
        if want is not None:
            np.testing.assert_allclose(cupy.asnumpy(got).astype(np.float64), want, atol=8 * epsilon("float16"))
    assert runs[0].strides[0] == (6 * 3 * 2 * 8, 8, 3 * 2 * 8, 1)
    assert gradients[0].flags.c_contiguous


def test_attention_without_cudnn(runs, refuse):
    arrays = [reals(2, 5, 2, 8, seed=seed) for seed in range(3)]
    mask = reals(2, 1, 5, 5) > 0
    dropout = {"dropout_key": RandomKey(1, 2, 3), "dropout_rate": 0.5}
    check("attention", arrays, {}, "float32")
    check("attention", [*arrays, mask], {}, "float16", factor=8.0)
    check("attention", arrays, dropout, "float16", factor=8.0)
    check("attention", [reals(2, 5, 2, 7, seed=seed) for seed in range(3)], {}, "float16", factor=8.0)
    assert runs == []
    refuse(lambda definition: definition.product == "backward")
    check("attention", arrays, {}, "float16", factor=8.0)
    assert kinds(runs) == ["forward"]


def test_a_captured_step_computes_when_it_is_replayed(runs):
    import cupy

    from xpnn_backends.cupy import bodies_cudnn_normalization
    from xpnn_backends.cupy.bodies import BODIES

    x = cupy.asarray(reals(2, 5, 8).astype(np.float16))
    weight = cupy.asarray(reals(3, 8, 8).astype(np.float16))
    dy = cupy.asarray(reals(2, 3, 8, seed=1).astype(np.float16))

    def step():
        y, vjp = BODIES["conv"](x, weight, None, **window(1))
        z, norm_vjp = bodies_cudnn_normalization.layer_norm(y)
        return z, *vjp(norm_vjp(dy)[0])[:2]

    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()  # the arrays were made on another stream
    with cupy.cuda.using_allocator(pool.malloc), stream:
        step()
        stream.begin_capture()
        results = step()
        graph = stream.end_capture()
        x *= 2
        weight += 1
        graph.launch(stream)
        stream.synchronize()
        found = [cupy.asnumpy(result) for result in results]
        wanted = [cupy.asnumpy(result) for result in step()]
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got, want)


def test_threads_and_streams_have_their_own_handles(runs):
    import cupy

    from xpnn_backends.cupy import cudnn_graphs
    from xpnn_backends.cupy.bodies import BODIES

    x, weight = (cupy.asarray(reals(*shape).astype(np.float32)) for shape in ((4, 9, 8), (3, 8, 8)))
    cupy.cuda.get_current_stream().synchronize()
    found, handles = [], []

    def work():
        stream = cupy.cuda.Stream(non_blocking=True)
        with cupy.cuda.Device(0), stream:
            y, _ = BODIES["conv"](x, weight, None, **window(1))
            stream.synchronize()
            found.append(cupy.asnumpy(y))
            handles.append(*cudnn_graphs._state.handles.values())
            assert cudnn_graphs._state.streams == {0: stream.ptr}

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(cudnn_graphs._plans) == 1
    assert handles[0] is not handles[1]
    np.testing.assert_array_equal(found[0], found[1])


def test_a_step_is_captured_in_another_thread_than_the_one_that_ran_it_first(runs, gpu):
    import cupy

    from xpnn_backends.cupy.bodies import BODIES

    def step(state, batch):
        y, vjp = BODIES["conv"](batch[0], state[0], None, **window(1))
        return (state[0] - 0.01 * vjp(y)[1],), y.sum()

    x, weight = (cupy.asarray(reals(*shape).astype(np.float32)) for shape in ((4, 9, 8), (3, 8, 8)))
    wanted = (weight.copy(),)
    for _ in range(4):
        wanted, _ = step(wanted, (x,))
    compiled, states = gpu.compile(step), [(weight,)]
    states.append(compiled(states[-1], (x,))[0])

    def work():
        with gpu.context():
            for _ in range(3):
                states.append(compiled(states[-1], (x,))[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(states) == 5
    assert compiled.how == "a CUDA graph"
    np.testing.assert_allclose(cupy.asnumpy(states[-1][0]), cupy.asnumpy(wanted[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("missing", ["module", "library", "new enough"])
def test_without_the_library(gpu, monkeypatch, missing):
    from types import SimpleNamespace

    from xpnn_backends.cupy import cudnn_graphs

    def broken():
        raise RuntimeError("libcudnn.so.9: cannot open shared object file")

    versions = {"module": None, "library": broken, "new enough": lambda: 8900}
    module = None if missing == "module" else SimpleNamespace(backend_version=versions[missing])
    monkeypatch.setitem(sys.modules, "cudnn", module)
    cudnn_graphs._library.cache_clear()
    try:
        reason = cudnn_graphs.why_not()
        assert reason is not None
        assert 'pip install "xpnn[cuda' in reason
        check("conv", [reals(2, 5, 8), reals(2, 8, 8), reals(8)], window(1), "float16", factor=8.0)
        check("attention", [reals(1, 5, 2, 8)] * 3, {}, "float16", factor=8.0)
    finally:
        cudnn_graphs._library.cache_clear()


def test_strides_of_channels_last():
    from xpnn_backends.cupy.cudnn_definitions import by_time, channels_last

    x = np.zeros((2, 3, 4, 5))
    assert channels_last((2, 5, 3, 4)) == tuple(step // 8 for step in x.transpose(0, 3, 1, 2).strides)
    assert by_time((2, 4, 3, 5)) == tuple(step // 8 for step in x.transpose(0, 2, 1, 3).strides)
    assert math.prod(x.shape) == 2 * channels_last((2, 5, 3, 4))[0]
