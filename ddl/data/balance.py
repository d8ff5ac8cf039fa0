"""Unequal classes: weights for the loss, and samples repeated a known number of times.

nn/losses.py applies the weights."""

from __future__ import annotations

import numpy as np

from ddl.arrays import generator
from ddl.errors import DataError


def class_weights(labels: np.ndarray, classes: int | None = None) -> np.ndarray:
    """(classes,) weights inversely proportional to how often a class occurs; their mean over the samples is 1.

    A class without samples gets weight 0."""
    counts = np.bincount(labels, minlength=classes or 0)
    weights = np.zeros(len(counts))
    present = counts > 0
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def oversample(labels: np.ndarray, seed: int, strength: float = 1.0) -> np.ndarray:
    """Sample numbers, ascending, in which samples of rare classes occur several times.

    strength: 1 brings every class to the size of the largest, 0 repeats nothing. Each sample of a class occurs
    equally often, up to a remainder drawn by ``seed``. ``Subset(source, oversample(...))`` is an ordinary
    source of so many samples: its ledger is exact, and ``multiplicity`` says how often each sample of the
    original is used in an epoch."""
    if not 0 <= strength <= 1:
        raise DataError(f"a strength of oversampling of {strength} is not between 0 and 1")
    times = np.zeros(len(labels), np.int64)
    classes, counts = np.unique(labels, return_counts=True)
    for place, (label, count) in enumerate(zip(classes, counts, strict=True)):
        wanted = round(count + strength * (counts.max() - count))
        members = np.flatnonzero(labels == label)
        times[members] = wanted // count
        chosen = generator(seed, "oversample", place).choice(count, wanted % count, replace=False)
        times[members[chosen]] += 1
    return np.repeat(np.arange(len(labels)), times)


def multiplicity(indices: np.ndarray, samples: int) -> np.ndarray:
    """(samples,): how often each sample of the original occurs in ``indices``."""
    return np.bincount(indices, minlength=samples)
