"""The dense layer: every output sees every input, along the last axis.

Its optional activation is in activation.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddl.arrays import Array, Views, namespace_of
from ddl.errors import ConfigError
from ddl.nn.activation import FUSED, check_fused, finish, finish_backward, finish_gelu, finish_gelu_backward
from ddl.nn.context import Context
from ddl.nn.initial import initialiser, zeros
from ddl.nn.layer import Backward, Shape, Spec, contiguous


@dataclass(frozen=True)
class Dense:
    """(..., inputs) -> (..., units): activation(x @ weight + bias).

    activation: linear, relu, tanh, sigmoid or gelu. initial: name of an initialiser; "auto" is he for relu, else
    glorot."""

    units: int
    activation: str = "linear"
    bias: bool = True
    initial: str = "auto"

    def __post_init__(self) -> None:
        check_fused(self.activation, (*FUSED, "gelu"))

    def spec(self, shape: Shape) -> Spec:
        if not shape:
            raise ConfigError("a dense layer needs samples with at least one axis")
        name = self.initial if self.initial != "auto" else ("he" if self.activation == "relu" else "glorot")
        params: dict[str, Any] = {"weight": ((shape[-1], self.units), initialiser(name))}
        if self.bias:
            params["bias"] = ((self.units,), zeros)
        return Spec((*shape[:-1], self.units), params)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        rows = contiguous(x).reshape(-1, x.shape[-1])
        y = ctx.empty((len(rows), self.units), params["weight"].dtype)
        namespace_of(x).matmul(rows, params["weight"], out=y)
        bias, known = params["bias"] if self.bias else None, y
        if self.activation == "gelu":
            known = finish_gelu(y, bias, ctx)
        else:
            finish(y, bias, self.activation)
        return y.reshape(*x.shape[:-1], self.units), (ctx, rows, x.shape, known, ctx.wants_gradient_of(x))

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, rows, shape, known, wanted = cache
        xp, dbias = namespace_of(dy), grads["bias"] if self.bias else None
        dy = contiguous(dy).reshape(known.shape)
        if self.activation == "gelu":
            finish_gelu_backward(dy, known, dbias, ctx)
        else:
            finish_backward(dy, known, dbias, self.activation, ctx)
        xp.matmul(rows.T, dy, out=grads["weight"])
        yield ("bias", "weight") if self.bias else ("weight",)
        if not wanted:
            return None
        dx = ctx.empty(rows.shape, dy.dtype)
        xp.matmul(dy, params["weight"].T, out=dx)
        return dx.reshape(shape)
