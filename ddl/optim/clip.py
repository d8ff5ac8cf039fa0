"""Clipping by global norm, as a factor: the gradient itself is not changed.

The optimizer applies the factor in its single pass; the squared norm comes with the gradient sum (ddl/parallel)."""

from __future__ import annotations

from math import sqrt


def gradient_scale(squared_norm: float, weight: float, clip_norm: float = 0.0) -> tuple[float, float]:
    """(scale, norm): gradient of the sum * scale is the mean gradient, shortened to ``clip_norm`` if it is longer.

    squared_norm: of the SUM's gradient. weight: what the mean divides by, above zero. norm: of the mean
    gradient before clipping. clip_norm 0: no clipping."""
    norm = sqrt(squared_norm) / weight
    scale = 1.0 / weight
    return (scale * (clip_norm / norm) if 0 < clip_norm < norm else scale), norm
