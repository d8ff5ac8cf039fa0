# mypy: disable-error-code="untyped-decorator,no-untyped-def,call-overload"
"""Numba kernels of winograd.py: one vector of channels of a tile at a time, in registers.

The number of channels must be a multiple of the vector length (simd.py)."""

from __future__ import annotations

import numpy as np
from numba import njit

from ddl.kernels.backend import LINE
from ddl.kernels.simd import load, nothing, store

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(inline="always")
def _spread4(a, b, c, d):
    return a - c, b + c, c - b, b - d


@njit(inline="always")
def _gather4(a, b, c, d, zero):
    return a, b - c + d, b + c - a, zero - d


@njit(inline="always")
def _gather2(a, b, c, d):
    return a + b + c, b - c - d


@njit(**_options)
def spread_image(x, tiles, places, padding):
    batch, height, width, channels = x.shape
    down, across = (places[0] + 1) // 2, (places[1] + 1) // 2
    row = (2 * across + 2) * channels
    bordered = np.zeros(((2 * down + 2), row), x.dtype)
    left, run = padding[1] * channels, width * channels
    image, pixels = bordered.reshape(-1), x.reshape(batch, height, width * channels)
    out, plane = tiles.reshape(-1), tiles.shape[1] * channels
    for n in range(batch):
        for i in range(height):
            bordered[padding[0] + i, left : left + run] = pixels[n, i]
        for i in range(down):
            for j in range(across):
                for c in range(0, channels, LINE // x.itemsize):
                    s = 2 * i * row + 2 * j * channels + c
                    t = ((n * down + i) * across + j) * channels + c
                    r1, r2, r3 = s + row, s + 2 * row, s + 3 * row
                    k1, k2, k3 = channels, 2 * channels, 3 * channels
                    a0, b0, c0, d0 = _spread4(load(image, s), load(image, r1), load(image, r2), load(image, r3))
                    a1, b1, c1, d1 = _spread4(
                        load(image, s + k1), load(image, r1 + k1), load(image, r2 + k1), load(image, r3 + k1)
                    )
                    a2, b2, c2, d2 = _spread4(
                        load(image, s + k2), load(image, r1 + k2), load(image, r2 + k2), load(image, r3 + k2)
                    )
                    a3, b3, c3, d3 = _spread4(
                        load(image, s + k3), load(image, r1 + k3), load(image, r2 + k3), load(image, r3 + k3)
                    )
                    _store4(out, t, plane, _spread4(a0, a1, a2, a3))
                    _store4(out, t + 4 * plane, plane, _spread4(b0, b1, b2, b3))
                    _store4(out, t + 8 * plane, plane, _spread4(c0, c1, c2, c3))
                    _store4(out, t + 12 * plane, plane, _spread4(d0, d1, d2, d3))


@njit(inline="always")
def _store4(x, at, step, values):
    store(x, at, values[0])
    store(x, at + step, values[1])
    store(x, at + 2 * step, values[2])
    store(x, at + 3 * step, values[3])


@njit(inline="always")
def _add4(x, at, step, values):
    store(x, at, load(x, at) + values[0])
    store(x, at + step, load(x, at + step) + values[1])
    store(x, at + 2 * step, load(x, at + 2 * step) + values[2])
    store(x, at + 3 * step, load(x, at + 3 * step) + values[3])


@njit(**_options)
def gather_image(tiles, x, places, padding):
    batch, height, width, channels = x.shape
    down, across = (places[0] + 1) // 2, (places[1] + 1) // 2
    row = (2 * across + 2) * channels
    bordered = np.empty((2 * down + 2, row), x.dtype)
    left, run = padding[1] * channels, width * channels
    image, pixels = bordered.reshape(-1), x.reshape(batch, height, width * channels)
    out, p = tiles.reshape(-1), tiles.shape[1] * channels
    zero = nothing(x)
    for n in range(batch):
        bordered[:] = 0
        for i in range(down):
            for j in range(across):
                for c in range(0, channels, LINE // x.itemsize):
                    s = 2 * i * row + 2 * j * channels + c
                    t = ((n * down + i) * across + j) * channels + c
                    a0, b0, c0, d0 = _gather4(
                        load(out, t), load(out, t + 4 * p), load(out, t + 8 * p), load(out, t + 12 * p), zero
                    )
                    t += p
                    a1, b1, c1, d1 = _gather4(
                        load(out, t), load(out, t + 4 * p), load(out, t + 8 * p), load(out, t + 12 * p), zero
                    )
                    t += p
                    a2, b2, c2, d2 = _gather4(
                        load(out, t), load(out, t + 4 * p), load(out, t + 8 * p), load(out, t + 12 * p), zero
                    )
                    t += p
                    a3, b3, c3, d3 = _gather4(
                        load(out, t), load(out, t + 4 * p), load(out, t + 8 * p), load(out, t + 12 * p), zero
                    )
                    _add4(image, s, channels, _gather4(a0, a1, a2, a3, zero))
                    _add4(image, s + row, channels, _gather4(b0, b1, b2, b3, zero))
                    _add4(image, s + 2 * row, channels, _gather4(c0, c1, c2, c3, zero))
                    _add4(image, s + 3 * row, channels, _gather4(d0, d1, d2, d3, zero))
        for i in range(height):
            pixels[n, i] = bordered[padding[0] + i, left : left + run]


@njit(**_options)
def gather_places(tiles, y):
    batch, rows, columns, units = y.shape
    down, across = (rows + 1) // 2, (columns + 1) // 2
    values, p = tiles.reshape(-1), tiles.shape[1] * units
    out, row = y.reshape(-1), columns * units
    for n in range(batch):
        for i in range(down):
            for j in range(across):
                for c in range(0, units, LINE // y.itemsize):
                    t = ((n * down + i) * across + j) * units + c
                    s = (n * rows + 2 * i) * row + 2 * j * units + c
                    a0, b0 = _gather2(
                        load(values, t), load(values, t + 4 * p), load(values, t + 8 * p), load(values, t + 12 * p)
                    )
                    t += p
                    a1, b1 = _gather2(
                        load(values, t), load(values, t + 4 * p), load(values, t + 8 * p), load(values, t + 12 * p)
                    )
                    t += p
                    a2, b2 = _gather2(
                        load(values, t), load(values, t + 4 * p), load(values, t + 8 * p), load(values, t + 12 * p)
                    )
                    t += p
                    a3, b3 = _gather2(
                        load(values, t), load(values, t + 4 * p), load(values, t + 8 * p), load(values, t + 12 * p)
                    )
                    near, far = _gather2(a0, a1, a2, a3)
                    below, across_below = _gather2(b0, b1, b2, b3)
                    is_right, is_low = 2 * j + 1 < columns, 2 * i + 1 < rows
                    store(out, s, near)
                    if is_right:
                        store(out, s + units, far)
                    if is_low:
                        store(out, s + row, below)
                    if is_right and is_low:
                        store(out, s + row + units, across_below)


@njit(inline="always")
def _spread2(a, b, zero):
    return a, a + b, a - b, zero - b


@njit(**_options)
def spread_places(dy, tiles):
    batch, rows, columns, units = dy.shape
    down, across = (rows + 1) // 2, (columns + 1) // 2
    out, p = tiles.reshape(-1), tiles.shape[1] * units
    slopes, row = dy.reshape(-1), columns * units
    zero = nothing(dy)
    for n in range(batch):
        for i in range(down):
            for j in range(across):
                for c in range(0, units, LINE // dy.itemsize):
                    t = ((n * down + i) * across + j) * units + c
                    s = (n * rows + 2 * i) * row + 2 * j * units + c
                    is_right, is_low = 2 * j + 1 < columns, 2 * i + 1 < rows
                    near = load(slopes, s)
                    far = load(slopes, s + units) if is_right else zero
                    below = load(slopes, s + row) if is_low else zero
                    across_below = load(slopes, s + row + units) if is_right and is_low else zero
                    a0, b0, c0, d0 = _spread2(near, below, zero)
                    a1, b1, c1, d1 = _spread2(far, across_below, zero)
                    _store4(out, t, p, _spread2(a0, a1, zero))
                    _store4(out, t + 4 * p, p, _spread2(b0, b1, zero))
                    _store4(out, t + 8 * p, p, _spread2(c0, c1, zero))
                    _store4(out, t + 12 * p, p, _spread2(d0, d1, zero))
