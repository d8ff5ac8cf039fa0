"""Convolutions over images (batch, height, width, channels), with bias and activation.

The algorithms that multiply windows with weights are in conv_algorithms.py."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ddl.arrays import Array, Views, namespace_of
from ddl.errors import ConfigError
from ddl.kernels.im2col import Pair, col2im, im2col
from ddl.nn.activation import check_fused, finish, finish_backward
from ddl.nn.context import Context
from ddl.nn.conv_algorithms import choose
from ddl.nn.initial import initialiser, zeros
from ddl.nn.layer import Backward, Shape, Spec, check_units, contiguous, wide


def pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def places(image: Pair, size: Pair, stride: Pair, padding: Pair, what: str) -> Pair:
    """How many windows fit; raises ConfigError if none does."""
    fit = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(image, size, stride, padding))
    if min(fit) < 1 or any(n + 2 * p < k for n, k, p in zip(image, size, padding)):
        raise ConfigError(f"{what}: a window of {size} with padding {padding} does not fit an image of {image}")
    return fit[0], fit[1]


def check_image(shape: Shape, what: str) -> Pair:
    if len(shape) != 3:
        raise ConfigError(f"{what} needs samples of (height, width, channels), got {shape}")
    return shape[0], shape[1]


@dataclass(frozen=True)
class Conv2D:
    """(height, width, inputs) -> (rows, columns, units), with activation(windows @ weight + bias).

    size, stride, padding: a number or (vertical, horizontal); padding "same" keeps the size at stride 1 (odd sizes).
    groups: inputs and units are cut into so many groups that do not see each other.
    weight: (ky, kx, inputs / groups, units). activation: linear, relu, tanh or sigmoid."""

    units: int
    size: int | Pair = 3
    stride: int | Pair = 1
    padding: int | Pair | str = 0
    groups: int = 1
    activation: str = "linear"
    bias: bool = True
    initial: str = "auto"

    def __post_init__(self) -> None:
        check_fused(self.activation)
        check_units("Conv2D", units=self.units, groups=self.groups)
        check_units("Conv2D", size=min(pair(self.size)), stride=min(pair(self.stride)))
        if self.units % self.groups:
            raise ConfigError(f"Conv2D: {self.units} units cannot be cut into {self.groups} groups")
        if isinstance(self.padding, str):
            if self.padding != "same":
                raise ConfigError(f"Conv2D: padding = {self.padding!r} is unknown; known are same or numbers")
            if min(k % 2 for k in pair(self.size)) == 0:
                raise ConfigError(f"Conv2D: padding = 'same' needs an odd size, got {self.size}")

    def _numbers(self) -> tuple[Pair, Pair, Pair]:
        size = pair(self.size)
        padding = (size[0] // 2, size[1] // 2) if isinstance(self.padding, str) else pair(self.padding)
        return size, pair(self.stride), padding

    def spec(self, shape: Shape) -> Spec:
        image = check_image(shape, "Conv2D")
        size, stride, padding = self._numbers()
        fit = places(image, size, stride, padding, "Conv2D")
        if shape[2] % self.groups:
            raise ConfigError(f"Conv2D: {shape[2]} channels cannot be cut into {self.groups} groups")
        name = self.initial if self.initial != "auto" else ("he" if self.activation == "relu" else "glorot")
        params: dict[str, Any] = {"weight": ((*size, shape[2] // self.groups, self.units), initialiser(name))}
        if self.bias:
            params["bias"] = ((self.units,), zeros)
        return Spec((*fit, self.units), params)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        size, stride, padding = self._numbers()
        weight, bias = params["weight"], params["bias"] if self.bias else None
        fit = places(x.shape[1:3], size, stride, padding, "Conv2D")
        y = ctx.empty((len(x), *fit, self.units), weight.dtype)
        way = choose(weight, fit, stride, padding, self.groups)
        kept = way.forward(
            contiguous(x).astype(y.dtype, copy=False), weight, y, lambda rows: finish(rows, bias, self.activation), ctx
        )
        return y, (ctx, way, kept, x.shape, y, ctx.wants_gradient_of(x))

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, way, kept, shape, y, wanted = cache
        dy = contiguous(dy)
        # Each block of images adds its part of the bias gradient, so the sum needs more digits than a part.
        part = ctx.empty((self.units,), wide(dy)) if self.bias else None
        dbias = ctx.empty((self.units,), np.float64)
        dbias[...] = 0

        def undo(slopes: Array, rows: Array) -> None:
            finish_backward(slopes, rows, part, self.activation, ctx)
            if self.bias:
                dbias[...] += part

        dx = ctx.empty(shape, dy.dtype) if wanted else None
        way.backward(kept, y, dy, params["weight"], grads["weight"], dx, undo, ctx)
        if self.bias:
            grads["bias"][...] = dbias
        yield ("bias", "weight") if self.bias else ("weight",)
        return dx


@dataclass(frozen=True)
class ConvTranspose2D:
    """(height, width, inputs) -> larger (rows, columns, units): what backward of a Conv2D does to an image.

    rows = (height - 1) * stride - 2 * padding + size + extra. extra: rows and columns added at the far side, below
    stride. weight: (ky, kx, units, inputs)."""

    units: int
    size: int | Pair = 3
    stride: int | Pair = 1
    padding: int | Pair = 0
    extra: int | Pair = 0
    activation: str = "linear"
    bias: bool = True
    initial: str = "auto"

    def __post_init__(self) -> None:
        check_fused(self.activation)
        check_units("ConvTranspose2D", units=self.units, size=min(pair(self.size)), stride=min(pair(self.stride)))
        if any(e and e >= s for e, s in zip(pair(self.extra), pair(self.stride))):
            raise ConfigError(f"ConvTranspose2D: extra = {self.extra} must be below stride = {self.stride}")

    def _image(self, shape: Shape) -> Pair:
        size, stride, padding, extra = pair(self.size), pair(self.stride), pair(self.padding), pair(self.extra)
        rows, columns = ((shape[i] - 1) * stride[i] - 2 * padding[i] + size[i] + extra[i] for i in (0, 1))
        return rows, columns

    def spec(self, shape: Shape) -> Spec:
        check_image(shape, "ConvTranspose2D")
        image = self._image(shape)
        if min(image) < 1:
            raise ConfigError(f"ConvTranspose2D: an image of {shape[:2]} would become {image}")
        name = self.initial if self.initial != "auto" else "glorot"
        params: dict[str, Any] = {"weight": ((*pair(self.size), self.units, shape[2]), initialiser(name))}
        if self.bias:
            params["bias"] = ((self.units,), zeros)
        return Spec((*image, self.units), params)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        rows, columns = self._image(x.shape[1:3])
        flat = contiguous(x).reshape(-1, x.shape[3])
        weight = params["weight"].reshape(-1, x.shape[3])
        cols = ctx.empty((len(flat), len(weight)), weight.dtype)
        namespace_of(x).matmul(flat, weight.T, out=cols)
        y = ctx.empty((len(x), rows, columns, self.units), weight.dtype)
        col2im(cols.reshape(*x.shape[:3], *pair(self.size), self.units), y, pair(self.stride), pair(self.padding))
        finish(y.reshape(-1, self.units), params["bias"] if self.bias else None, self.activation)
        return y, (ctx, flat, x.shape, y, ctx.wants_gradient_of(x))

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, flat, shape, y, wanted = cache
        xp = namespace_of(dy)
        dy = contiguous(dy).reshape(-1, self.units)
        finish_backward(dy, y.reshape(dy.shape), grads["bias"] if self.bias else None, self.activation, ctx)
        cols = ctx.empty((*shape[:3], *pair(self.size), self.units), dy.dtype)
        im2col(dy.reshape(y.shape), cols, pair(self.stride), pair(self.padding))
        cols = cols.reshape(len(flat), prod(cols.shape[3:]))
        xp.matmul(cols.T, flat, out=grads["weight"].reshape(-1, shape[3]))
        yield ("bias", "weight") if self.bias else ("weight",)
        if not wanted:
            return None
        dx = ctx.empty(flat.shape, dy.dtype)
        xp.matmul(cols, params["weight"].reshape(-1, shape[3]), out=dx)
        return dx.reshape(shape)
