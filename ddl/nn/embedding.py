"""Embeddings: a vector for each token, and one for each place in a sequence.

kernels/rowwise.py adds up the gradients of tokens that occur more than once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Literal

import numpy as np

from ddl.arrays import Array, Views, namespace_of
from ddl.errors import ConfigError, DataError
from ddl.kernels.rowwise import scatter_add, sum_rows, take_rows
from ddl.kernels.sparse_rows import TouchedRows
from ddl.nn.context import Context
from ddl.nn.initial import normal
from ddl.nn.layer import Backward, Shape, Spec, contiguous


@dataclass(frozen=True)
class Embedding:
    """Whole-number tokens (...) -> (..., width): the row of ``weight`` of each.

    padding: the token that fills short sequences (None: there is none). Layers after this one then leave its places
    out: recurrent layers keep their state, attention does not look there, TokenMean does not count them."""

    tokens: int
    width: int
    padding: int | None = None

    def spec(self, shape: Shape) -> Spec:
        weight = ((self.tokens, self.width), normal(self.width**-0.5))
        return Spec((*shape, self.width), {"weight": weight}, by_rows=("weight",))

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        weight = params["weight"]
        if x.dtype.kind not in "iu":
            raise DataError(f"an embedding takes whole-number tokens, got {x.dtype}")
        if x.size and (int(x.min()) < 0 or int(x.max()) >= self.tokens):
            raise DataError(
                f"tokens from {int(x.min())} to {int(x.max())} where the embedding has 0 to {self.tokens - 1}"
            )
        y = ctx.empty((*x.shape, self.width), weight.dtype)
        take_rows(weight, x, y)
        ctx.mask = None if self.padding is None else x != self.padding
        return y, x

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        rows = contiguous(cache).reshape(-1)
        scatter_add(contiguous(dy).reshape(-1, self.width), rows, grads.clear("weight"))
        yield (TouchedRows("weight", rows),)
        return None


@dataclass(frozen=True)
class WithCategories:
    """(inputs,) -> (inputs + columns * width,): x, and the vectors of the sample's categories, which are whole numbers
    below ``tokens`` in the field "categories", (columns,), beside x."""

    tokens: int
    columns: int
    width: int

    @property
    def _embedding(self) -> Embedding:
        return Embedding(self.tokens, self.width)

    def spec(self, shape: Shape) -> Spec:
        if len(shape) != 1:
            raise ConfigError(f"WithCategories needs samples of (inputs,), got {shape}")
        inner = self._embedding.spec((self.columns,))
        return Spec((shape[0] + self.columns * self.width,), inner.params, by_rows=inner.by_rows)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        if ctx.categories is None:
            raise DataError("the samples lack the field 'categories', which the model was made for")
        vectors, kept = self._embedding.forward(params, ctx.categories, ctx)
        y = ctx.empty((len(x), x.shape[1] + self.columns * self.width), x.dtype)
        y[:, : x.shape[1]] = x
        y[:, x.shape[1] :] = vectors.reshape(len(x), -1)
        return y, (kept, x.shape[1], ctx.wants_gradient_of(x))

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        kept, inputs, wanted = cache
        yield from self._embedding.backward(params, grads, kept, contiguous(dy[:, inputs:]))
        return contiguous(dy[:, :inputs]) if wanted else None


@lru_cache(maxsize=8)
def _waves(time: int, width: int) -> np.ndarray:
    """(time, width): sines in even columns and cosines in odd ones, wavelengths from 2 pi to 10000 * 2 pi."""
    rates = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angles = np.arange(time)[:, None] * rates
    return np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles))


@dataclass(frozen=True)
class PositionalEmbedding:
    """Adds a vector to each position of (time, width): learned, or sines of the position (no parameters)."""

    kind: Literal["learned", "sinusoidal"] = "learned"

    def __post_init__(self) -> None:
        if self.kind not in ("learned", "sinusoidal"):
            raise ConfigError(f"kind = {self.kind!r} is unknown; known are learned, sinusoidal")

    def spec(self, shape: Shape) -> Spec:
        if len(shape) != 2:
            raise ConfigError(f"PositionalEmbedding needs samples of (time, width), got {shape}")
        return Spec(shape, {"weight": (shape, normal(0.02))} if self.kind == "learned" else {})

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        """x may be shorter than the samples that the layer was made for."""
        xp, time = namespace_of(x), x.shape[1]
        if self.kind == "learned":
            table = params["weight"][:time]
        else:
            table = xp.asarray(_waves(time, x.shape[2]).astype(x.dtype))
        y = ctx.empty(x.shape, x.dtype)
        xp.add(x, table, out=y)
        return y, None

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        if self.kind == "learned":
            grads["weight"][dy.shape[1] :] = 0
            sum_rows(dy.reshape(len(dy), prod(dy.shape[1:])), grads["weight"][: dy.shape[1]].reshape(-1))
            yield ("weight",)
        return dy
