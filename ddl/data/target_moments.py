"""Mean and deviation of targets that are values, from the training part alone: the same on every rank.

What becomes of them is decided in ddl/train/targets.py; x is normalised in normalise.py."""

from __future__ import annotations

import math

import numpy as np

from ddl.data.held import runs
from ddl.data.normalise import columns_of, is_lost, needs_precision
from ddl.data.source import Source
from ddl.data.targets import MOST_BYTES, Target

SAMPLED = 4096  # samples, of a source that cannot read all its targets cheaply


def lost_in_cast(
    source: Source, target: Target | None, dtype: np.dtype | str, *, x: bool, y: bool, measured: bool = False
) -> set[str]:
    """The fields that a cast to ``dtype`` would leave with too few digits to be scaled afterwards.

    x, y: whether they are going to be scaled; y only where it holds values. measured: see ``needs_precision``."""
    found = {"x"} if x and needs_precision(source, measured) else set()
    if y and target is not None and target.kind == "values":
        field = source.fields["y"]
        is_wider = field.dtype.kind == "f" and field.dtype.itemsize > np.dtype(dtype).itemsize
        found |= {"y"} if is_wider and is_lost(_rows(source), dtype) else set()
    return found


def target_moments(train: Source) -> tuple[np.ndarray, np.ndarray]:
    """(mean, deviation) of "y", each (columns,) float64: one per value of a vector and per channel of an image, else
    one for all. The deviation of a column that does not vary is 1, or less where its value is."""
    y = _rows(train)
    y = y[np.isfinite(y).all(axis=1)]
    if not len(y):
        return np.zeros(y.shape[1]), np.ones(y.shape[1])
    largest = np.abs(y).max(axis=0)
    unit = np.where(largest > 0, largest, 1.0)  # squares of the largest and smallest numbers would leave float64
    y = y / unit
    mean, deviation = y.mean(axis=0), y.std(axis=0)
    # Rounding gives equal values a tiny deviation.
    varies = deviation > 1e-12 * np.abs(mean)
    return mean * unit, np.where(varies, deviation * unit, np.minimum(unit, 1.0))


def _rows(source: Source) -> np.ndarray:
    """Targets (rows, columns) float64: all of them if reading them is cheap, else those of evenly spaced samples."""
    field = source.fields["y"]
    stored = None
    if math.prod(field.shape) * field.dtype.itemsize * len(source) <= MOST_BYTES:
        stored = source.targets()
    if stored is None:
        count = min(SAMPLED, len(source))
        last = count - 1 if source.reads_from_start else len(source) - 1
        numbers = np.unique(np.linspace(0, last, count).astype(np.int64))
        source.hold(runs(numbers))
        stored = source.gather(numbers)["y"]
        source.hold([])
    return stored.astype(np.float64).reshape(-1, columns_of(field.shape))
