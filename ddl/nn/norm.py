"""Normalisation: BatchNorm by the statistics of the global batch (or of each shard), LayerNorm by those of each row.

Running averages are applied when train commits a step."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ddl.arrays import Array, Views, namespace_of
from ddl.kernels.rowwise import layer_norm, layer_norm_backward, sum_rows
from ddl.nn.context import Context
from ddl.nn.initial import ones, zeros
from ddl.nn.layer import Average, Backward, Shape, Spec, contiguous, wide

LEAST_SAMPLES = 16  # per shard, with sync=False


@dataclass(frozen=True)
class BatchNorm:
    """Mean 0 and variance 1 of each channel (the last axis), then times ``weight`` plus ``bias``.

    In training the statistics are those of the whole global batch (of the micro-batch, with gradient accumulation), as
    with one process in PyTorch: the result does not depend on the number of ranks. Ranks exchange three vectors per
    layer and step, each as long as two times the channels, which also keeps gradients from travelling during backward.

    sync=False exchanges nothing and takes the statistics of each shard's samples instead (ghost batch normalisation,
    Hoffer, Hubara and Soudry, 2017). A job needs at least 16 samples per shard and micro-batch for that: with 2 or 3,
    networks hardly train.

    In evaluation the statistics are the running averages, of the variance in its unbiased estimate; a single value per
    channel has none and leaves the average unchanged. Statistics are float32 or better."""

    momentum: float = 0.1
    eps: float = 1e-5
    sync: bool = True

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
            samples_per_shard=0 if self.sync else LEAST_SAMPLES,
        )

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        xp, channels = namespace_of(x), x.shape[-1]
        y = ctx.empty(x.shape, x.dtype)
        if not ctx.training:
            scale = params["weight"] / xp.sqrt(params["variance"] + self.eps)
            xp.multiply(x, scale, out=y)
            y += params["bias"] - params["mean"] * scale
            return y, None
        # Samples as rows of channels; each part of the rows has its own statistics.
        places = prod(x.shape[1:-1])
        rows = contiguous(x).reshape(len(x) * places, channels)
        segments = [slice(0, len(x))] if self.sync else [s for s in ctx.segments if s.stop > s.start]
        if sum(s.stop - s.start for s in segments) != len(x):
            raise ValueError(f"segments do not cover {len(x)} rows: BatchNorm needs a batch's segments")
        normal = ctx.empty(rows.shape, wide(x))
        parts = []
        for segment in segments:
            part = slice(segment.start * places, segment.stop * places)
            count, mean, variance = self._centre(rows[part], normal[part], ctx)
            inverse = 1 / xp.sqrt(variance + self.eps)
            normal[part] *= inverse
            unbiased = xp.where(count > 1, variance * (count / xp.maximum(count - 1, 1)), params["variance"])
            parts.append((part, segment.stop - segment.start, count, mean, unbiased, inverse))
        out = y.reshape(rows.shape)
        xp.multiply(normal, params["weight"], out=out, casting="same_kind")
        out += params["bias"]
        return y, (ctx, normal, parts)

    def _centre(self, x: Array, out: Array, ctx: Context) -> tuple[Array, Array, Array]:
        """out = x - mean. Returns the number of rows, mean and (biased) variance of each channel.

        Two passes, since the difference of the mean square and the squared mean cancels."""
        xp = namespace_of(x)
        square, total = ctx.empty(x.shape, out.dtype), ctx.empty((x.shape[1] + 1,), np.float64)
        sum_rows(x, total[:-1])
        total[-1] = len(x)
        if self.sync:
            total = ctx.sum_over_ranks(total)
        count = xp.maximum(total[-1], 1)  # an array, since reading a number would wait for a GPU
        mean = (total[:-1] / count).astype(out.dtype)
        xp.subtract(x, mean, out=out)
        xp.multiply(out, out, out=square)
        squares = ctx.empty((x.shape[1],), np.float64)
        sum_rows(square, squares)
        if self.sync:
            squares = ctx.sum_over_ranks(squares)
        return count, mean, (squares / count).astype(out.dtype)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, normal, parts = cache
        xp, channels = namespace_of(dy), dy.shape[-1]
        dx = ctx.empty(dy.shape, dy.dtype)
        slopes, out = contiguous(dy).reshape(normal.shape), dx.reshape(normal.shape)
        product = ctx.empty(normal.shape, normal.dtype)
        xp.multiply(slopes, normal, out=product)
        totals = {name: xp.zeros(channels, np.float64) for name in ("weight", "bias", "mean", "variance")}
        for part, samples, count, mean, variance, inverse in parts:
            sums = ctx.empty((2, channels), np.float64)
            sum_rows(slopes[part], sums[0])
            sum_rows(product[part], sums[1])
            for name, value in (
                ("bias", sums[0]), ("weight", sums[1]), ("mean", samples * mean), ("variance", samples * variance),
            ):  # fmt: skip
                totals[name] += value
            if self.sync:
                sums = ctx.sum_over_ranks(sums)
            total, dot = (sums / count).astype(normal.dtype)
            # (dy - mean(dy) - normal * mean(dy * normal)) * weight / deviation
            slope = product[part]
            xp.multiply(normal[part], -dot, out=slope)
            slope += slopes[part]
            slope -= total
            slope *= inverse * params["weight"]
            out[part] = slope
        for name, value in totals.items():
            grads[name][...] = value
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
        y, normal = ctx.empty((rows, width), x.dtype), ctx.empty((rows, width), wide(x))
        inverse = ctx.empty((rows,), wide(x))
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
