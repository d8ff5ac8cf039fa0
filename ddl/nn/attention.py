"""Multi-head self-attention over sequences (batch, time, width).

The masked softmax is in kernels/rowwise.py, the layers around attention in models/transformer.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ddl.arrays import Array, Views, namespace_of, partition
from ddl.errors import ConfigError
from ddl.kernels.rowwise import masked_softmax, softmax_backward, sum_rows
from ddl.nn.context import Context
from ddl.nn.initial import glorot, zeros
from ddl.nn.layer import Backward, Shape, Spec, contiguous, wide

CAUSAL_RUN = 64  # places: shorter runs spare more products and make each of them slower


def _three(shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Queries, keys and values drawn as three square matrices."""
    return np.concatenate([glorot((shape[0], shape[0]), random) for _ in range(3)], axis=1)


@lru_cache(maxsize=8)
def _turns(time: int, pairs: int) -> np.ndarray:
    """(time, 1, pairs) complex, of length 1: by how much each pair of a head's values is turned at each place."""
    rates = 10000.0 ** (-np.arange(pairs) / pairs)
    return np.exp(1j * np.arange(time)[:, None, None] * rates)


@dataclass(frozen=True)
class MultiHeadAttention:
    """Each place gathers the values of other places, weighted by how its query meets their keys.

    causal: a place sees itself and earlier ones only. Places that the context's mask calls padding are not seen.
    rotary: queries and keys are turned by angles that grow with their places, so that how they meet depends on how far
    apart they stand, and no other embedding of places is needed.
    weight: (width, 3 * width) for queries, keys, values; output_weight: (width, width)."""

    heads: int
    causal: bool = False
    rotary: bool = False

    def spec(self, shape: Shape) -> Spec:
        if len(shape) != 2 or shape[1] % self.heads:
            raise ConfigError(f"attention with {self.heads} heads cannot take samples of (time, width) = {shape}")
        width = shape[1]
        if self.rotary and width // self.heads % 2:
            raise ConfigError(f"rotary attention turns pairs of values: {width} / {self.heads} heads must be even")
        params: dict[str, Any] = {
            "weight": ((width, 3 * width), _three),
            "bias": ((3 * width,), zeros),
            "output_weight": ((width, width), glorot),
            "output_bias": ((width,), zeros),
        }
        return Spec(shape, params)

    def _heads(self, projected: Array, batch: int, time: int) -> tuple[Array, Array, Array]:
        """Queries, keys, values as views (batch, heads, time, width / heads)."""
        parts = projected.reshape(batch, time, 3, self.heads, projected.shape[1] // (3 * self.heads)).transpose(
            2, 0, 3, 1, 4
        )
        return parts[0], parts[1], parts[2]

    def _turn(self, projected: Array, batch: int, time: int, back: bool = False) -> None:
        """Turn queries and keys by their places, in place; ``back`` undoes it, and so turns their gradients."""
        if not self.rotary:
            return
        values = projected.astype(wide(projected), copy=False)  # complex numbers of two float16 do not exist
        pairs = values.view(np.result_type(values.dtype, np.complex64))
        pairs = pairs.reshape(batch, time, 3 * self.heads, pairs.shape[1] // (3 * self.heads))
        turns = _turns(time, pairs.shape[-1])
        queries_and_keys = pairs[:, :, : 2 * self.heads]
        queries_and_keys *= namespace_of(projected).asarray((turns.conj() if back else turns).astype(pairs.dtype))
        if values is not projected:
            projected[...] = values

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        xp, dtype = namespace_of(x), params["weight"].dtype
        batch, time, width = x.shape
        rows = contiguous(x).reshape(-1, width)
        projected = ctx.empty((len(rows), 3 * width), dtype)
        xp.matmul(rows, params["weight"], out=projected)
        projected += params["bias"]
        self._turn(projected, batch, time)
        queries, keys, values = self._heads(projected, batch, time)
        shares = ctx.empty((batch, self.heads, time, time), dtype)
        mask = xp.zeros((0, 0), bool) if ctx.mask is None else contiguous(ctx.mask)
        gathered = ctx.empty((batch, time, self.heads, width // self.heads), dtype)
        by_head = gathered.transpose(0, 2, 1, 3)
        cuts = self._cuts(time)
        for at, seen in cuts:
            xp.matmul(queries[:, :, at], keys[:, :, seen].swapaxes(2, 3), out=shares[:, :, at, seen])
            shares[:, :, at, seen.stop :] = 0
        masked_softmax(shares, mask, self._scale(width), self.causal)
        for at, seen in cuts:
            xp.matmul(shares[:, :, at, seen], values[:, :, seen], out=by_head[:, :, at])
        gathered = gathered.reshape(-1, width)
        y = ctx.empty((len(rows), width), dtype)
        xp.matmul(gathered, params["output_weight"], out=y)
        y += params["output_bias"]
        return y.reshape(x.shape), (ctx, rows, projected, shares, gathered, x.shape)

    def _cuts(self, time: int) -> list[tuple[slice, slice]]:
        """Runs of places, and the places that they see: causal ones need no product with what comes after them."""
        runs = partition(time, max(1, time // CAUSAL_RUN)) if self.causal else [slice(0, time)]
        return [(run, slice(0, run.stop)) for run in runs]

    def _scale(self, width: int) -> float:
        return float((width // self.heads) ** -0.5)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, rows, projected, shares, gathered, (batch, time, width) = cache
        xp = namespace_of(dy)
        dy = contiguous(dy).reshape(-1, width)
        xp.matmul(gathered.T, dy, out=grads["output_weight"])
        sum_rows(dy, grads["output_bias"])
        yield "output_weight", "output_bias"
        dx = ctx.empty(rows.shape, dy.dtype)
        with ctx.frame():
            dprojected = ctx.empty(projected.shape, dy.dtype)
            dgathered = ctx.empty((batch, time, self.heads, width // self.heads), dy.dtype)
            xp.matmul(dy, params["output_weight"].T, out=dgathered.reshape(-1, width))
            self._gathered_backward(projected, dprojected, shares, dgathered.transpose(0, 2, 1, 3), ctx)
            self._turn(dprojected, batch, time, back=True)
            xp.matmul(rows.T, dprojected, out=grads["weight"])
            sum_rows(dprojected, grads["bias"])
            xp.matmul(dprojected, params["weight"].T, out=dx)
        yield "weight", "bias"
        return dx.reshape(batch, time, width)

    def _gathered_backward(
        self, projected: Array, dprojected: Array, shares: Array, slopes: Array, ctx: Context
    ) -> None:
        """dprojected from the slopes (batch, heads, time, width / heads) of what was gathered."""
        xp = namespace_of(slopes)
        batch, _, time, each = slopes.shape
        queries, keys, values = self._heads(projected, batch, time)
        dqueries, dkeys, dvalues = self._heads(dprojected, batch, time)
        # Who is seen by a run of places, and who sees it.
        cuts = [(at, seen, slice(at.start if self.causal else 0, time)) for at, seen in self._cuts(time)]
        dshares = ctx.empty(shares.shape, slopes.dtype)
        for at, seen, after in cuts:
            xp.matmul(shares[:, :, after, at].swapaxes(2, 3), slopes[:, :, after], out=dvalues[:, :, at])
            xp.matmul(slopes[:, :, at], values[:, :, seen].swapaxes(2, 3), out=dshares[:, :, at, seen])
            dshares[:, :, at, seen.stop :] = 0
        softmax_backward(dshares, shares, self._scale(each * self.heads))
        for at, seen, after in cuts:
            xp.matmul(dshares[:, :, at, seen], keys[:, :, seen], out=dqueries[:, :, at])
            xp.matmul(dshares[:, :, after, at].swapaxes(2, 3), queries[:, :, after], out=dkeys[:, :, at])
