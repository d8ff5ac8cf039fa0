"""Three convolution algorithms, forward and backward, and the choice of one for a layer.

The arithmetic is in ddl/kernels (im2col.py, winograd.py, direct_conv.py); conv.py adds bias and activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from ddl.arrays import Array, namespace_of
from ddl.kernels import direct_conv, winograd
from ddl.kernels.backend import LINE, runs_compiled
from ddl.kernels.im2col import Pair, col2im, im2col
from ddl.nn.context import Context
from ddl.nn.layer import contiguous

BLOCK_BYTES = 1536 << 10  # of a few images at a time: smaller blocks stay nearer and cost more calls
FEWEST_TILES = 96  # of a product of Winograd's: with fewer, preparing the weights costs as much as the product
SHORT_WINDOW = 32  # numbers: gathering shorter windows costs more than their product
FEWEST_PLACES = 8  # that direct_conv.py computes at a time

Finish = Callable[[Array], None]  # on (rows, units) of the output, as soon as they are whole
Undo = Callable[[Array, Array], None]  # (dy, y): the same rows back


class ConvAlgorithm(Protocol):
    """x: (batch, height, width, inputs), contiguous. weight: (ky, kx, inputs / groups, units). y: (batch, rows,
    columns, units). ``finish`` and ``undo`` are called once for each row of y."""

    def forward(self, x: Array, weight: Array, y: Array, finish: Finish, ctx: Context) -> Any:
        """Write y; returns what backward needs."""
        ...

    def backward(
        self, kept: Any, y: Array, dy: Array, weight: Array, dweight: Array, dx: Array | None, undo: Undo, ctx: Context
    ) -> None:
        """Write dweight, and dx unless it is None; dy is overwritten."""
        ...


def choose(weight: Array, places: Pair, stride: Pair, padding: Pair, groups: int) -> ConvAlgorithm:
    """The fastest algorithm for these sizes. Im2col handles every case, the others need compiled loops."""
    size, inputs, units = weight.shape[:2], weight.shape[2], weight.shape[3]
    lanes = LINE // weight.dtype.itemsize
    if groups == 1 and units % lanes == 0 and runs_compiled(weight):
        if prod(size) * inputs <= SHORT_WINDOW and prod(places) >= FEWEST_PLACES:
            return DirectConvolution(stride, padding)
        tiles = prod(winograd.tiles_of(places))
        fewer = 16 * tiles <= 0.75 * 9 * prod(places)
        if size == (3, 3) and stride == (1, 1) and inputs % lanes == 0 and fewer:
            return Winograd(padding, tiles)
    return Im2col(stride, padding, groups)


def _blocks(count: int, length: int) -> Iterator[slice]:
    return (slice(start, min(start + length, count)) for start in range(0, count, length))


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class Im2col:
    """Gather all windows, then multiply them with the weight in one product."""

    stride: Pair
    padding: Pair
    groups: int

    def forward(self, x: Array, weight: Array, y: Array, finish: Finish, ctx: Context) -> Any:
        units, size = y.shape[3], weight.shape[:2]
        rows, kept = _rows(y), []
        for g in range(self.groups):
            part = contiguous(_group(x, g, self.groups))
            if size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0):
                cols = part
            else:
                cols = ctx.empty((*y.shape[:3], *size, part.shape[3]), weight.dtype)
                im2col(part, cols, self.stride, self.padding)
            kept.append(cols.reshape(len(rows), prod(size) * part.shape[3]))
            w = _group(weight, g, self.groups).reshape(-1, units // self.groups)
            if self.groups == 1:
                namespace_of(x).matmul(kept[0], w, out=rows)
            else:
                _group(rows, g, self.groups)[...] = kept[g] @ w
        finish(rows)
        return kept

    def backward(
        self, kept: Any, y: Array, dy: Array, weight: Array, dweight: Array, dx: Array | None, undo: Undo, ctx: Context
    ) -> None:
        xp, units, groups = namespace_of(dy), y.shape[3], self.groups
        rows = _rows(dy)
        undo(rows, _rows(y))
        for g in range(groups):
            if groups == 1:
                xp.matmul(kept[0].T, rows, out=dweight.reshape(-1, units))
            else:
                part = _group(dweight, g, groups)
                part[...] = (kept[g].T @ _group(rows, g, groups)).reshape(part.shape)
            if dx is None:
                continue
            w = _group(weight, g, groups).reshape(-1, units // groups)
            dcols = ctx.empty((len(rows), len(w)), dy.dtype)
            xp.matmul(_group(rows, g, groups), w.T, out=dcols)
            channels = dx.shape[3] // groups
            image = dx if groups == 1 else ctx.empty((*dx.shape[:3], channels), dy.dtype)
            col2im(dcols.reshape(*y.shape[:3], *weight.shape[:2], channels), image, self.stride, self.padding)
            if groups > 1:
                _group(dx, g, groups)[...] = image


def _group(x: Array, g: int, groups: int) -> Array:
    """The g-th of ``groups`` equal parts of the last axis."""
    width = x.shape[-1] // groups
    return x if groups == 1 else x[..., g * width : (g + 1) * width]


@dataclass(frozen=True)
class Winograd:
    """16 products for each 2 x 2 output positions, a few images at a time.

    tiles: per image. Backward spreads the image again, because reading a stored copy takes longer."""

    padding: Pair
    tiles: int

    def _scratch(self, batch: int, weight: Array, ctx: Context) -> tuple[int, Array, Array, Array]:
        """Images at a time, spread weights, tiles of images, tiles of places."""
        inputs, units = weight.shape[2:]
        each = 16 * self.tiles * (inputs + units) * weight.dtype.itemsize
        images = min(max(BLOCK_BYTES // each, -(-FEWEST_TILES // self.tiles), 1), max(batch, 1))
        # One extra tile keeps the stride from being a power of two: otherwise the 16 parts of a tile share cache sets.
        height = images * self.tiles + 1
        spread = ctx.empty((16, inputs, units), weight.dtype)
        winograd.spread_weights(weight, spread)
        return (
            images,
            spread,
            ctx.empty((16, height, inputs), weight.dtype),
            ctx.empty((16, height, units), weight.dtype),
        )

    def forward(self, x: Array, weight: Array, y: Array, finish: Finish, ctx: Context) -> Any:
        images, spread, seen, made = self._scratch(len(x), weight, ctx)
        for block in _blocks(len(x), images):
            height = (block.stop - block.start) * self.tiles
            winograd.spread_image(x[block], seen, y.shape[1:3], self.padding)
            namespace_of(x).matmul(seen[:, :height], spread, out=made[:, :height])
            winograd.gather_places(made, y[block])
            finish(_rows(y[block]))
        return x

    def backward(
        self, kept: Any, y: Array, dy: Array, weight: Array, dweight: Array, dx: Array | None, undo: Undo, ctx: Context
    ) -> None:
        xp, x = namespace_of(dy), kept
        images, spread, seen, made = self._scratch(len(x), weight, ctx)
        total, part = ctx.empty(spread.shape, dy.dtype), ctx.empty(spread.shape, dy.dtype)
        total[...] = 0
        turned = ctx.empty((16, *spread.shape[:0:-1]), dy.dtype)
        turned[...] = spread.swapaxes(1, 2)  # once: a product with a transposed view takes half as long again
        for block in _blocks(len(x), images):
            height = (block.stop - block.start) * self.tiles
            undo(_rows(dy[block]), _rows(y[block]))
            winograd.spread_places(dy[block], made)
            winograd.spread_image(x[block], seen, y.shape[1:3], self.padding)
            xp.matmul(seen[:, :height].swapaxes(1, 2), made[:, :height], out=part)
            total += part
            if dx is not None:
                xp.matmul(made[:, :height], turned, out=seen[:, :height])
                winograd.gather_image(seen, dx[block], y.shape[1:3], self.padding)
        winograd.gather_weights(total, dweight)


@dataclass(frozen=True)
class DirectConvolution:
    """Loop over the pixels without gathering windows, a few images at a time: for first layers, with few channels."""

    stride: Pair
    padding: Pair

    def _images(self, y: Array) -> int:
        return max(1, BLOCK_BYTES // max(2 * y[:1].nbytes, 1))

    def forward(self, x: Array, weight: Array, y: Array, finish: Finish, ctx: Context) -> Any:
        for block in _blocks(len(x), self._images(y)):
            direct_conv.convolve(x[block], weight, y[block], self.stride, self.padding)
            finish(_rows(y[block]))
        return x

    def backward(
        self, kept: Any, y: Array, dy: Array, weight: Array, dweight: Array, dx: Array | None, undo: Undo, ctx: Context
    ) -> None:
        x = kept
        dweight[...] = 0
        for block in _blocks(len(x), self._images(y)):
            undo(_rows(dy[block]), _rows(y[block]))
            direct_conv.convolve_backward(x[block], dy[block], dweight, self.stride, self.padding)
        if dx is not None:
            dcols = ctx.empty((*y.shape[:3], *weight.shape[:3]), dy.dtype)
            namespace_of(dy).matmul(_rows(dy), _rows(weight).T, out=dcols.reshape(-1, prod(weight.shape[:3])))
            col2im(dcols, dx, self.stride, self.padding)
