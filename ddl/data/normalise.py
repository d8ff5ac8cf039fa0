"""Normalisation from the training part alone, to the same bits on any number of ranks.

The rank of a shard computes its statistics in float64, in pieces of a fixed size; they are combined in the order of
the shards. ddl/train exchanges them between ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ddl.data.held import runs
from ddl.data.order import Order
from ddl.data.source import Field, Source
from ddl.data.transforms import Transform
from ddl.errors import ConfigError, DataError
from ddl.wording import listed

PIECE = 1024  # samples at most
PIECE_NUMBERS = 2**22  # in them
MOST_OFFSET = 1000  # deviations; float32 then resolves 1e-4 of one
FLOAT32 = np.finfo(np.float32)
KINDS = ("feature", "all", "unit")
COUNT, MEAN, SQUARES, LEAST, MOST, BAD = range(6)


def columns_of(shape: tuple[int, ...]) -> int:
    """Number of statistics: one per feature of a vector, one per channel of an image, else one for all."""
    return shape[-1] if len(shape) in (1, 3) else 1


def can_normalise(field: Field) -> bool:
    """Whether x consists of measurements: floating-point numbers, not class or token numbers."""
    return field.dtype.kind == "f"


def needs_precision(source: Source, measured: bool = False) -> bool:
    """Whether some column of x varies little about a large mean, so that a cast to float32 would lose the differences.

    measured: whole numbers in x are measurements. Judged by sampled samples, the same on every rank; afterwards the
    source holds nothing."""
    field = source.fields["x"]
    is_wide_integer = measured and field.size is None and field.dtype.kind in "iu" and field.dtype.itemsize >= 4
    if field.dtype != np.float64 and not is_wide_integer:
        return False
    count = min(PIECE, len(source))
    last = count - 1 if source.reads_from_start else len(source) - 1
    rows = np.unique(np.linspace(0, last, count).astype(np.int64))
    source.hold(runs(rows))
    x = source.gather(rows)["x"].astype(np.float64).reshape(-1, columns_of(field.shape))
    source.hold([])
    return is_lost(x, np.float32)


def is_lost(x: np.ndarray, dtype: np.dtype | type | str) -> bool:
    """Whether a cast of x (rows, columns) to ``dtype`` would lose the differences in some column."""
    limits = np.finfo(dtype)
    x = x[np.isfinite(x).all(axis=1)]
    largest = np.abs(x).max(axis=0, initial=0)
    if ((largest > limits.max) | ((largest > 0) & (largest < limits.tiny))).any():
        return True
    deviation = x.std(axis=0) if len(x) else np.zeros(1)
    varies = deviation > 1e-12 * largest
    most = MOST_OFFSET * float(FLOAT32.eps / limits.eps)
    return bool((largest[varies] > most * deviation[varies]).any())


def moments(source: Source, order: Order, shards: Sequence[int]) -> dict[int, np.ndarray]:
    """shard -> (6, columns) float64: count, mean, sum of squares about the mean, least and most of x, and the
    first sample that is not finite (infinity if there is none): ``combine`` raises for it, on every rank alike.

    Raises ConfigError, on every rank alike, where x is not made of measurements."""
    if not can_normalise(source.fields["x"]):
        raise ConfigError(f"x is of {source.fields['x'].dtype}, numbers of tokens: set data.normalize to none")
    source.hold([order.shard_range(shard) for shard in shards])
    columns = columns_of(source.fields["x"].shape)
    piece = min(PIECE, max(PIECE_NUMBERS // max(prod(source.fields["x"].shape), 1), 1))
    found = {}
    for shard in shards:
        numbers = order.shard_range(shard)
        total = np.zeros((6, columns))
        total[LEAST], total[MOST], total[BAD] = np.inf, -np.inf, np.inf
        for start in range(numbers.start, numbers.stop, piece):
            indices = np.arange(start, min(start + piece, numbers.stop))
            x = source.gather(indices)["x"].astype(np.float64).reshape(len(indices), -1, columns)
            finite = np.isfinite(x).all(axis=(1, 2))
            if not finite.all():
                total[BAD] = np.minimum(total[BAD], indices[~finite][0])
                x = x[finite]
            if len(x):
                total = _merge(total, _of_piece(x.reshape(-1, columns)))
        found[shard] = total
    return found


def _of_piece(x: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=0)
    with np.errstate(over="ignore"):  # ``combine`` reports it
        squares = ((x - mean) ** 2).sum(axis=0)
    return np.stack(
        [np.full_like(mean, len(x)), mean, squares, x.min(axis=0), x.max(axis=0), np.full_like(mean, np.inf)]
    )


def _merge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Moments of two sets together (Chan, Golub and LeVeque, 1979): sums about the mean do not cancel."""
    count = a[COUNT] + b[COUNT]
    if not count.all():
        return np.where(np.arange(6)[:, None] == BAD, np.minimum(a, b), a)
    step = b[MEAN] - a[MEAN]
    with np.errstate(over="ignore", invalid="ignore"):
        squares = a[SQUARES] + b[SQUARES] + step**2 * (a[COUNT] * b[COUNT] / count)
    mean = a[MEAN] + step * (b[COUNT] / count)
    least, most = np.minimum(a[LEAST], b[LEAST]), np.maximum(a[MOST], b[MOST])
    return np.stack([count, mean, squares, least, most, np.minimum(a[BAD], b[BAD])])


def combine(all_moments: Mapping[int, np.ndarray], kind: str = "feature", dtype: str | None = None) -> Normalise:
    """The normalisation from the moments of all shards.

    kind: "feature" gives each feature of a vector and each channel of an image mean 0 and deviation 1, "all"
    all values together, "unit" the range 0 .. 1 by the minimum and maximum of the training part. Constant values
    become 0. Raises DataError naming a sample that is not finite."""
    if kind not in KINDS:
        raise DataError(f"no normalisation is called {kind!r}; there are {listed(KINDS, 'and')}")
    if not all_moments:
        raise DataError("no shard to take statistics from")
    total = _merge_all([all_moments[shard] for shard in sorted(all_moments)])
    if np.isfinite(total[BAD]).any():
        raise DataError(f"x of training sample {int(total[BAD].min())} is not finite")
    if kind == "unit":
        least, most = total[LEAST].min(), total[MOST].max()
        return Normalise([float(least)], [float(most - least) or 1.0], dtype)
    if kind == "all":
        total = _merge_all([total[:, column : column + 1] for column in range(total.shape[1])])
    deviation = np.sqrt(total[SQUARES] / total[COUNT])
    beyond = ~np.isfinite(deviation) | ((deviation == 0) & (total[MOST] > total[LEAST]))
    if beyond.any():
        least, most = total[LEAST][beyond][0], total[MOST][beyond][0]
        raise DataError(
            f"numbers of x from {least:g} to {most:g} lie too close together or too far apart to be normalised: "
            "rescale them"
        )
    # Rounding gives constant values a tiny deviation.
    flat = deviation <= 1e-12 * np.abs(total[MEAN])
    return Normalise(total[MEAN].tolist(), np.where(flat, 1.0, deviation).tolist(), dtype)


def _merge_all(parts: Sequence[np.ndarray]) -> np.ndarray:
    total = parts[0]
    for part in parts[1:]:
        total = _merge(total, part)
    return total


@dataclass(frozen=True)
class Normalise(Transform):
    """(x - mean) / scale, in place, by column (the last axis) or for all if there is one column.

    dtype: of the result. x of another floating dtype is normalised in float64 and then cast; None keeps x's own."""

    mean: list[float]
    scale: list[float]
    dtype: str | None = None
    is_cheap = True
    _arrays: dict[Any, tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, batch: dict[str, np.ndarray], segments: Any = (), generators: Any = ()) -> dict[str, np.ndarray]:
        x = batch["x"]
        if x.dtype.kind != "f":
            x = batch["x"] = x.astype(np.float32)
        if self.dtype is not None and x.dtype == np.float64 and self.dtype != "float64":
            batch["x"] = ((x - np.asarray(self.mean)) / np.asarray(self.scale)).astype(self.dtype)
            return batch
        arrays = self._arrays.get(x.dtype)
        if arrays is None:
            arrays = np.asarray(self.mean, x.dtype), (1 / np.asarray(self.scale)).astype(x.dtype)
            self._arrays[x.dtype] = arrays
        np.subtract(x, arrays[0], out=x)
        np.multiply(x, arrays[1], out=x)
        return batch

    def undo(self, x: np.ndarray) -> np.ndarray:
        """Undo the normalisation, for example to show a reconstruction or a generated image."""
        return x * np.asarray(self.scale, x.dtype) + np.asarray(self.mean, x.dtype)

    def to_json(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "scale": list(self.scale), "dtype": self.dtype}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Normalise:
        return cls(list(values["mean"]), list(values["scale"]), values.get("dtype"))
