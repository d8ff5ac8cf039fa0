"""Activations, as separate layers and in the form that Dense and Conv2D apply together with the bias.

ReLU and GELU are computed in kernels/rowwise.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ddl.arrays import Array, Views, namespace_of
from ddl.errors import ConfigError
from ddl.kernels.rowwise import (
    bias_gelu,
    bias_relu,
    gelu,
    relu_backward,
    relu_bias_backward,
    slope_bias_backward,
    softmax_backward,
    sum_rows,
)
from ddl.nn.context import Context
from ddl.nn.layer import Backward, Shape, Spec, contiguous, wide

FUSED = ("linear", "relu", "tanh", "sigmoid")


def check_fused(activation: str, known: Sequence[str] = FUSED) -> None:
    """Raises ConfigError for what cannot be fused with a bias."""
    if activation not in known:
        raise ConfigError(f"activation = {activation!r} is unknown; known are {', '.join(known)}")


def finish(y: Array, bias: Array | None, activation: str) -> None:
    """y = activation(y + bias) in place; y: (rows, units)."""
    if activation == "relu" and bias is not None:
        bias_relu(y, bias)
        return
    if bias is not None:
        y += bias
    _apply(y, y, activation)


def finish_backward(dy: Array, y: Array, dbias: Array | None, activation: str, ctx: Context) -> None:
    """Turn dy, in place, into the gradient before the activation, and write that of the bias."""
    if activation == "relu" and dbias is not None:
        relu_bias_backward(dy, y, dbias)
        return
    _apply_backward(dy, y, activation, ctx)
    if dbias is not None:
        sum_rows(dy, dbias)


def finish_gelu(y: Array, bias: Array | None, ctx: Context) -> Array:
    """``finish`` for GELU. Returns the slope, which cannot be computed from the output."""
    slope = ctx.empty(y.shape, y.dtype)
    if bias is None:
        bias = ctx.empty(y.shape[1:], y.dtype)
        bias[...] = 0
    bias_gelu(y, bias, slope)
    return slope


def finish_gelu_backward(dy: Array, slope: Array, dbias: Array | None, ctx: Context) -> None:
    slope_bias_backward(dy, slope, ctx.empty(dy.shape[1:], dy.dtype) if dbias is None else dbias)


def _apply(x: Array, out: Array, activation: str) -> None:
    xp = namespace_of(x)
    if activation == "relu":
        xp.maximum(x, 0, out=out)
    elif activation == "tanh":
        xp.tanh(x, out=out)
    elif activation == "sigmoid":
        # By tanh, which cannot overflow.
        xp.multiply(x, 0.5, out=out)
        xp.tanh(out, out=out)
        out *= 0.5
        out += 0.5


def _apply_backward(dy: Array, y: Array, activation: str, ctx: Context) -> None:
    """dy times the slope, which all of these know from their output y."""
    xp = namespace_of(dy)
    if activation == "relu":
        relu_backward(dy, y)
    elif activation in ("tanh", "sigmoid"):
        slope = ctx.empty(y.shape, y.dtype)
        if activation == "tanh":
            xp.multiply(y, y, out=slope)
        else:
            dy *= y
            slope[...] = y
        xp.subtract(1, slope, out=slope)
        dy *= slope


class _Elementwise:
    """A layer without parameters whose slope is known from its output."""

    kind = "linear"

    def spec(self, shape: Shape) -> Spec:
        return Spec(shape)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        y = ctx.empty(x.shape, x.dtype)
        _apply(x, y, self.kind)
        return y, (ctx, y)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, y = cache
        dy = contiguous(dy)
        _apply_backward(dy, y, self.kind, ctx)
        yield from ()
        return dy


@dataclass(frozen=True)
class ReLU(_Elementwise):
    """max(x, 0)."""

    kind = "relu"


@dataclass(frozen=True)
class Tanh(_Elementwise):
    """The hyperbolic tangent."""

    kind = "tanh"


@dataclass(frozen=True)
class Sigmoid(_Elementwise):
    """1 / (1 + exp(-x))."""

    kind = "sigmoid"


@dataclass(frozen=True)
class LeakyReLU:
    """x where it is positive, else slope * x."""

    slope: float = 0.01

    def spec(self, shape: Shape) -> Spec:
        return Spec(shape)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        xp = namespace_of(x)
        slope = ctx.empty(x.shape, x.dtype)
        slope[...] = self.slope
        positive = ctx.empty(x.shape, bool)
        xp.greater(x, 0, out=positive)
        xp.copyto(slope, 1, where=positive)
        y = ctx.empty(x.shape, x.dtype)
        xp.multiply(x, slope, out=y)
        return y, slope

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        dy *= cache
        yield from ()
        return dy


@dataclass(frozen=True)
class GELU:
    """x times the normal distribution function of x, in its tanh form."""

    def spec(self, shape: Shape) -> Spec:
        return Spec(shape)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        y, slope = ctx.empty(x.shape, x.dtype), ctx.empty(x.shape, x.dtype)
        gelu(contiguous(x), y, slope)
        return y, slope

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        dy *= cache
        yield from ()
        return dy


@dataclass(frozen=True)
class Softmax:
    """exp(x) / sum(exp(x)) over the last axis. For a loss on classes use logits and ``CrossEntropy`` instead."""

    def spec(self, shape: Shape) -> Spec:
        return Spec(shape)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        xp = namespace_of(x)
        y = ctx.empty(x.shape, x.dtype)
        xp.subtract(x, x.max(axis=-1, keepdims=True), out=y)
        xp.exp(y, out=y)
        y /= y.sum(axis=-1, keepdims=True, dtype=wide(y))
        return y, y

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        dy = contiguous(dy)
        softmax_backward(dy, cache, 1.0)
        yield from ()
        return dy


@dataclass(frozen=True)
class Scale:
    """Times a fixed number."""

    factor: float

    def spec(self, shape: Shape) -> Spec:
        return Spec(shape)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        y = ctx.empty(x.shape, x.dtype)
        namespace_of(x).multiply(x, self.factor, out=y)
        return y, None

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        dy = contiguous(dy)
        dy *= self.factor
        yield from ()
        return dy
