"""Normalisation: BatchNorm by the statistics of each shard's samples (or of the whole batch), LayerNorm by each row's.

Running averages are applied in the commit, by train."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ddl.arrays import Array, Views, namespace_of
from ddl.kernels.rowwise import layer_norm, layer_norm_backward
from ddl.nn.context import Context
from ddl.nn.initial import ones, zeros
from ddl.nn.layer import Average, Backward, Shape, Spec, contiguous


@dataclass(frozen=True)
class BatchNorm:
    """Mean 0 and variance 1 of each channel, then times ``weight`` plus ``bias``.

    In training the statistics are those of each segment (a shard's samples), so they do not depend on the ranks;
    with sync they are those of all rows on all ranks, by ctx.sum_over_ranks. In evaluation they are the running
    averages. The average of the variance is of its unbiased estimate; a segment of one value per channel has none and
    leaves the average as it is."""

    momentum: float = 0.1
    eps: float = 1e-5
    sync: bool = False

    def spec(self, shape: Shape) -> Spec:
        channels = shape[-1:]
        return Spec(
            shape,
            {"weight": (channels, ones), "bias": (channels, zeros)},
            {
                "mean": Average(channels, 0.0, self.momentum),
                "variance": Average(channels, 1.0, self.momentum),
            },
            synchronised=self.sync,
        )

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        xp = namespace_of(x)
        x = contiguous(x)
        y = ctx.empty(x.shape, x.dtype)
        if not ctx.training:
            scale = params["weight"] / xp.sqrt(params["variance"] + self.eps)
            xp.multiply(x, scale, out=y)
            y += params["bias"] - params["mean"] * scale
            return y, None
        normal = ctx.empty(x.shape, x.dtype)
        parts = []
        for segment in [slice(0, len(x))] if self.sync else ctx.segments:
            rows = segment.stop - segment.start
            if not rows and not self.sync:
                continue
            from_x = x[segment].reshape(-1, x.shape[-1])
            unit = normal[segment].reshape(from_x.shape)
            count, mean, variance = self._centre(from_x, unit, ctx)
            inverse = 1 / xp.sqrt(variance + self.eps)
            unit *= inverse
            spread = variance * (count / (count - 1)) if count > 1 else params["variance"]
            parts.append((segment, rows, count, mean, spread, inverse))
        if sum(rows for _, rows, *_ in parts) != len(x):
            raise ValueError(f"segments do not cover {len(x)} rows: BatchNorm needs a batch's segments")
        xp.multiply(normal, params["weight"], out=y)
        y += params["bias"]
        return y, (ctx, normal, parts)

    def _centre(self, x: Array, out: Array, ctx: Context) -> tuple[float, Array, Array]:
        """out = x - mean. Returns the number of rows, mean and (biased) variance of each channel."""
        xp = namespace_of(x)
        square = ctx.empty(x.shape, x.dtype)
        count, total = float(len(x)), x.sum(axis=0)
        if self.sync:
            sums = ctx.sum_over_ranks(xp.concatenate([total.astype(np.float64), xp.asarray([count])]))
            count, total = max(float(sums[-1]), 1.0), sums[:-1].astype(x.dtype)
        mean = total / count
        xp.subtract(x, mean, out=out)
        xp.multiply(out, out, out=square)
        total = square.sum(axis=0)
        if self.sync:
            total = ctx.sum_over_ranks(total.astype(np.float64)).astype(x.dtype)
        return count, mean.astype(x.dtype), (total / count).astype(x.dtype)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, normal, parts = cache
        xp = namespace_of(dy)
        dy = contiguous(dy)
        channels = dy.shape[-1]
        for name in ("weight", "bias", "mean", "variance"):
            grads[name][...] = 0
        product = ctx.empty(dy.shape, dy.dtype)
        xp.multiply(dy, normal, out=product)
        dx = ctx.empty(dy.shape, dy.dtype)
        for segment, rows, count, mean, spread, inverse in parts:
            slope, unit = dy[segment].reshape(-1, channels), normal[segment].reshape(-1, channels)
            out, along = dx[segment].reshape(slope.shape), product[segment].reshape(slope.shape)
            total, dot = slope.sum(axis=0), along.sum(axis=0)
            grads["weight"][...] += dot
            grads["bias"][...] += total
            grads["mean"][...] += rows * mean
            grads["variance"][...] += rows * spread
            if self.sync:
                sums = ctx.sum_over_ranks(xp.concatenate([total, dot]).astype(np.float64)).astype(dy.dtype)
                total, dot = sums[:channels], sums[channels:]
            # (dy - mean(dy) - normal * mean(dy * normal)) * weight / deviation
            xp.multiply(unit, -dot / dy.dtype.type(count), out=out)
            out += slope
            out -= total / dy.dtype.type(count)
            out *= inverse * params["weight"]
        yield "weight", "bias", "mean", "variance"
        return dx


@dataclass(frozen=True)
class LayerNorm:
    """Mean 0 and variance 1 over the last axis, then times ``weight`` plus ``bias``."""

    eps: float = 1e-5

    def spec(self, shape: Shape) -> Spec:
        return Spec(shape, {"weight": (shape[-1:], ones), "bias": (shape[-1:], zeros)})

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        rows, width = prod(x.shape[:-1]), x.shape[-1]
        y, normal = ctx.empty((rows, width), x.dtype), ctx.empty((rows, width), x.dtype)
        inverse = ctx.empty((rows,), x.dtype)
        flat = contiguous(x).reshape(rows, width)
        layer_norm(flat, params["weight"], params["bias"], self.eps, y, normal, inverse)
        return y.reshape(x.shape), (ctx, normal, inverse)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, normal, inverse = cache
        flat = contiguous(dy).reshape(normal.shape)
        dx = ctx.empty(normal.shape, dy.dtype)
        layer_norm_backward(flat, normal, inverse, params["weight"], dx, grads["weight"], grads["bias"])
        yield "weight", "bias"
        return dx.reshape(dy.shape)
