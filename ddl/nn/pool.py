"""Pooling: the largest or the mean value of windows of an image, the mean over all places or all tokens.

The arithmetic of windows is in kernels/im2col.py."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ddl.arrays import Array, Views, namespace_of
from ddl.errors import ConfigError
from ddl.kernels.im2col import Pair, col2im, im2col, max_pool, max_pool_backward
from ddl.nn.context import Context
from ddl.nn.conv import check_image, pair, places
from ddl.nn.layer import Backward, Shape, Spec, contiguous, wide


@dataclass(frozen=True)
class MaxPool2D:
    """The largest value of each window; of equals the first gets the gradient. stride: None is the window's size."""

    size: int | Pair = 2
    stride: int | Pair | None = None
    padding: int | Pair = 0

    def _numbers(self) -> tuple[Pair, Pair, Pair]:
        return pair(self.size), pair(self.size if self.stride is None else self.stride), pair(self.padding)

    def spec(self, shape: Shape) -> Spec:
        size, stride, padding = self._numbers()
        if any(2 * p > k for p, k in zip(padding, size)):
            raise ConfigError(f"MaxPool2D: padding = {padding} must be at most half of size = {size}")
        return Spec((*places(check_image(shape, "MaxPool2D"), size, stride, padding, "MaxPool2D"), shape[2]))

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        size, stride, padding = self._numbers()
        fit = places(x.shape[1:3], size, stride, padding, "MaxPool2D")
        y = ctx.empty((len(x), *fit, x.shape[3]), x.dtype)
        where = ctx.empty(y.shape, np.int16 if prod(size) <= 32767 else np.int32)
        max_pool(contiguous(x), y, where, size, stride, padding)
        return y, (ctx, x.shape, where)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, shape, where = cache
        dx = ctx.empty(shape, dy.dtype)
        max_pool_backward(contiguous(dy), where, dx, *self._numbers())
        yield from ()
        return dx


@dataclass(frozen=True)
class AvgPool2D:
    """The mean of each window. stride: None is the window's size."""

    size: int | Pair = 2
    stride: int | Pair | None = None

    def _numbers(self) -> tuple[Pair, Pair]:
        return pair(self.size), pair(self.size if self.stride is None else self.stride)

    def spec(self, shape: Shape) -> Spec:
        size, stride = self._numbers()
        return Spec((*places(check_image(shape, "AvgPool2D"), size, stride, (0, 0), "AvgPool2D"), shape[2]))

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        size, stride = self._numbers()
        fit = places(x.shape[1:3], size, stride, (0, 0), "AvgPool2D")
        cols = ctx.empty((len(x), *fit, *size, x.shape[3]), x.dtype)
        im2col(contiguous(x), cols, stride, (0, 0))
        y = ctx.empty((len(x), *fit, x.shape[3]), x.dtype)
        y[...] = cols.mean(axis=(3, 4), dtype=wide(x))
        return y, (ctx, x.shape, cols.shape)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, shape, windows = cache
        size, stride = self._numbers()
        dy *= dy.dtype.type(1 / prod(size))
        cols = ctx.empty(windows, dy.dtype)
        cols[...] = dy[:, :, :, None, None, :]
        dx = ctx.empty(shape, dy.dtype)
        col2im(cols, dx, stride, (0, 0))
        yield from ()
        return dx


@dataclass(frozen=True)
class GlobalAvgPool:
    """(..., channels) -> (channels,): the mean over all places."""

    def spec(self, shape: Shape) -> Spec:
        if len(shape) < 2:
            raise ConfigError(f"GlobalAvgPool needs samples of (..., channels), got {shape}")
        return Spec(shape[-1:])

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        flat = x.reshape(len(x), prod(x.shape[1:-1]), x.shape[-1])
        y = ctx.empty((len(x), x.shape[-1]), x.dtype)
        y[...] = flat.mean(axis=1, dtype=wide(x))
        ctx.mask = None
        return y, (ctx, x.shape)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, shape = cache
        dx = ctx.empty((shape[0], prod(shape[1:-1]), shape[-1]), dy.dtype)
        dx[...] = (dy * dy.dtype.type(1 / prod(shape[1:-1])))[:, None]
        yield from ()
        return dx.reshape(shape)


@dataclass(frozen=True)
class TokenMean:
    """(time, channels) -> (channels,): the mean over the tokens that are not padding; 0 where all are."""

    def spec(self, shape: Shape) -> Spec:
        if len(shape) != 2:
            raise ConfigError(f"TokenMean needs samples of (time, channels), got {shape}")
        return Spec(shape[1:])

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        xp = namespace_of(x)
        # A product of each sample's shares (1, time) with its tokens (time, channels).
        shares = ctx.empty((len(x), 1, x.shape[1]), x.dtype)
        if ctx.mask is None:
            shares[...] = 1 / x.shape[1]
        else:
            shares[:, 0] = ctx.mask
            shares /= xp.maximum(shares.sum(axis=2, keepdims=True, dtype=wide(x)), 1)
        y = ctx.empty((len(x), 1, x.shape[2]), x.dtype)
        xp.matmul(shares, x, out=y)
        ctx.mask = None
        return y[:, 0], (ctx, x.shape, shares)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, shape, shares = cache
        dx = ctx.empty(shape, dy.dtype)
        namespace_of(dy).multiply(shares[:, 0, :, None], dy[:, None, :], out=dx)
        yield from ()
        return dx
