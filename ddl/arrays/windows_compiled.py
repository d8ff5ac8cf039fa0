# mypy: disable-error-code="untyped-decorator,no-untyped-def,call-overload"
"""The compiled twins of windows.py.

Sums and comparisons keep their order and their NaN: no fastmath."""

from __future__ import annotations

import numpy as np
from numba import njit

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
    for n in range(batch):
        for i in range(rows):
            for j in range(columns):
                best = y[n, i, j]
                place = where[n, i, j]
                for c in range(channels):
                    best[c] = -np.inf
                    place[c] = -1
                for ky in range(size[0]):
                    row = i * stride[0] - padding[0] + ky
                    if row < 0 or row >= height:
                        continue
                    for kx in range(size[1]):
                        column = j * stride[1] - padding[1] + kx
                        if column < 0 or column >= width:
                            continue
                        here = x[n, row, column]
                        k = np.int16(ky * size[1] + kx)
                        for c in range(channels):
                            value = here[c]
                            wins = (value > best[c]) | ((value != value) & (best[c] == best[c])) | (place[c] < 0)
                            best[c] = value if wins else best[c]
                            place[c] = k if wins else place[c]


@njit(**_options)
def max_pool_backward(dy, where, dx, size, stride, padding):
    batch, height, width, channels = dx.shape
    _, rows, columns, _ = dy.shape
    nothing = dy.dtype.type(0)
    for n in range(batch):
        dx[n] = 0
        for i in range(rows):
            for j in range(columns):
                place, slope = where[n, i, j], dy[n, i, j]
                for ky in range(size[0]):
                    row = i * stride[0] - padding[0] + ky
                    if row < 0 or row >= height:
                        continue
                    for kx in range(size[1]):
                        column = j * stride[1] - padding[1] + kx
                        if column < 0 or column >= width:
                            continue
                        to = dx[n, row, column]
                        k = np.int16(ky * size[1] + kx)
                        # Adding nothing to the losers costs less than jumping to the winners.
                        for c in range(channels):
                            to[c] += slope[c] if place[c] == k else nothing
