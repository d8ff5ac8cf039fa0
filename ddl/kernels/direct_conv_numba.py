# mypy: disable-error-code="untyped-decorator,no-untyped-def,call-overload"
"""Numba kernels of direct_conv.py: eight output positions, or nine numbers of the weight, are summed in registers.

Units must be a multiple of the vector length (simd.py), and an output needs at least eight positions."""

from __future__ import annotations

import numpy as np
from numba import njit

from ddl.kernels.backend import LINE
from ddl.kernels.simd import load, multiply_add, nothing, spread, store

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**_options)
def _places(size, stride, padding, image, places):
    """Where in a bordered image each window begins, and where in it its numbers lie; and the border's image."""
    channels = image[2]
    height, width = image[0] + 2 * padding[0], image[1] + 2 * padding[1]
    starts = np.empty(places[0] * places[1], np.int64)
    for i in range(places[0]):
        for j in range(places[1]):
            starts[i * places[1] + j] = (i * stride[0] * width + j * stride[1]) * channels
    numbers = np.empty(size[0] * size[1] * channels, np.int64)
    run = size[1] * channels
    for k in range(numbers.size):
        numbers[k] = k // run * width * channels + k % run
    return starts, numbers, np.zeros((height, width * channels))


@njit(**_options)
def _fill(bordered, pixels, padding, channels):
    left = padding[1] * channels
    for i in range(pixels.shape[0]):
        bordered[padding[0] + i, left : left + pixels.shape[1]] = pixels[i]


@njit(**_options)
def convolve(x, weight, y, stride, padding):
    batch, height, width, channels = x.shape
    size_y, size_x, _, units = weight.shape
    _, rows, columns, _ = y.shape
    starts, numbers, border = _places((size_y, size_x), stride, padding, (height, width, channels), (rows, columns))
    bordered = border.astype(x.dtype)
    image, w = bordered.reshape(-1), weight.reshape(-1)
    pixels, out = x.reshape(batch, height, width * channels), y.reshape(batch, rows * columns * units)
    for n in range(batch):
        _fill(bordered, pixels[n], padding, channels)
        to = out[n]
        for group in range((starts.size + 7) // 8):
            q = min(8 * group, starts.size - 8)  # the last eight may be computed twice
            s0, s1, s2, s3 = starts[q], starts[q + 1], starts[q + 2], starts[q + 3]
            s4, s5, s6, s7 = starts[q + 4], starts[q + 5], starts[q + 6], starts[q + 7]
            for c in range(0, units, LINE // x.itemsize):
                t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = nothing(x)
                for k in range(numbers.size):
                    at, value = numbers[k], load(w, k * units + c)
                    t0 = multiply_add(spread(image, s0 + at), value, t0)
                    t1 = multiply_add(spread(image, s1 + at), value, t1)
                    t2 = multiply_add(spread(image, s2 + at), value, t2)
                    t3 = multiply_add(spread(image, s3 + at), value, t3)
                    t4 = multiply_add(spread(image, s4 + at), value, t4)
                    t5 = multiply_add(spread(image, s5 + at), value, t5)
                    t6 = multiply_add(spread(image, s6 + at), value, t6)
                    t7 = multiply_add(spread(image, s7 + at), value, t7)
                p = q * units + c
                store(to, p, t0)
                store(to, p + units, t1)
                store(to, p + 2 * units, t2)
                store(to, p + 3 * units, t3)
                store(to, p + 4 * units, t4)
                store(to, p + 5 * units, t5)
                store(to, p + 6 * units, t6)
                store(to, p + 7 * units, t7)


@njit(**_options)
def convolve_backward(x, dy, dweight, stride, padding):
    batch, height, width, channels = x.shape
    size_y, size_x, _, units = dweight.shape
    _, rows, columns, _ = dy.shape
    starts, numbers, border = _places((size_y, size_x), stride, padding, (height, width, channels), (rows, columns))
    bordered = border.astype(x.dtype)
    image, total = bordered.reshape(-1), dweight.reshape(-1)
    pixels, slopes = x.reshape(batch, height, width * channels), dy.reshape(batch, rows * columns * units)
    where = np.zeros(9, np.int64)
    for n in range(batch):
        _fill(bordered, pixels[n], padding, channels)
        slope = slopes[n]
        for low in range(0, numbers.size, 9):
            # Where fewer than nine are left the others are summed for nothing.
            for k in range(9):
                where[k] = numbers[min(low + k, numbers.size - 1)]
            k0, k1, k2, k3, k4 = where[0], where[1], where[2], where[3], where[4]
            k5, k6, k7, k8 = where[5], where[6], where[7], where[8]
            for c in range(0, units, LINE // x.itemsize):
                t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = t8 = nothing(x)
                for q in range(starts.size):
                    at, value = starts[q], load(slope, q * units + c)
                    t0 = multiply_add(spread(image, at + k0), value, t0)
                    t1 = multiply_add(spread(image, at + k1), value, t1)
                    t2 = multiply_add(spread(image, at + k2), value, t2)
                    t3 = multiply_add(spread(image, at + k3), value, t3)
                    t4 = multiply_add(spread(image, at + k4), value, t4)
                    t5 = multiply_add(spread(image, at + k5), value, t5)
                    t6 = multiply_add(spread(image, at + k6), value, t6)
                    t7 = multiply_add(spread(image, at + k7), value, t7)
                    t8 = multiply_add(spread(image, at + k8), value, t8)
                last = min(9, numbers.size - low)
                for k, found in enumerate((t0, t1, t2, t3, t4, t5, t6, t7, t8)):
                    if k < last:
                        p = (low + k) * units + c
                        store(total, p, load(total, p) + found)
