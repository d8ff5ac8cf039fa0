"""Row-wise kernels, for which NumPy needs several passes: bias with ReLU or GELU, norms, softmax, scattered sums.

Arrays are contiguous (rows, columns) unless stated otherwise."""

from __future__ import annotations

import numpy as np

from ddl.arrays.namespace import Array, namespace_of
from ddl.kernels.backend import kernel

GELU_SLOPE = 0.7978845608028654  # sqrt(2 / pi)
GELU_CUBE = 0.044715
ROWS = 128  # that are added up in the arrays' own precision before their sum joins the sum of other rows


def sum_rows(x: Array, out: Array) -> None:
    """out (columns,) = the sum of the rows of x (rows, columns), in at least float32.

    Blocks of rows are summed, then the sums of the blocks: one running sum over 200,000 rows would lose digits."""
    dtype = np.promote_types(x.dtype, np.float32)
    while len(x) > ROWS:
        whole = len(x) // ROWS * ROWS
        blocks = x[:whole].reshape(-1, ROWS, x.shape[1]).sum(axis=1, dtype=dtype)
        blocks[-1] += x[whole:].sum(axis=0, dtype=dtype)
        x = blocks
    out[...] = x.sum(axis=0, dtype=dtype)


@kernel(writes="y")
def bias_relu(y: Array, bias: Array) -> None:
    """y = max(y + bias, 0) in place."""
    y += bias
    namespace_of(y).maximum(y, 0, out=y)


@kernel(writes="dy")
def relu_backward(dy: Array, y: Array) -> None:
    """dy = dy where y > 0, else 0; in place, any number of dimensions."""
    namespace_of(y).copyto(dy, 0, where=y <= 0)


@kernel(writes="dy dbias")
def relu_bias_backward(dy: Array, y: Array, dbias: Array) -> None:
    """relu_backward, then dbias = the sum of the rows of dy."""
    namespace_of(y).copyto(dy, 0, where=y <= 0)
    sum_rows(dy, dbias)


@kernel(writes="gradient")
def cross_entropy(
    logits: Array, labels: Array, weights: Array, smoothing: float, gradient: Array
) -> tuple[float, float]:
    """(sum of the loss, sum of the weights) of softmax cross-entropy; writes its gradient.

    labels: (rows,) integers, below 0 is padding. weights: (classes,), or (0,) for weight 1. A share of
    ``smoothing`` of each target is spread evenly over all classes; the row's weight is its label's."""
    xp = namespace_of(logits)
    rows, classes = logits.shape
    counted = labels >= 0
    at = xp.where(counted, labels, 0)
    each = weights[at] if len(weights) else xp.ones(rows, logits.dtype)
    each = xp.where(counted, each, 0).astype(logits.dtype)
    # The largest logit is subtracted first and its exp, 1, is kept out of the sum: neither large logits nor a loss
    # close to 0 cancel.
    line, largest = xp.arange(rows), logits.argmax(axis=1)
    xp.subtract(logits, logits[line, largest][:, None], out=gradient)
    loss = -(1 - smoothing) * gradient[line, at]
    if smoothing:
        loss -= smoothing * gradient.mean(axis=1)
    xp.exp(gradient, out=gradient)
    one = gradient[line, largest]
    gradient[line, largest] = 0
    rest = gradient.sum(axis=1)
    gradient[line, largest] = one
    loss += xp.log1p(rest)
    gradient /= (one + rest)[:, None]
    if smoothing:
        gradient -= smoothing / classes
    gradient[line, at] -= 1 - smoothing
    gradient *= each[:, None]
    gradient[~counted] = 0
    loss = xp.where(counted, loss * each, 0)
    return float(loss.sum(dtype="float64")), float(each.sum(dtype="float64"))


@kernel(writes="scores")
def masked_softmax(scores: Array, mask: Array, scale: float, causal: bool) -> None:
    """Softmax of scale * scores over the last axis, in place.

    scores: (batch, heads, queries, keys). mask: (batch, keys) booleans, or (0, 0) for none. causal: query i sees
    keys up to i. A query that may see no key gets zeros."""
    xp = namespace_of(scores)
    scores *= scale
    if len(mask) or causal:
        seen = xp.ones(scores.shape[-2:], bool)
        if causal:
            seen = xp.tril(seen)
        hidden = ~(seen[None, None] & mask[:, None, None, :]) if len(mask) else ~seen[None, None]
        xp.copyto(scores, -xp.inf, where=hidden)
        top = scores.max(axis=-1, keepdims=True)
        scores -= xp.where(xp.isneginf(top), 0, top)
    else:
        scores -= scores.max(axis=-1, keepdims=True)
    xp.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    scores /= xp.where(total == 0, 1, total)


@kernel(writes="dy")
def softmax_backward(dy: Array, y: Array, scale: float) -> None:
    """dy = scale * y * (dy - sum(dy * y)), in place, over the last axis; any number of dimensions."""
    xp = namespace_of(dy)
    dy -= xp.sum(dy * y, axis=-1, keepdims=True)
    dy *= y
    dy *= scale


@kernel(writes="y normal inverse")
def layer_norm(x: Array, weight: Array, bias: Array, eps: float, y: Array, normal: Array, inverse: Array) -> None:
    """y = normal * weight + bias, where normal is x with mean 0 and variance 1 in each row.

    inverse: (rows,), 1 / standard deviation."""
    xp = namespace_of(x)
    xp.subtract(x, x.mean(axis=1, keepdims=True), out=normal)
    inverse[...] = 1 / xp.sqrt(xp.square(normal).mean(axis=1) + eps)
    normal *= inverse[:, None]
    xp.multiply(normal, weight, out=y)
    y += bias


@kernel(writes="dx dweight dbias")
def layer_norm_backward(
    dy: Array, normal: Array, inverse: Array, weight: Array, dx: Array, dweight: Array, dbias: Array
) -> None:
    """Gradients of layer_norm; dweight and dbias are overwritten."""
    xp = namespace_of(dy)
    sum_rows(dy, dbias)
    sum_rows(dy * normal, dweight)
    xp.multiply(dy, weight, out=dx)
    mean = dx.mean(axis=1, keepdims=True)
    along = (dx * normal).mean(axis=1, keepdims=True)
    dx -= mean
    dx -= normal * along
    dx *= inverse[:, None]


@kernel(writes="y slope")
def gelu(x: Array, y: Array, slope: Array) -> None:
    """y = GELU(x) in its tanh form, and its slope; any number of dimensions, all of one shape. y may be x."""
    xp = namespace_of(x)
    t = xp.tanh(GELU_SLOPE * (x + GELU_CUBE * x * x * x))
    slope[...] = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GELU_SLOPE * (1 + 3 * GELU_CUBE * x * x)
    y[...] = 0.5 * x * (1 + t)


@kernel(writes="y slope")
def bias_gelu(y: Array, bias: Array, slope: Array) -> None:
    """y = GELU(y + bias) in place, and its slope."""
    y += bias
    gelu.plain(y, y, slope)  # type: ignore[attr-defined]


@kernel(writes="dy dbias")
def slope_bias_backward(dy: Array, slope: Array, dbias: Array) -> None:
    """dy *= slope, and dbias: the sum of its rows."""
    dy *= slope
    sum_rows(dy, dbias)


def take_rows(table: Array, index: Array, out: Array) -> None:
    """out[i] = table[index[i]]. table: (entries, columns), index: integers below entries, of any shape."""
    if namespace_of(table) is np:
        # Without a mode it would write into a buffer first, to leave out alone where an index is wrong.
        np.take(table, index, axis=0, out=out, mode="clip")
    else:
        table.take(index, axis=0, out=out)  # cupy knows no mode


@kernel(writes="total")
def scatter_add(dy: Array, index: Array, total: Array) -> None:
    """total[index[i]] += dy[i]. dy: (rows, columns), index: (rows,), total: (entries, columns)."""
    xp = namespace_of(dy)
    xp.add.at(total, index, dy)
