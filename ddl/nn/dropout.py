"""Dropout, drawn for each shard by its own generator (context.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddl.arrays import Array, Views, namespace_of
from ddl.errors import ConfigError
from ddl.nn.context import Context
from ddl.nn.layer import Backward, Shape, Spec


@dataclass(frozen=True)
class Dropout:
    """In training, each value is 0 with probability ``rate``, else divided by 1 - rate. In evaluation nothing."""

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ConfigError(f"dropout rate = {self.rate} must be at least 0 and below 1")

    def spec(self, shape: Shape) -> Spec:
        return Spec(shape)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        if not ctx.training or not self.rate:
            return x, None
        xp = namespace_of(x)
        draws = ctx.uniform(len(x), *x.shape[1:])
        kept = ctx.empty(x.shape, bool)
        xp.greater_equal(draws, self.rate, out=kept)
        factor = ctx.empty(x.shape, x.dtype)
        xp.multiply(kept, x.dtype.type(1 / (1 - self.rate)), out=factor)
        y = ctx.empty(x.shape, x.dtype)
        xp.multiply(x, factor, out=y)
        return y, factor

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        if cache is not None:
            dy *= cache
        yield from ()
        return dy
