"""The fixed affine layer behind the head of a network that predicts values, which learns standardised targets.

The loss compares (y - mean) / deviation with the outputs of the network; predictions and metrics are in the units of
the data. The numbers are learned from the training split by ddl/train/targets.py and live in buffers of the model."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ddl.arrays import Array, Views, namespace_of
from ddl.nn import Dense, Reshape, Sequential
from ddl.nn.layer import Kept, Shape, wide

MEAN, DEVIATION = "target_mean", "target_deviation"  # buffers, (columns,) float64
Scale = tuple[np.ndarray, np.ndarray]  # mean and deviation, each (columns,)


def columns(shape: Shape) -> int:
    """Number of statistics: one per value of a vector, one per channel of an image, else one for all."""
    return shape[-1] if len(shape) in (1, 3) else 1


def head_of(network: Any) -> str | None:
    """The name of the dense layer whose outputs, possibly reshaped, are those of ``network``; None if its last layer is
    another, whose outputs may be limited to a range."""
    if type(network) is not Sequential:
        return None
    for name, layer in reversed(network.layers.items()):
        if type(layer) is Dense:
            return name if layer.activation == "linear" and layer.bias else None
        if type(layer) is Sequential:
            inner = head_of(layer)
            return None if inner is None else f"{name}.{inner}"
        if not isinstance(layer, Reshape):
            return None
    return None


def buffers_of(shape: Shape, scale: Scale | None) -> dict[str, Kept]:
    """The buffers for outputs of this shape. A checkpoint of before there were any holds a network that learned
    targets as they were."""
    as_they_are = np.zeros(columns(shape)), np.ones(columns(shape))
    return {
        name: Kept(np.asarray(value, np.float64), absent=absent)
        for name, value, absent in zip((MEAN, DEVIATION), scale or as_they_are, as_they_are, strict=True)
    }


def standardised(buffers: Views, y: Array) -> Array:
    """Targets as the loss sees them."""
    dtype = wide(y) if y.dtype.kind == "f" else np.dtype(np.float64)
    shifted = namespace_of(y).subtract(y, buffers[MEAN].astype(dtype), dtype=dtype)
    shifted /= buffers[DEVIATION].astype(dtype)
    return shifted


def in_units(buffers: Views, outputs: Array, dtype: np.dtype) -> Array:
    """Outputs of the network in the units of the data. dtype: of targets that have more precision than the outputs."""
    dtype = np.promote_types(wide(outputs), dtype)
    scaled = namespace_of(outputs).multiply(outputs, buffers[DEVIATION].astype(dtype), dtype=dtype)
    scaled += buffers[MEAN].astype(dtype)
    return scaled


def folded(head: str, shape: Shape, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``arrays``, parameters and buffers by name, of the equal network that has no such layer: its head gives outputs
    of ``shape`` in the units of the data. The head is then in float64."""
    found = {name: value for name, value in arrays.items() if name not in (MEAN, DEVIATION)}
    if MEAN in arrays:
        mean, deviation = (_per_unit(arrays[name], shape, arrays[f"{head}.bias"]) for name in (MEAN, DEVIATION))
        found[f"{head}.weight"] = arrays[f"{head}.weight"] * deviation
        found[f"{head}.bias"] = arrays[f"{head}.bias"] * deviation + mean
    return found


def unfolded(head: str, shape: Shape, arrays: Mapping[str, np.ndarray], scale: Scale) -> dict[str, np.ndarray]:
    """The inverse of ``folded`` for this scale."""
    bias = arrays[f"{head}.bias"]
    mean, deviation = (_per_unit(values, shape, bias) for values in scale)
    return {
        **arrays,
        f"{head}.weight": arrays[f"{head}.weight"].astype(np.float64) / deviation,
        f"{head}.bias": (bias.astype(np.float64) - mean) / deviation,
        MEAN: scale[0],
        DEVIATION: scale[1],
    }


def _per_unit(values: np.ndarray, shape: Shape, bias: np.ndarray) -> np.ndarray:
    """Statistics (columns,) for each unit of the head."""
    per_value = np.broadcast_to(np.asarray(values, np.float64), shape)
    return per_value.reshape(-1) if prod(shape) == len(bias) else np.broadcast_to(values, bias.shape)
