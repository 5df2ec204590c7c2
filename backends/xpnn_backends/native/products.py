"""Matrix products: by OpenBLAS, or for small ones by plain loops; with bias and activation on the way."""

# Operands are annotated in the specifications.

from numba import types
from numba.extending import overload, register_jitable

from xpnn_backends.native.activations import (
    gelu_and_slope,
    gelu_tanh_and_slope,
    rows_of_chunk,
    sigmoid_and_slope,
    silu_and_slope,
)
from xpnn_backends.native.elementary import tanh
from xpnn_backends.native.intrinsics import dgemm, sgemm
from xpnn_backends.native.registry import kernel, share


def scaled_gemm(like, address, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C = alpha op(A) op(B) + beta C by OpenBLAS's product for the dtype of `like`; a, b and c are addresses."""


@overload(scaled_gemm)
def _scaled_gemm(like, address, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    call = sgemm if like.dtype == types.float32 else dgemm
    real = like.dtype

    def product(like, address, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        call(address, transpose_a, transpose_b, m, n, k, real(alpha), a, lda, b, ldb, real(beta), c, ldc)

    return product


@register_jitable
def gemm(like, address, transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc):
    """C = op(A) op(B)."""
    scaled_gemm(like, address, transpose_a, transpose_b, m, n, k, 1.0, a, lda, b, ldb, 0.0, c, ldc)


@register_jitable
def block(rows, columns, part, parts):
    """(first row, last + 1, first column, last + 1) of the block that is this part's.

    The parts form the grid whose blocks have the shortest edges: what is read for a block is proportional to them. The
    edges lie on whole vectors.
    """
    down, shortest = 1, rows + columns
    for candidate in range(1, parts + 1):
        edges = rows // candidate + columns // (parts // candidate)
        if parts % candidate == 0 and edges < shortest:
            down, shortest = candidate, edges
    first_row, last_row = share(rows, part % down, down, 16)
    first_column, last_column = share(columns, part // down, parts // down, 16)
    return first_row, last_row, first_column, last_column


@register_jitable
def product_block(address, transpose_a, transpose_b, a, b, c, first_row, last_row, first_column, last_column):
    """c[rows, columns] = (op(a) op(b))[rows, columns], by OpenBLAS."""
    inner = a.shape[0] if transpose_a else a.shape[1]
    size = a.itemsize
    lda, ldb, ldc = a.shape[1], b.shape[1], c.shape[1]
    from_a = a.ctypes.data + size * (first_row if transpose_a else first_row * lda)
    from_b = b.ctypes.data + size * (first_column * ldb if transpose_b else first_column)
    to = c.ctypes.data + size * (first_row * ldc + first_column)
    gemm(
        c, address, transpose_a, transpose_b, last_row - first_row, last_column - first_column, inner,
        from_a, lda, from_b, ldb, to, ldc,
    )  # fmt: skip


@register_jitable
def small(m, n, k):
    """True for a product that plain loops make before OpenBLAS has begun."""
    return m * n * k <= 8192


@register_jitable
def narrow_product(transpose_a, transpose_b, a, b, c):
    """c = op(a) op(b), four rows of a column at a time: short rows fill no vector, and one sum waits for itself."""
    m, n = c.shape
    k = a.shape[0] if transpose_a else a.shape[1]
    zero = c.dtype.type(0)
    for j in range(n):
        for i in range(0, m, 4):
            # Beyond the last row, the last one is made again.
            p, q, r = min(i + 1, m - 1), min(i + 2, m - 1), min(i + 3, m - 1)
            first, second, third, fourth = zero, zero, zero, zero
            for t in range(k):
                factor = b[j, t] if transpose_b else b[t, j]
                if transpose_a:
                    first += a[t, i] * factor
                    second += a[t, p] * factor
                    third += a[t, q] * factor
                    fourth += a[t, r] * factor
                else:
                    first += a[i, t] * factor
                    second += a[p, t] * factor
                    third += a[q, t] * factor
                    fourth += a[r, t] * factor
            c[i, j], c[p, j], c[q, j], c[r, j] = first, second, third, fourth


@register_jitable
def small_product(transpose_a, transpose_b, a, b, c):
    """c = op(a) op(b) in loops over whole rows of c, each sum in order of k."""
    m, n = c.shape
    k = a.shape[0] if transpose_a else a.shape[1]
    zero = c.dtype.type(0)
    if n < 8 <= m:
        narrow_product(transpose_a, transpose_b, a, b, c)
        return
    for i in range(m):
        for j in range(n):
            c[i, j] = zero
        for t in range(k):
            factor = a[t, i] if transpose_a else a[i, t]
            if transpose_b:
                for j in range(n):
                    c[i, j] += factor * b[j, t]
            else:
                for j in range(n):
                    c[i, j] += factor * b[t, j]


@kernel("int int int T:2 T:2 T:2", parallel=True)
def product(part, parts, address, transpose_a, transpose_b, a, b, out):
    """out = op(a) op(b), op transposes or not."""
    if small(out.shape[0], out.shape[1], a.shape[0] if transpose_a else a.shape[1]):
        if part == 0:
            small_product(transpose_a, transpose_b, a, b, out)
        return
    first_row, last_row, first_column, last_column = block(out.shape[0], out.shape[1], part, parts)
    if first_row < last_row and first_column < last_column:
        product_block(address, transpose_a, transpose_b, a, b, out, first_row, last_row, first_column, last_column)


@register_jitable
def linear_block(part, parts, address, x, weight, y):
    """This part of y = x W; returns its block."""
    rows, columns = y.shape
    if small(rows, columns, x.shape[1]):
        if part == 0:
            small_product(0, 0, x, weight, y)
            return 0, rows, 0, columns
        return 0, 0, 0, 0
    first_row, last_row, first_column, last_column = block(rows, columns, part, parts)
    if first_row < last_row and first_column < last_column:
        product_block(address, 0, 0, x, weight, y, first_row, last_row, first_column, last_column)
    return first_row, last_row, first_column, last_column


@kernel("int T:2 T:2 T:1 T:2", parallel=True)
def linear(part, parts, address, x, weight, bias, y):
    """y = x W + b."""
    first_row, last_row, first_column, last_column = linear_block(part, parts, address, x, weight, y)
    if bias.size:
        offset = bias[first_column:last_column]
        for i in range(first_row, last_row):
            made = y[i, first_column:last_column]
            for j in range(made.size):
                made[j] += offset[j]


@kernel("int T:2 T:2 T:1 T:2", parallel=True)
def linear_relu(part, parts, address, x, weight, bias, y):
    """y = max(x W + b, 0); a NaN stays."""
    first_row, last_row, first_column, last_column = linear_block(part, parts, address, x, weight, y)
    offset = bias[first_column:last_column]
    zero = y.dtype.type(0)
    for i in range(first_row, last_row):
        made = y[i, first_column:last_column]
        if offset.size:
            for j in range(made.size):
                z = made[j] + offset[j]
                made[j] = zero if z < zero else z
        else:
            for j in range(made.size):
                made[j] = zero if made[j] < zero else made[j]


@register_jitable
def rows_at_a_time(rows, columns):
    """How many rows are worked on together; one, if only some of their columns are."""
    return rows_of_chunk(columns) if columns == rows.shape[1] else 1


@register_jitable
def add_bias(y, bias, first_row, last_row, first_column, last_column):
    """Add the bias to some rows and columns of y, and give these as one row: whole rows, or one."""
    offset = bias[first_column:last_column]
    if offset.size:
        for i in range(first_row, last_row):
            made = y[i, first_column:last_column]
            for j in range(made.size):
                made[j] += offset[j]
    width = y.shape[1]
    return y.reshape(y.size)[first_row * width + first_column : (last_row - 1) * width + last_column]


def _with_activation(name, activation):
    """The kernel of that name: y = activation(x W + b), some rows at a time, so that short ones fill vectors too."""

    def run(part, parts, address, x, weight, bias, y):
        first_row, last_row, first_column, last_column = linear_block(part, parts, address, x, weight, y)
        step = rows_at_a_time(y, last_column - first_column)
        for top in range(first_row, last_row, step):
            made = add_bias(y, bias, top, min(top + step, last_row), first_column, last_column)
            for j in range(made.size):
                made[j] = activation(made[j])

    run.__name__ = run.__qualname__ = name
    return kernel("int T:2 T:2 T:1 T:2", parallel=True)(run)


def _with_slope(name, value_and_slope):
    """The kernel of that name: y, slope = value_and_slope(x W + b), as `_with_activation`."""

    def run(part, parts, address, x, weight, bias, y, slope):
        first_row, last_row, first_column, last_column = linear_block(part, parts, address, x, weight, y)
        step, width = rows_at_a_time(y, last_column - first_column), y.shape[1]
        slopes, no_setting = slope.reshape(slope.size), y.dtype.type(0)
        for top in range(first_row, last_row, step):
            made = add_bias(y, bias, top, min(top + step, last_row), first_column, last_column)
            derivative = slopes[top * width + first_column :]
            for j in range(made.size):
                made[j], derivative[j] = value_and_slope(made[j], no_setting)

    run.__name__ = run.__qualname__ = name
    return kernel("int T:2 T:2 T:1 T:2 T:2", parallel=True)(run)


linear_tanh = _with_activation("linear_tanh", tanh)
linear_gelu = _with_slope("linear_gelu", gelu_and_slope)
linear_gelu_tanh = _with_slope("linear_gelu_tanh", gelu_tanh_and_slope)
linear_sigmoid = _with_slope("linear_sigmoid", sigmoid_and_slope)
linear_silu = _with_slope("linear_silu", silu_and_slope)


@kernel("T:2 T:1", parallel=True)
def bias_gradient(part, parts, dy, dbias):
    """dbias = the sum of the rows of dy."""
    first, last = share(dy.shape[1], part, parts, 16)
    sums = dbias[first:last]
    for j in range(sums.size):
        sums[j] = dy.dtype.type(0)
    for i in range(dy.shape[0]):
        given = dy[i, first:last]
        for j in range(sums.size):
            sums[j] += given[j]
