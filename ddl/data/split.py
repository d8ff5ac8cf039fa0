"""Parts of a dataset by fractions: drawn at random by a key, with the share of each class kept, or the end of a text.

The sources of the parts are made in dataset.py."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ddl.arrays import generator
from ddl.errors import ConfigError


def stratified_split(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Sample numbers of each part, ascending: together all samples, each once.

    Every class is cut in these proportions to the nearest sample. fractions: positive or 0, together 1."""
    if any(f < 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-9:
        raise ConfigError(f"fractions {list(fractions)} of a split are not parts of 1")
    edges = np.concatenate([[0.0], np.cumsum(fractions)])
    edges[-1] = 1.0
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    for place, label in enumerate(np.unique(labels)):
        members = np.flatnonzero(labels == label)
        members = members[generator(seed, "split", place).permutation(len(members))]
        cuts = np.rint(edges * len(members)).astype(int)
        for part, (low, high) in zip(parts, pairwise(cuts), strict=True):
            part.append(members[low:high])
    return [np.sort(np.concatenate(part)) if part else np.zeros(0, np.int64) for part in parts]


def random_split(samples: int, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """The same for samples without classes."""
    return stratified_split(np.zeros(samples, np.int8), fractions, seed)


def sequential_split(samples: int, fractions: Sequence[float]) -> list[np.ndarray]:
    """One run after another: for samples that are one text, where a random part would lie amid the training part."""
    cuts = np.rint(np.concatenate([[0.0], np.cumsum(fractions)]) * samples).astype(int)
    cuts[-1] = samples
    return [np.arange(low, high) for low, high in pairwise(cuts)]
