"""The fixed affine layer behind the head of a network that predicts values, which learns standardised targets.

The loss compares (y - mean) / deviation with the outputs of the network; predictions and metrics are in the units of
the data. The numbers are learned from the training split by ddl/train/targets.py and live in buffers of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ddl.arrays import Array, Views, namespace_of
from ddl.nn import Dense, Reshape, Sequential
from ddl.nn.layer import Kept, Shape, wide

MEAN, DEVIATION = "target_mean", "target_deviation"  # buffers, (columns,) float64
Named = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TargetScale:
    """How a model computes with the scale of its targets.

    head: the name of the dense layer that ends the network. shape: of a sample's output. precision: type of the
    targets, which values in the units of the data have at least. mean, deviation: (columns,), with which training
    starts; None: 0 and 1, targets as they are."""

    head: str
    shape: Shape
    precision: str = "float32"
    mean: np.ndarray | None = None
    deviation: np.ndarray | None = None

    @property
    def kept(self) -> dict[str, Kept]:
        """The buffers. A checkpoint of before there were any holds a network that learned targets as they were."""
        columns = self.shape[-1] if len(self.shape) in (1, 3) else 1  # as in ddl/data/target_moments.py
        plain = {MEAN: np.zeros(columns), DEVIATION: np.ones(columns)}
        learned = {MEAN: self.mean, DEVIATION: self.deviation}
        return {
            name: Kept(absent if learned[name] is None else np.array(learned[name], np.float64), absent=absent)
            for name, absent in plain.items()
        }

    def is_plain(self, buffers: Views) -> bool:
        """Whether the loss is in the units of the data, as in a run that began before there was a scale."""
        return MEAN in buffers and bool((buffers[MEAN] == 0).all() and (buffers[DEVIATION] == 1).all())

    def standardised(self, buffers: Views, y: Array) -> Array:
        """Targets as the loss sees them; as they are where there are no such buffers."""
        if MEAN not in buffers:
            return y
        dtype = wide(y) if y.dtype.kind == "f" else np.dtype(np.float64)
        shifted: Array = namespace_of(y).subtract(y, buffers[MEAN].astype(dtype), dtype=dtype)
        shifted /= buffers[DEVIATION].astype(dtype)
        return shifted

    def in_units(self, buffers: Views, outputs: Array) -> Array:
        """Outputs of the network in the units of the data."""
        if MEAN not in buffers:
            return outputs
        dtype = np.promote_types(wide(outputs), self.precision)
        scaled: Array = namespace_of(outputs).multiply(outputs, buffers[DEVIATION].astype(dtype), dtype=dtype)
        scaled += buffers[MEAN].astype(dtype)
        return scaled

    def folded(self, arrays: Named) -> dict[str, np.ndarray]:
        """``arrays``, parameters and buffers by name, of the equal network that has no such layer: its head gives
        values in the units of the data, and is in float64."""
        weight, bias = self._of_head(arrays)
        found = {name: value for name, value in arrays.items() if name not in (MEAN, DEVIATION)}
        mean, deviation = self._per_unit(arrays.get(MEAN, 0.0), bias), self._per_unit(arrays.get(DEVIATION, 1.0), bias)
        return {**found, **self._head(weight * deviation, bias * deviation + mean)}

    def unfolded(self, arrays: Named, mean: np.ndarray, deviation: np.ndarray) -> dict[str, np.ndarray]:
        """The inverse of ``folded`` for this scale."""
        weight, bias = self._of_head(arrays)
        each = self._per_unit(deviation, bias)
        head = self._head(weight / each, (bias - self._per_unit(mean, bias)) / each)
        return {**arrays, **head, MEAN: mean, DEVIATION: deviation}

    def _head(self, weight: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
        return {f"{self.head}.weight": weight, f"{self.head}.bias": bias}

    def _of_head(self, arrays: Named) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = (arrays[f"{self.head}.{name}"].astype(np.float64) for name in ("weight", "bias"))
        return weight, bias

    def _per_unit(self, values: Any, bias: np.ndarray) -> np.ndarray:
        """Statistics (columns,) for each unit of the head."""
        of_values = np.broadcast_to(np.asarray(values, np.float64), self.shape or (1,)).reshape(-1)
        is_whole = prod(self.shape) == len(bias)  # or the head gives a row of the output at a time
        return of_values if is_whole else np.broadcast_to(values, bias.shape)


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
