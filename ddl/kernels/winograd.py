"""Winograd convolution for 3 x 3 windows: 16 products give 4 positions of the output, where im2col needs 36.

The image is cut into tiles of 4 x 4 that overlap by 2, one for each 2 x 2 places of the output. A tile d becomes
B' d B, the weights w become G w G'; their products m, one for each of the 16 numbers, become the output A' m A. Each
step is linear, so backward is the three adjoints. (Lavin and Gray, Fast algorithms for convolutional neural networks.)

Tiles are (16, at least batch * tiles down * tiles across, channels). nn/conv_algorithms.py uses them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ddl.arrays.namespace import Array, namespace_of
from ddl.kernels.backend import kernel

Pair = tuple[int, int]

B = np.array([[1, 0, 0, 0], [0, 1, -1, 1], [-1, 1, 1, 0], [0, 0, 0, -1]])
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
A = np.array([[1, 0], [1, 1], [1, -1], [0, -1]])


def tiles_of(places: Pair) -> Pair:
    """How many tiles make ``places`` of the output."""
    return -(-places[0] // 2), -(-places[1] // 2)


@lru_cache(maxsize=2)
def _weights(dtype: np.dtype) -> np.ndarray:
    return np.kron(G, G).astype(dtype)


def spread_weights(weight: Array, spread: Array) -> None:
    """spread (16, inputs, units) = G weight G', of weight (3, 3, inputs, units)."""
    xp = namespace_of(weight)
    xp.matmul(xp.asarray(_weights(weight.dtype)), weight.reshape(9, -1), out=spread.reshape(16, -1))


def gather_weights(spread: Array, weight: Array) -> None:
    """The adjoint: weight (3, 3, inputs, units) = G' spread G."""
    xp = namespace_of(weight)
    xp.matmul(xp.asarray(_weights(weight.dtype)).T, spread.reshape(16, -1), out=weight.reshape(9, -1))


def _bordered(x: Array, down: int, across: int, padding: Pair) -> Array:
    """x in the middle of zeros, as large as the tiles."""
    found = namespace_of(x).zeros((len(x), 2 * down + 2, 2 * across + 2, x.shape[3]), x.dtype)
    found[:, padding[0] : padding[0] + x.shape[1], padding[1] : padding[1] + x.shape[2]] = x
    return found


def _grid(tiles: Array, batch: int, down: int, across: int) -> Array:
    """tiles as (4, 4, batch, down, across, channels), a view."""
    found = tiles[:, : batch * down * across]
    return found.reshape(4, 4, batch, down, across, tiles.shape[2])


@kernel
def spread_image(x: Array, tiles: Array, places: Pair, padding: Pair) -> None:
    """tiles = B' d B for each tile d of x (batch, height, width, channels); padding is 0."""
    down, across = tiles_of(places)
    image, grid = _bordered(x, down, across, padding), _grid(tiles, len(x), down, across)
    grid[...] = 0
    for i, j, a, b in np.ndindex(4, 4, 4, 4):
        factor = int(B[i, a] * B[j, b])
        if factor:
            grid[a, b] += factor * image[:, i : i + 2 * down : 2, j : j + 2 * across : 2]


@kernel
def gather_image(tiles: Array, x: Array, places: Pair, padding: Pair) -> None:
    """The adjoint of spread_image: x = the tiles B t B' added up where they came from."""
    down, across = tiles_of(places)
    grid = _grid(tiles, len(x), down, across)
    image = namespace_of(x).zeros((len(x), 2 * down + 2, 2 * across + 2, x.shape[3]), x.dtype)
    for i, j, a, b in np.ndindex(4, 4, 4, 4):
        factor = int(B[i, a] * B[j, b])
        if factor:
            image[:, i : i + 2 * down : 2, j : j + 2 * across : 2] += factor * grid[a, b]
    x[...] = image[:, padding[0] : padding[0] + x.shape[1], padding[1] : padding[1] + x.shape[2]]


@kernel
def gather_places(tiles: Array, y: Array) -> None:
    """y (batch, rows, columns, units) = A' m A for each m of ``tiles``; what lies beyond its edges is left out."""
    down, across = tiles_of(y.shape[1:3])
    grid = _grid(tiles, len(y), down, across)
    y[...] = 0
    for i, j, a, b in np.ndindex(4, 4, 2, 2):
        factor, out = int(A[i, a] * A[j, b]), y[:, a::2, b::2]
        if factor:
            out += factor * grid[i, j][:, : out.shape[1], : out.shape[2]]


@kernel
def spread_places(dy: Array, tiles: Array) -> None:
    """The adjoint of gather_places: tiles = A dy A'."""
    down, across = tiles_of(dy.shape[1:3])
    grid = _grid(tiles, len(dy), down, across)
    grid[...] = 0
    for i, j, a, b in np.ndindex(4, 4, 2, 2):
        factor, slope = int(A[i, a] * A[j, b]), dy[:, a::2, b::2]
        if factor:
            grid[i, j][:, : slope.shape[1], : slope.shape[2]] += factor * slope
