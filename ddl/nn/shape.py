"""Layers that only rearrange (Flatten, Reshape), and Residual, which adds its input to the output of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from ddl.arrays import Array, Views, namespace_of
from ddl.errors import ConfigError
from ddl.nn.context import Context
from ddl.nn.layer import Backward, Layer, Sequential, Shape, Spec


@dataclass(frozen=True)
class Reshape:
    """Samples of another shape with the same number of values; one axis may be -1."""

    shape: Shape

    def spec(self, shape: Shape) -> Spec:
        return Spec(self._target(shape))

    def _target(self, shape: Shape) -> Shape:
        wanted = tuple(self.shape)
        if wanted.count(-1) == 1:
            rest = -prod(wanted)
            wanted = tuple(prod(shape) // max(rest, 1) if n == -1 else n for n in wanted)
        if prod(wanted) != prod(shape):
            raise ConfigError(f"samples of shape {shape} cannot be reshaped to {tuple(self.shape)}")
        return wanted

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        y = x.reshape(len(x), *self._target(x.shape[1:]))
        if x is ctx.data:
            ctx.data = y
        ctx.mask = None
        return y, x.shape

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        yield from ()
        return dy.reshape(cache)


@dataclass(frozen=True)
class Flatten(Reshape):
    """All axes of a sample in one."""

    shape: Shape = (-1,)


class Residual:
    """x + layers(x). Layers are named as in Sequential; their output has the shape of their input."""

    def __init__(self, *layers: Layer, **named: Layer):
        self.body = Sequential(*layers, **named)

    def __repr__(self) -> str:
        return repr(self.body).replace("Sequential", "Residual", 1)

    def spec(self, shape: Shape) -> Spec:
        spec = self.body.spec(shape)
        if spec.output != shape:
            raise ConfigError(f"a residual needs layers that keep the shape {shape}, these make it {spec.output}")
        return spec

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        inner, cache = self.body.forward(params, x, ctx)
        y = ctx.empty(inner.shape, inner.dtype)
        namespace_of(inner).add(x, inner, out=y)
        return y, (ctx, cache)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, inner = cache
        # The layers may overwrite the gradient they are given.
        copy = ctx.empty(dy.shape, dy.dtype)
        copy[...] = dy
        dx = yield from self.body.backward(params, grads, inner, copy)
        if dx is None:
            return None
        dx += dy
        return dx
