# mypy: disable-error-code="untyped-decorator,no-untyped-def,call-overload"
"""Numba kernels of im2col.py.

No fastmath: sums keep their order, and NaN propagates."""

from __future__ import annotations

import numpy as np
from numba import njit

from ddl.kernels.backend import LINE
from ddl.kernels.simd import load, load_whole, lowest, nothing, spread, store, store_whole, where_beaten, where_equal

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**_options)
def im2col(x, cols, stride, padding):
    batch, height, width, channels = x.shape
    _, rows, columns, size_y, size_x, _ = cols.shape
    run = size_x * channels
    pixels = x.reshape(batch, height, width * channels)
    flat = cols.reshape(batch, rows, columns, size_y, run)
    for n in range(batch):
        for i in range(rows):
            for j in range(columns):
                left = (j * stride[1] - padding[1]) * channels
                inside = left >= 0 and left + run <= width * channels
                for ky in range(size_y):
                    y = i * stride[0] - padding[0] + ky
                    to = flat[n, i, j, ky]
                    if y < 0 or y >= height:
                        for k in range(run):
                            to[k] = 0
                    elif inside:
                        source = pixels[n, y, left : left + run]
                        for k in range(run):
                            to[k] = source[k]
                    else:
                        for k in range(run):
                            at = left + k
                            to[k] = pixels[n, y, at] if 0 <= at < width * channels else 0


@njit(**_options)
def col2im(cols, x, stride, padding):
    batch, height, width, channels = x.shape
    _, rows, columns, size_y, size_x, _ = cols.shape
    run = size_x * channels
    pixels = x.reshape(batch, height, width * channels)
    flat = cols.reshape(batch, rows, columns, size_y, run)
    for n in range(batch):
        pixels[n] = 0
        for i in range(rows):
            for j in range(columns):
                left = (j * stride[1] - padding[1]) * channels
                first = max(0, -left)
                last = min(run, width * channels - left)
                if last <= first:
                    continue
                for ky in range(size_y):
                    y = i * stride[0] - padding[0] + ky
                    if y < 0 or y >= height:
                        continue
                    to = pixels[n, y, left + first : left + last]
                    source = flat[n, i, j, ky, first:last]
                    for k in range(last - first):
                        to[k] += source[k]


@njit(**_options)
def max_pool(x, y, where, size, stride, padding):
    batch, height, width, channels = x.shape
    _, rows, columns, _ = y.shape
    step = LINE // x.itemsize
    whole = channels // step * step
    numbers = np.arange(size[0] * size[1]).astype(x.dtype)
    pixels, out, places = x.reshape(-1), y.reshape(-1), where.reshape(-1)
    for n in range(batch):
        for i in range(rows):
            top = i * stride[0] - padding[0]
            for j in range(columns):
                left = j * stride[1] - padding[1]
                to = ((n * rows + i) * columns + j) * channels
                for c in range(0, whole, step):
                    best, place, is_first = lowest(x), nothing(x), True
                    for ky in range(max(0, -top), min(size[0], height - top)):
                        for kx in range(max(0, -left), min(size[1], width - left)):
                            at = ((n * height + top + ky) * width + left + kx) * channels + c
                            value, number = load(pixels, at), spread(numbers, ky * size[1] + kx)
                            place = number if is_first else where_beaten(best, value, number, place)
                            best = value if is_first else where_beaten(best, value, value, best)
                            is_first = False
                    store(out, to + c, best)
                    store_whole(places, to + c, place)
                for c in range(whole, channels):
                    out[to + c], places[to + c] = -np.inf, -1
                    for ky in range(max(0, -top), min(size[0], height - top)):
                        for kx in range(max(0, -left), min(size[1], width - left)):
                            value = pixels[((n * height + top + ky) * width + left + kx) * channels + c]
                            best = out[to + c]
                            if value > best or (value != value and best == best) or places[to + c] < 0:
                                out[to + c], places[to + c] = value, ky * size[1] + kx


@njit(**_options)
def max_pool_backward(dy, where, dx, size, stride, padding):
    batch, height, width, channels = dx.shape
    _, rows, columns, _ = dy.shape
    step = LINE // dx.itemsize
    whole = channels // step * step
    numbers = np.arange(size[0] * size[1]).astype(dx.dtype)
    pixels, slopes, places = dx.reshape(-1), dy.reshape(-1), where.reshape(-1)
    for n in range(batch):
        dx[n] = 0
        for i in range(rows):
            top = i * stride[0] - padding[0]
            for j in range(columns):
                left = j * stride[1] - padding[1]
                of = ((n * rows + i) * columns + j) * channels
                for c in range(0, whole, step):
                    place, slope = load_whole(places, of + c, dx), load(slopes, of + c)
                    for ky in range(max(0, -top), min(size[0], height - top)):
                        for kx in range(max(0, -left), min(size[1], width - left)):
                            at = ((n * height + top + ky) * width + left + kx) * channels + c
                            won = where_equal(place, spread(numbers, ky * size[1] + kx), slope)
                            store(pixels, at, load(pixels, at) + won)
                for c in range(whole, channels):
                    if places[of + c] >= 0:
                        ky, kx = divmod(places[of + c], size[1])
                        pixels[((n * height + top + ky) * width + left + kx) * channels + c] += slopes[of + c]
