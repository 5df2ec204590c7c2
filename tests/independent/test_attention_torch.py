"""PyTorch's own attention and transformer layers, with the same weights, agree with xpnn's: values and gradients."""

import numpy as np
import pytest

import xpnn
from xpnn import ops
from xpnn.layers import Run
from xpnn.ops.positions import rotary_tables, sinusoidal_table

torch = pytest.importorskip("torch")
F = torch.nn.functional

RNG = np.random.default_rng(4)


def close(got, want, name=""):
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12, err_msg=name)


def normal(*shape):
    return RNG.standard_normal(shape)


def gradients_of(value, cotangent, tensors):
    """PyTorch's gradients of sum(cotangent * value)."""
    return [g.numpy() for g in torch.autograd.grad(value, tensors, torch.tensor(cotangent))]


def leaf(array):
    return torch.tensor(array, requires_grad=True)


MASKS = {
    "none": lambda batch, heads, queries, keys: None,
    "full": lambda batch, heads, queries, keys: RNG.uniform(size=(batch, heads, queries, keys)) < 0.7,
    "keys": lambda batch, heads, queries, keys: RNG.uniform(size=(batch, 1, 1, keys)) < 0.7,
    "table": lambda batch, heads, queries, keys: RNG.uniform(size=(queries, keys)) < 0.7,
}


@pytest.mark.parametrize("block", [1, 2, 3, 128])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("batch", "queries", "keys"), [(2, 5, 5), (1, 7, 4), (3, 1, 6), (0, 3, 3), (1, 1, 1)])
def test_scaled_dot_product(batch, queries, keys, causal, mask, block):
    heads = 2
    arrays = normal(batch, queries, heads, 3), normal(batch, keys, heads, 3), normal(batch, keys, heads, 4)
    allowed = MASKS[mask](batch, heads, queries, keys)
    if allowed is not None:
        allowed[..., 0] = True  # what PyTorch gives where nothing may be looked at has changed between its versions
    y, vjp = ops.attention(*arrays, allowed, causal=causal, block=block)
    dy = normal(*y.shape)

    reached = torch.ones((queries, keys), dtype=torch.bool)
    if causal:
        reached = reached.tril()
    if allowed is not None:
        reached = reached & torch.tensor(allowed)
    tensors = [leaf(array) for array in arrays]
    want = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in tensors), attn_mask=reached)
    want = want.transpose(1, 2)
    close(y, want.detach().numpy())
    for mine, other in zip(vjp(dy)[:3], gradients_of(want, dy, tensors), strict=True):
        close(mine, other)


def test_causal_is_their_causal():
    arrays = [normal(2, 6, 3, 4) for _ in range(3)]
    want = F.scaled_dot_product_attention(*(torch.tensor(a).transpose(1, 2) for a in arrays), is_causal=True)
    close(ops.attention(*arrays, causal=True, block=4)[0], want.transpose(1, 2).numpy())


@pytest.mark.parametrize("block", [2, 128])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_grouped_queries(key_heads, block):
    arrays = normal(2, 5, 6, 3), normal(2, 5, key_heads, 3), normal(2, 5, key_heads, 2)
    y, vjp = ops.attention(*arrays, causal=True, scale=0.3, block=block)
    dy = normal(*y.shape)
    tensors = [leaf(array) for array in arrays]
    query, key, value = (tensor.transpose(1, 2) for tensor in tensors)
    want = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True).transpose(1, 2)
    close(y, want.detach().numpy())
    for mine, other in zip(vjp(dy)[:3], gradients_of(want, dy, tensors), strict=True):
        close(mine, other)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_is_a_product_of_complex_numbers(interleaved):
    x = normal(2, 7, 3, 8)
    cos, sin = rotary_tables(x, 7, 8)
    y, vjp = ops.rotary(x, cos, sin, interleaved=interleaved)
    dy = normal(*y.shape)

    tensor = leaf(x)
    pairs = tensor.reshape(2, 7, 3, 4, 2) if interleaved else tensor.reshape(2, 7, 3, 2, 4).transpose(-1, -2)
    frequencies = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    angles = torch.outer(torch.arange(7, dtype=torch.float64), frequencies)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    want = turned.reshape(2, 7, 3, 8) if interleaved else turned.transpose(-1, -2).reshape(2, 7, 3, 8)
    close(y, want.detach().numpy())
    close(vjp(dy)[0], gradients_of(want, dy, [tensor])[0])


def test_sinusoidal_positions():
    t = torch.arange(9, dtype=torch.float64)[:, None]
    want = torch.zeros(9, 7, dtype=torch.float64)
    want[:, 0::2] = torch.sin(t / 10000.0 ** (torch.arange(0.0, 7.0, 2.0).double() / 7))
    want[:, 1::2] = torch.cos(t / 10000.0 ** (torch.arange(0.0, 6.0, 2.0).double() / 7))
    close(sinusoidal_table(normal(1), 9, 7), want.numpy())


class Layer:
    """One of our layers in float64, with random parameters by their full names."""

    def __init__(self, layer, *shapes):
        from xpnn.parameters import Layout, collect

        self.layer = layer
        structure = collect(layer, layer.build(shapes if len(shapes) > 1 else shapes[0])[1])
        self.layout = Layout(structure, "float64", blocked=False)
        self.parameters = {entry.name: 0.5 * normal(*entry.parameter.shape) for entry in structure.entries}

    def __call__(self, x, dy=None, mask=None):
        """(y, gradients of the inputs, gradients of the parameters by name)."""
        theta, buffers = self.layout.place(self.parameters, xpnn.get_backend("numpy"))
        run = Run(training=True)
        run.mask = mask
        y, backward = self.layer.forward(x, self.layout.tree(theta, buffers), run)
        dx, gradients = backward(normal(*y.shape) if dy is None else dy)
        return y, dx, self.layout.gather(gradients)


def copy_attention(theirs, parameters, prefix=""):
    """Put the parameters of a MultiHeadAttention into PyTorch's, which keeps weights as (out, in)."""
    with torch.no_grad():
        names = [f"{prefix}{name}" for name in ("query", "key", "value")]
        theirs.in_proj_weight.copy_(torch.tensor(np.concatenate([parameters[f"{n}.weight"].T for n in names])))
        theirs.in_proj_bias.copy_(torch.tensor(np.concatenate([parameters[f"{n}.bias"] for n in names])))
        theirs.out_proj.weight.copy_(torch.tensor(parameters[f"{prefix}output.weight"].T))
        theirs.out_proj.bias.copy_(torch.tensor(parameters[f"{prefix}output.bias"]))


def compare_attention(theirs, gradients, prefix=""):
    weights = np.split(theirs.in_proj_weight.grad.numpy(), 3)
    biases = np.split(theirs.in_proj_bias.grad.numpy(), 3)
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        close(gradients[f"{prefix}{name}.weight"], weight.T, name)
        close(gradients[f"{prefix}{name}.bias"], bias, name)
    close(gradients[f"{prefix}output.weight"], theirs.out_proj.weight.grad.numpy().T)
    close(gradients[f"{prefix}output.bias"], theirs.out_proj.bias.grad.numpy())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_self_attention(batch, causal, padded):
    ours = Layer(xpnn.MultiHeadAttention(2, causal=causal), (5, 6))
    theirs = torch.nn.MultiheadAttention(6, 2, batch_first=True, dtype=torch.float64)
    copy_attention(theirs, ours.parameters)
    x, dy = normal(batch, 5, 6), normal(batch, 5, 6)
    mask = None
    if padded:
        mask = np.arange(5)[None, :] < np.array([5, 2, 3])[:batch, None]
    y, dx, gradients = ours(x, dy, mask)
    tensor = leaf(x)
    hidden = ~torch.ones((5, 5), dtype=torch.bool).tril() if causal else None
    want, _ = theirs(
        tensor,
        tensor,
        tensor,
        attn_mask=hidden,
        key_padding_mask=None if mask is None else ~torch.tensor(mask),
        need_weights=False,
    )
    want.backward(torch.tensor(dy))
    close(y, want.detach().numpy())
    close(dx, tensor.grad.numpy())
    compare_attention(theirs, gradients)


def test_cross_attention():
    ours = Layer(xpnn.MultiHeadAttention(3), (4, 6), (7, 6))
    theirs = torch.nn.MultiheadAttention(6, 3, batch_first=True, dtype=torch.float64)
    copy_attention(theirs, ours.parameters)
    queries, memory, dy = normal(2, 4, 6), normal(2, 7, 6), normal(2, 4, 6)
    y, (dqueries, dmemory), gradients = ours((queries, memory), dy)
    tensors = leaf(queries), leaf(memory)
    want, _ = theirs(tensors[0], tensors[1], tensors[1], need_weights=False)
    want.backward(torch.tensor(dy))
    close(y, want.detach().numpy())
    close(dqueries, tensors[0].grad.numpy())
    close(dmemory, tensors[1].grad.numpy())
    compare_attention(theirs, gradients)


def test_attention_to_keys_and_values_of_other_sizes():
    ours = Layer(xpnn.MultiHeadAttention(2), (4, 6), (5, 3), (5, 7), (4, 5))
    theirs = torch.nn.MultiheadAttention(6, 2, batch_first=True, kdim=3, vdim=7, dtype=torch.float64)
    with torch.no_grad():
        for name in ("query", "key", "value"):
            weight = getattr(theirs, f"{name[0]}_proj_weight")
            weight.copy_(torch.tensor(ours.parameters[f"{name}.weight"].T))
        theirs.in_proj_bias.copy_(
            torch.tensor(np.concatenate([ours.parameters[f"{name}.bias"] for name in ("query", "key", "value")]))
        )
        theirs.out_proj.weight.copy_(torch.tensor(ours.parameters["output.weight"].T))
        theirs.out_proj.bias.copy_(torch.tensor(ours.parameters["output.bias"]))
    arrays = normal(3, 4, 6), normal(3, 5, 3), normal(3, 5, 7)
    mask = RNG.uniform(size=(3, 4, 5)) < 0.6
    mask[..., 1] = True
    dy = normal(3, 4, 6)
    y, dx, gradients = ours((*arrays, mask), dy)
    tensors = [leaf(array) for array in arrays]
    hidden = ~torch.tensor(mask).repeat_interleave(2, dim=0)
    want, _ = theirs(*tensors, attn_mask=hidden, need_weights=False)
    want.backward(torch.tensor(dy))
    close(y, want.detach().numpy())
    assert dx[3] is None
    for mine, tensor in zip(dx[:3], tensors, strict=True):
        close(mine, tensor.grad.numpy())
    close(gradients["key.weight"], theirs.k_proj_weight.grad.numpy().T)
    close(gradients["value.weight"], theirs.v_proj_weight.grad.numpy().T)
    # numbers other than 0 mean True, and a mask may have an axis for the heads
    numbers = np.where(mask, 2.0, 0.0)
    close(ours((*arrays, numbers), dy)[0], y)
    close(ours((*arrays, np.repeat(numbers[:, None], 2, axis=1)), dy)[0], y)


@pytest.mark.parametrize("rotary", [False, True])
def test_grouped_attention_layer(rotary):
    ours = Layer(
        xpnn.MultiHeadAttention(
            4, head_size=6, key_value_heads=2, causal=True, rotary=rotary, rotary_base=100.0, bias=False, output=3
        ),
        (5, 8),
    )
    x, dy = normal(2, 5, 8), normal(2, 5, 3)
    y, dx, gradients = ours(x, dy)
    tensor, p = leaf(x), {name: leaf(value) for name, value in ours.parameters.items()}

    def turned(x):
        if not rotary:
            return x
        angles = torch.outer(torch.arange(5.0).double(), 100.0 ** (-torch.arange(3.0).double() / 3))[:, None, :]
        a, b = x[..., :3], x[..., 3:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

    query = turned((tensor @ p["query.weight"]).reshape(2, 5, 4, 6))
    key = turned((tensor @ p["key.weight"]).reshape(2, 5, 2, 6))
    value = (tensor @ p["value.weight"]).reshape(2, 5, 2, 6)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    heads = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    want = heads.transpose(1, 2).reshape(2, 5, 24) @ p["output.weight"]
    want.backward(torch.tensor(dy))
    close(y, want.detach().numpy())
    close(dx, tensor.grad.numpy())
    assert set(gradients) == set(p)
    for name, gradient in gradients.items():
        close(gradient, p[name].grad.numpy(), name)


NORMS = ["attention_norm", "feed_forward_norm"]


def copy_block(theirs, parameters, names):
    """Put a block's parameters into PyTorch's layer; `names` are ours of their norms 1, 2, ..."""
    copy_attention(theirs.self_attn, parameters, "attention.")
    with torch.no_grad():
        for ours, linear in (("expand", theirs.linear1), ("contract", theirs.linear2)):
            linear.weight.copy_(torch.tensor(parameters[f"feed_forward.{ours}.weight"].T))
            linear.bias.copy_(torch.tensor(parameters[f"feed_forward.{ours}.bias"]))
        for number, name in enumerate(names, start=1):
            norm = getattr(theirs, f"norm{number}")
            norm.weight.copy_(torch.tensor(parameters[f"{name}.weight"]))
            norm.bias.copy_(torch.tensor(parameters[f"{name}.bias"]))


def compare_block(theirs, gradients, names):
    compare_attention(theirs.self_attn, gradients, "attention.")
    for ours, linear in (("expand", theirs.linear1), ("contract", theirs.linear2)):
        close(gradients[f"feed_forward.{ours}.weight"], linear.weight.grad.numpy().T, ours)
        close(gradients[f"feed_forward.{ours}.bias"], linear.bias.grad.numpy(), ours)
    for number, name in enumerate(names, start=1):
        norm = getattr(theirs, f"norm{number}")
        close(gradients[f"{name}.weight"], norm.weight.grad.numpy(), name)
        close(gradients[f"{name}.bias"], norm.bias.grad.numpy(), name)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_encoder_block(batch, activation, norm_first, causal):
    ours = Layer(xpnn.TransformerEncoderBlock(2, 7, 0.0, activation, norm_first, causal), (5, 6))
    theirs = torch.nn.TransformerEncoderLayer(
        6, 2, 7, 0.0, activation, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    copy_block(theirs, ours.parameters, NORMS)
    x, dy = normal(batch, 5, 6), normal(batch, 5, 6)
    mask = np.arange(5)[None, :] < np.array([4, 2, 5])[:batch, None]
    y, dx, gradients = ours(x, dy, mask)
    tensor = leaf(x)
    hidden = ~torch.ones((5, 5), dtype=torch.bool).tril() if causal else None
    want = theirs(tensor, src_mask=hidden, src_key_padding_mask=~torch.tensor(mask))
    want.backward(torch.tensor(dy))
    close(y, want.detach().numpy())
    close(dx, tensor.grad.numpy())
    compare_block(theirs, gradients, NORMS)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("return_memory", [True, False])
def test_decoder_block(norm_first, masked, return_memory):
    norms = ["attention_norm", "cross_attention_norm", "feed_forward_norm"]
    shapes = ((5, 6), (4, 6), *(((4,),) if masked else ()))
    layer = xpnn.TransformerDecoderBlock(3, 7, 0.0, "relu", norm_first, return_memory=return_memory)
    ours = Layer(layer, *shapes)
    theirs = torch.nn.TransformerDecoderLayer(
        6, 3, 7, 0.0, "relu", batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    copy_block(theirs, ours.parameters, norms)
    copy_attention(theirs.multihead_attn, ours.parameters, "cross_attention.")
    x, memory, dy = normal(2, 5, 6), normal(2, 4, 6), normal(2, 5, 6)
    mask = (np.array([[True, True, False, False], [True, False, True, True]]),) if masked else ()
    dmemory_behind = normal(2, 4, 6) if return_memory else np.zeros((2, 4, 6))
    given = (dy, dmemory_behind, *([None] if masked else [])) if return_memory else dy
    y, (dx, dmemory, *nothing), gradients = ours((x, memory, *mask), given)
    if return_memory:
        assert y[1] is memory
        y = y[0]
    tensors = leaf(x), leaf(memory)
    want = theirs(
        *tensors,
        tgt_mask=~torch.ones((5, 5), dtype=torch.bool).tril(),
        memory_key_padding_mask=~torch.tensor(mask[0]) if masked else None,
    )
    (torch.sum(want * torch.tensor(dy)) + torch.sum(tensors[1] * torch.tensor(dmemory_behind))).backward()
    close(y, want.detach().numpy())
    close(dx, tensors[0].grad.numpy())
    close(dmemory, tensors[1].grad.numpy())
    assert nothing == [None] * masked
    compare_block(theirs, gradients, norms)
    compare_attention(theirs.multihead_attn, gradients, "cross_attention.")
