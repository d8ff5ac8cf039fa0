"""Normalisation from the training part alone, to the same bits on any number of ranks.

Each shard's statistics are computed in float64 in pieces of a fixed size, by whichever rank has it, and
combined in the order of the shards. How they travel between ranks is train's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddl.data.order import Order
from ddl.data.source import Field, Source
from ddl.errors import DataError

PIECE = 1024  # samples
COUNT, MEAN, SQUARES, LEAST, MOST = range(5)


def _columns(shape: tuple[int, ...]) -> int:
    """Statistics a sample has: one a feature of a vector, one a channel of an image, one for all else."""
    return shape[-1] if len(shape) in (1, 3) else 1


def can_normalise(field: Field) -> bool:
    """Whether x is made of measurements: floating numbers, not class or token numbers."""
    return field.dtype.kind == "f"


def moments(source: Source, order: Order, shards: Sequence[int]) -> dict[int, np.ndarray]:
    """shard -> (5, columns) float64: count, mean, sum of squares about the mean, least and most of x.

    Raises DataError naming the first sample whose x is not finite."""
    source.hold([order.shard_range(shard) for shard in shards])
    columns = _columns(source.fields["x"].shape)
    found = {}
    for shard in shards:
        numbers = order.shard_range(shard)
        total = np.zeros((5, columns))
        total[LEAST], total[MOST] = np.inf, -np.inf
        for start in range(numbers.start, numbers.stop, PIECE):
            indices = np.arange(start, min(start + PIECE, numbers.stop))
            x = source.gather(indices)["x"].astype(np.float64).reshape(len(indices), -1, columns)
            if not np.isfinite(x).all():
                bad = int(indices[~np.isfinite(x).all(axis=(1, 2))][0])
                raise DataError(f"x of training sample {bad} is not finite")
            total = _merge(total, _of_piece(x.reshape(-1, columns)))
        found[shard] = total
    return found


def _of_piece(x: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=0)
    return np.stack([np.full_like(mean, len(x)), mean, ((x - mean) ** 2).sum(axis=0), x.min(axis=0), x.max(axis=0)])


def _merge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Moments of two sets together (Chan, Golub and LeVeque, 1979): sums about the mean do not cancel."""
    count = a[COUNT] + b[COUNT]
    if not count.all():
        return a
    step = b[MEAN] - a[MEAN]
    squares = a[SQUARES] + b[SQUARES] + step**2 * (a[COUNT] * b[COUNT] / count)
    mean = a[MEAN] + step * (b[COUNT] / count)
    return np.stack([count, mean, squares, np.minimum(a[LEAST], b[LEAST]), np.maximum(a[MOST], b[MOST])])


def combine(all_moments: Mapping[int, np.ndarray], kind: str = "standard") -> Normalise:
    """The normalisation from the moments of all shards.

    kind: "standard" gives mean 0 and deviation 1, "unit" the range 0 .. 1, by the least and most of the
    training part over all columns. A column that never varies is left at 0."""
    total: np.ndarray | None = None
    for shard in sorted(all_moments):
        total = all_moments[shard] if total is None else _merge(total, all_moments[shard])
    if total is None:
        raise DataError("no shard to take statistics from")
    if kind == "unit":
        least, most = total[LEAST].min(), total[MOST].max()
        return Normalise([float(least)], [float(most - least) or 1.0])
    if kind != "standard":
        raise DataError(f"no normalisation is called {kind!r}; there are 'standard' and 'unit'")
    deviation = np.sqrt(total[SQUARES] / total[COUNT])
    # Rounding leaves a deviation where there is none.
    flat = deviation <= 1e-12 * np.maximum(np.abs(total[MEAN]), 1e-300)
    return Normalise(total[MEAN].tolist(), np.where(flat, 1.0, deviation).tolist())


@dataclass(frozen=True)
class Normalise:
    """(x - mean) / scale, in place, by column (the last axis) or for all where there is one column."""

    mean: list[float]
    scale: list[float]
    training_only = False
    is_cheap = True
    _arrays: dict[Any, tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, batch: dict[str, np.ndarray], segments: Any = (), generators: Any = ()) -> dict[str, np.ndarray]:
        x = batch["x"]
        if x.dtype.kind != "f":
            x = batch["x"] = x.astype(np.float32)
        arrays = self._arrays.get(x.dtype)
        if arrays is None:
            arrays = np.asarray(self.mean, x.dtype), (1 / np.asarray(self.scale)).astype(x.dtype)
            self._arrays[x.dtype] = arrays
        np.subtract(x, arrays[0], out=x)
        np.multiply(x, arrays[1], out=x)
        return batch

    def undo(self, x: np.ndarray) -> np.ndarray:
        """Values as they were before: what a reconstruction or a generated image is shown in."""
        return x * np.asarray(self.scale, x.dtype) + np.asarray(self.mean, x.dtype)

    def to_json(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "scale": list(self.scale)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Normalise:
        return cls(list(values["mean"]), list(values["scale"]))
