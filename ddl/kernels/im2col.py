"""Windows that slide over images: gathering them, adding them back, taking their maximum.

Images are (batch, height, width, channels). nn/conv.py and nn/pool.py use them."""

from __future__ import annotations

from collections.abc import Iterator

from ddl.arrays.namespace import Array, namespace_of
from ddl.kernels.backend import kernel

Pair = tuple[int, int]


def offsets(
    size: Pair, stride: Pair, padding: Pair, image: Pair, places: Pair
) -> Iterator[tuple[int, int, tuple, tuple]]:
    """For each place (ky, kx) in a window: the windows that meet the image there, and the pixels they meet.

    Yields (ky, kx, slices of windows, slices of pixels)."""
    for ky in range(size[0]):
        for kx in range(size[1]):
            rows, rows_in = _meet(ky - padding[0], stride[0], image[0], places[0])
            columns, columns_in = _meet(kx - padding[1], stride[1], image[1], places[1])
            yield ky, kx, (rows, columns), (rows_in, columns_in)


def _meet(shift: int, stride: int, length: int, places: int) -> tuple[slice, slice]:
    """The places p with 0 <= p * stride + shift < length, and those positions."""
    first = max(0, -(shift // stride))
    last = min(places, (length - 1 - shift) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    return slice(first, last), slice(first * stride + shift, (last - 1) * stride + shift + 1, stride)


@kernel
def im2col(x: Array, cols: Array, stride: Pair, padding: Pair) -> None:
    """Gather windows: cols (batch, rows, columns, ky, kx, channels) from x (batch, height, width, channels).

    What lies in the padding is 0."""
    _, rows, columns, ky, kx, _ = cols.shape
    if padding != (0, 0):
        cols[...] = 0
    for i, j, at, pixels in offsets((ky, kx), stride, padding, x.shape[1:3], (rows, columns)):
        cols[:, at[0], at[1], i, j] = x[:, pixels[0], pixels[1]]


@kernel(writes="x")
def col2im(cols: Array, x: Array, stride: Pair, padding: Pair) -> None:
    """Add windows up where they came from, the adjoint of im2col: x is overwritten."""
    _, rows, columns, ky, kx, _ = cols.shape
    x[...] = 0
    for i, j, at, pixels in offsets((ky, kx), stride, padding, x.shape[1:3], (rows, columns)):
        x[:, pixels[0], pixels[1]] += cols[:, at[0], at[1], i, j]


@kernel
def max_pool(x: Array, y: Array, where: Array, size: Pair, stride: Pair, padding: Pair) -> None:
    """The largest value y of each window of x, and its index ``where`` in the window: ky * size[1] + kx.

    The first of equal values wins; padding never does; NaN always does. y, where: (batch, rows, columns, channels), of
    which ``where`` is int16 or int32."""
    xp = namespace_of(x)
    y[...] = -xp.inf
    where[...] = -1
    for i, j, at, pixels in offsets(size, stride, padding, x.shape[1:3], y.shape[1:3]):
        here, best = x[:, pixels[0], pixels[1]], y[:, at[0], at[1]]
        wins = (here > best) | ((here != here) & (best == best)) | (where[:, at[0], at[1]] < 0)
        xp.copyto(best, here, where=wins)
        xp.copyto(where[:, at[0], at[1]], i * size[1] + j, where=wins)


@kernel(writes="dx")
def max_pool_backward(dy: Array, where: Array, dx: Array, size: Pair, stride: Pair, padding: Pair) -> None:
    """Add each dy to the pixel that won its window; dx is overwritten."""
    dx[...] = 0
    for i, j, at, pixels in offsets(size, stride, padding, dx.shape[1:3], dy.shape[1:3]):
        won = where[:, at[0], at[1]] == i * size[1] + j
        dx[:, pixels[0], pixels[1]] += dy[:, at[0], at[1]] * won
