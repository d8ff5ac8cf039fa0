"""Ranges of sample numbers that a source holds, and the position of a held sample among them.

Sources that read files use it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def runs(numbers: np.ndarray) -> list[range]:
    """The ranges, ascending and apart, that cover exactly ``numbers`` (any order, repeats allowed)."""
    if not len(numbers):
        return []
    unique = np.unique(numbers)
    breaks = np.flatnonzero(np.diff(unique) > 1) + 1
    starts = unique[np.concatenate([[0], breaks])].tolist()
    stops = (unique[np.concatenate([breaks - 1, [len(unique) - 1]])] + 1).tolist()
    return [range(a, b) for a, b in zip(starts, stops, strict=True)]


class Held:
    """The held ranges of samples, ascending, and the position of each sample among the held ones. Immutable.

    ``ranges`` may come in any order; ranges that touch or overlap are merged."""

    def __init__(self, ranges: Sequence[range]):
        merged: list[list[int]] = []
        for r in sorted((r for r in ranges if len(r)), key=lambda r: r.start):
            if merged and r.start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], r.stop)
            else:
                merged.append([r.start, r.stop])
        self.ranges = [range(a, b) for a, b in merged]
        self._starts = np.array([r.start for r in self.ranges], np.int64)
        sizes = np.array([len(r) for r in self.ranges], np.int64)
        self._stops = self._starts + sizes
        self._offsets = np.cumsum(sizes) - sizes
        self._count = int(sizes.sum())

    def __len__(self) -> int:
        """How many samples are held."""
        return self._count

    def numbers(self) -> np.ndarray:
        """The held samples, ascending."""
        return np.concatenate([np.arange(r.start, r.stop) for r in self.ranges] or [np.zeros(0, np.int64)])

    def places(self, indices: np.ndarray) -> np.ndarray:
        """The position of each sample among the held ones. Raises IndexError naming the first that is not held."""
        if len(self.ranges) == 0:
            if len(indices):
                raise IndexError(f"sample {int(indices[0])} is not held: nothing is")
            return np.zeros(0, np.int64)
        run = np.searchsorted(self._starts, indices, side="right") - 1
        outside = (run < 0) | (indices >= self._stops[run])
        if outside.any():
            raise IndexError(f"sample {int(indices[outside][0])} is not held")
        return indices - self._starts[run] + self._offsets[run]
