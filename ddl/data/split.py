"""Parts of a dataset by fractions: drawn at random by a key, with the share of each class kept, or the end of a text.

The sources of the parts are made in dataset.py."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ddl.arrays import generator
from ddl.errors import ConfigError
from ddl.wording import listed


def stratified_split(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Sample numbers of each part, ascending: together all samples, each once.

    Every class is cut in these proportions to within one sample, and so are all samples together: the samples left over
    by rounding down go, class after class, to the parts that lack most so far (largest remainder).
    fractions: positive or 0, together 1."""
    if any(f < 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-9:
        raise ConfigError(f"fractions {listed(fractions, 'and')} of a split are not parts of 1")
    shares = np.asarray(fractions, float)
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    lack = np.zeros(len(fractions))  # of each part, summed over the classes so far
    for place, label in enumerate(np.unique(labels)):
        members = np.flatnonzero(labels == label)
        members = members[generator(seed, "split", place).permutation(len(members))]
        wanted = shares * len(members)
        counts = np.floor(wanted + 1e-9).astype(int)
        lack += wanted - counts
        # A part takes at most one sample beyond its share, and none if its share is whole.
        order = np.argsort(np.where(wanted - counts > 1e-9, -lack, np.inf), kind="stable")
        extra = order[: len(members) - counts.sum()]
        counts[extra] += 1
        lack[extra] -= 1
        cuts = np.concatenate([[0], np.cumsum(counts)])
        for part, (low, high) in zip(parts, pairwise(cuts), strict=True):
            part.append(members[low:high])
    return [np.sort(np.concatenate(part)) if part else np.zeros(0, np.int64) for part in parts]


def random_split(samples: int, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """The same for samples without classes."""
    return stratified_split(np.zeros(samples, np.int8), fractions, seed)


def sequential_split(samples: int, fractions: Sequence[float]) -> list[np.ndarray]:
    """Contiguous parts, for samples that form one text: a random part would overlap the training part."""
    cuts = np.rint(np.concatenate([[0.0], np.cumsum(fractions)]) * samples).astype(int)
    cuts[-1] = samples
    return [np.arange(low, high) for low, high in pairwise(cuts)]
