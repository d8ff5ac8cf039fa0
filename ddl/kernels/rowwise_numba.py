# mypy: disable-error-code="untyped-decorator,no-untyped-def,call-overload"
"""The Numba implementations of rowwise.py.

Sums may be reordered, but no flag assumes that NaN or infinity cannot occur. Sums over rows are taken in blocks of ROWS
rows, which are added up in float64."""

from __future__ import annotations

import numpy as np
from numba import njit

from ddl.kernels.backend import LINE
from ddl.kernels.maths_numba import exp, tanh
from ddl.kernels.rowwise import GELU_CUBE, GELU_SLOPE, ROWS
from ddl.kernels.simd import above_zero, larger, largest, load, lowest, store

# Reordering a sum keeps NaN and infinity; "nnan" and "ninf" are what must never be added.
_options = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}


WHOLE = 64  # numbers that LLVM's loops take at a time


@njit(**_options)
def bias_relu(y, bias):
    rows, columns = y.shape
    for i in range(rows):
        row = y[i]
        for j in range(columns):
            value = row[j] + bias[j]
            row[j] = 0 if value < 0 else value


@njit(**_options)
def relu_backward(dy, y):
    slope, value = dy.reshape(dy.size), y.reshape(y.size)
    for i in range(slope.size):
        slope[i] = 0 if value[i] <= 0 else slope[i]


@njit(**_options)
def relu_bias_backward(dy, y, dbias):
    rows, columns = y.shape
    total, part = np.zeros(columns), np.empty(columns, dy.dtype)
    slopes, values = dy.reshape(dy.size), y.reshape(y.size)
    # A cache line holds one vector of columns, so each line is read once although columns are the outer loop.
    step = LINE // y.itemsize if columns % (LINE // y.itemsize) == 0 else columns
    for low in range(0, rows, ROWS):
        high = min(low + ROWS, rows)
        part[:] = 0
        if step == columns:
            for i in range(low, high):
                _relu_backward_row(dy[i], y[i], part)
        else:
            for c in range(0, columns, step):
                _relu_backward_vector(slopes, values, part, c, low, high)
        for j in range(columns):
            total[j] += part[j]
    for j in range(columns):
        dbias[j] = total[j]


@njit(inline="always")
def _relu_backward_row(slope, value, total):
    for j in range(total.size):
        kept = slope.dtype.type(0) if value[j] <= 0 else slope[j]
        slope[j] = kept
        total[j] += kept


@njit(**_options)
def _relu_backward_vector(dy, y, dbias, c, low, high):
    """Rows of images are short: a loop over each would cost more to start than to run."""
    columns, total = dbias.size, load(dbias, c)
    for at in range(low * columns + c, high * columns, columns):
        kept = above_zero(load(dy, at), load(y, at))
        store(dy, at, kept)
        total += kept
    store(dbias, c, total)


@njit(**_options)
def cross_entropy(logits, labels, weights, smoothing, gradient):
    rows, classes = logits.shape
    number = logits.dtype.type
    spread = number(smoothing / classes)
    loss = 0.0
    weight = 0.0
    for i in range(rows):
        row, out = logits[i], gradient[i]
        label = labels[i]
        if label < 0:
            for j in range(classes):
                out[j] = 0
            continue
        each = number(weights[label]) if len(weights) else number(1)
        top, largest = row[0], 0
        for j in range(1, classes):
            if row[j] > top:
                top, largest = row[j], j
        value = -number(1 - smoothing) * (row[label] - top)
        if smoothing > 0:
            mean = number(0)
            for j in range(classes):
                mean += row[j] - top
            value -= spread * mean
        for j in range(classes):
            out[j] = exp(row[j] - top)
        one, rest = out[largest], number(0)
        out[largest] = 0
        for j in range(classes):
            rest += out[j]
        out[largest] = one
        value += np.log1p(rest)
        scale = each / (one + rest)
        shift = spread * each
        for j in range(classes):
            out[j] = out[j] * scale - shift
        out[label] -= number(1 - smoothing) * each
        loss += float(value) * float(each)
        weight += float(each)
    return loss, weight


@njit(**_options)
def masked_softmax(scores, mask, scale, causal):
    batch, heads, queries, keys = scores.shape
    number = scores.dtype.type
    factor = number(scale)
    masked = len(mask) > 0
    for n in range(batch):
        for h in range(heads):
            for i in range(queries):
                row = scores[n, h, i]
                last = min(i + 1, keys) if causal else keys
                # What is hidden up to the next whole number of vectors is computed along: nothing is done one by one.
                edge = min((last + WHOLE - 1) // WHOLE * WHOLE, keys)
                for j in range(last, edge):
                    row[j] = -np.inf
                for j in range(last):
                    row[j] *= factor
                if masked:
                    for j in range(last):
                        row[j] = row[j] if mask[n, j] else -np.inf
                top = _largest(row, edge)
                if top == -np.inf:
                    top = number(0)
                for j in range(edge):
                    row[j] = exp(row[j] - top)
                total = number(0)
                for j in range(edge):
                    total += row[j]
                share = number(1) / total if total != 0 else number(0)
                for j in range(edge):
                    row[j] *= share
                for j in range(edge, keys):
                    row[j] = 0


@njit(inline="always")
def _largest(row, count):
    """Of the first ``count`` numbers, NaN passed over; a comparison of one after another would wait for each."""
    step = LINE // row.itemsize
    top = row.dtype.type(-np.inf)
    whole = count // step * step
    if whole:
        best = lowest(row)
        for j in range(0, whole, step):
            best = larger(best, load(row, j))
        top = largest(best)
    for j in range(whole, count):
        top = row[j] if row[j] > top else top
    return top


@njit(**_options)
def softmax_backward(dy, y, scale):
    columns = dy.shape[-1]
    rows = dy.size // max(columns, 1)
    slopes, values = dy.reshape(rows, columns), y.reshape(rows, columns)
    number = dy.dtype.type
    factor = number(scale)
    for i in range(rows):
        slope, value = slopes[i], values[i]
        along = number(0)
        for j in range(columns):
            along += slope[j] * value[j]
        for j in range(columns):
            slope[j] = factor * value[j] * (slope[j] - along)


@njit(**_options)
def layer_norm(x, weight, bias, eps, y, normal, inverse):
    rows, columns = x.shape
    number = x.dtype.type
    for i in range(rows):
        row, out, unit = x[i], y[i], normal[i]
        mean = number(0)
        for j in range(columns):
            mean += row[j]
        mean /= number(columns)
        square = number(0)
        for j in range(columns):
            away = row[j] - mean
            square += away * away
        scale = number(1) / np.sqrt(square / number(columns) + number(eps))
        inverse[i] = scale
        for j in range(columns):
            unit[j] = (row[j] - mean) * scale
            out[j] = unit[j] * weight[j] + bias[j]


@njit(**_options)
def layer_norm_backward(dy, normal, inverse, weight, dx, dweight, dbias):
    rows, columns = dy.shape
    number = dy.dtype.type
    totals, parts = np.zeros((2, columns)), np.zeros((2, columns), dy.dtype)
    of_weight, of_bias = parts[0], parts[1]
    for i in range(rows):
        slope, unit, out = dy[i], normal[i], dx[i]
        mean = number(0)
        along = number(0)
        for j in range(columns):
            scaled = slope[j] * weight[j]
            mean += scaled
            along += scaled * unit[j]
        mean /= number(columns)
        along /= number(columns)
        scale = inverse[i]
        for j in range(columns):
            out[j] = (slope[j] * weight[j] - mean - unit[j] * along) * scale
        for j in range(columns):
            of_weight[j] += slope[j] * unit[j]
            of_bias[j] += slope[j]
        if i % ROWS == ROWS - 1 or i == rows - 1:
            totals += parts
            parts[:] = 0
    dweight[:] = totals[0].astype(dy.dtype)
    dbias[:] = totals[1].astype(dy.dtype)


@njit(**_options)
def gelu(x, y, slope):
    values, out, slopes = x.reshape(x.size), y.reshape(y.size), slope.reshape(slope.size)
    for i in range(values.size):
        out[i], slopes[i] = _gelu(values[i], x.dtype.type)


@njit(inline="always")
def _gelu(v, number):
    half, one, three = number(0.5), number(1), number(3)
    outer, cube = number(GELU_SLOPE), number(GELU_CUBE)
    t = tanh(outer * (v + cube * v * v * v))
    return half * v * (one + t), half * (one + t) + half * v * (one - t * t) * outer * (one + three * cube * v * v)


@njit(**_options)
def bias_gelu(y, bias, slope):
    rows, columns = y.shape
    for i in range(rows):
        row, slopes = y[i], slope[i]
        for j in range(columns):
            row[j], slopes[j] = _gelu(row[j] + bias[j], y.dtype.type)


@njit(**_options)
def slope_bias_backward(dy, slope, dbias):
    rows, columns = dy.shape
    total, part = np.zeros(columns), np.zeros(columns, dy.dtype)
    for i in range(rows):
        row, slopes = dy[i], slope[i]
        for j in range(columns):
            value = row[j] * slopes[j]
            row[j] = value
            part[j] += value
        if i % ROWS == ROWS - 1 or i == rows - 1:
            total += part
            part[:] = 0
    dbias[:] = total.astype(dy.dtype)


@njit(**_options)
def scatter_add(dy, index, total):
    rows, columns = dy.shape
    for i in range(rows):
        to, source = total[index[i]], dy[i]
        for j in range(columns):
            to[j] += source[j]
