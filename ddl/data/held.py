"""Ranges of sample numbers that a source holds, and the position of a held sample among them.

Sources that read files use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Ranges(Sequence[range]):
    """Ranges from ``starts`` to ``stops``, (n,) each, ascending and apart: a random part of a table has as many ranges
    as samples, too many for objects."""

    def __init__(self, starts: np.ndarray, stops: np.ndarray):
        self.starts, self.stops = starts, stops

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Ranges(self.starts[place], self.stops[place])
        return range(int(self.starts[place]), int(self.stops[place]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ranges):
            return list(self) == other
        return np.array_equal(self.starts, other.starts) and np.array_equal(self.stops, other.stops)

    __hash__ = None  # type: ignore[assignment]

    def numbers(self) -> np.ndarray:
        """The numbers in the ranges, ascending."""
        sizes = self.stops - self.starts
        before = np.cumsum(sizes) - sizes
        return np.arange(int(sizes.sum())) + np.repeat(self.starts - before, sizes)

    def within(self, low: int, high: int) -> Ranges:
        """What of the ranges lies from ``low`` up to ``high``."""
        own = slice(np.searchsorted(self.stops, low, side="right"), np.searchsorted(self.starts, high))
        return Ranges(np.maximum(self.starts[own], low), np.minimum(self.stops[own], high))


def runs(numbers: np.ndarray) -> Ranges:
    """The ranges that cover exactly ``numbers`` (any order, repeats allowed)."""
    unique = np.unique(numbers)
    is_first = np.r_[True, np.diff(unique) > 1][: len(unique)]
    return Ranges(unique[is_first], unique[np.roll(is_first, -1)] + 1)


def merged(*several: Sequence[range]) -> Ranges:
    """All these ranges, which may come in any order; ranges that touch or overlap become one."""
    known = [one if isinstance(one, Ranges) else Ranges(*_edges(one)) for one in several]
    starts, stops = (np.concatenate([np.zeros(0, np.int64), *each]) for each in
                     ([one.starts for one in known], [one.stops for one in known]))  # fmt: skip
    order = np.argsort(starts, kind="stable")
    order = order[starts[order] < stops[order]]
    starts, reach = starts[order], np.maximum.accumulate(stops[order])
    is_first = np.r_[True, starts[1:] > reach[:-1]][: len(starts)]
    return Ranges(starts[is_first], reach[np.roll(is_first, -1)])


def _edges(ranges: Sequence[range]) -> tuple[np.ndarray, np.ndarray]:
    edges = np.array([(r.start, r.stop) for r in ranges], np.int64).reshape(-1, 2)
    return edges[:, 0], edges[:, 1]


class Held:
    """The held ranges of samples, and the position of each sample among the held ones. Immutable."""

    def __init__(self, ranges: Sequence[range]):
        self.ranges = merged(ranges)
        sizes = self.ranges.stops - self.ranges.starts
        self._offsets = np.cumsum(sizes) - sizes
        self._count = int(sizes.sum())

    def __len__(self) -> int:
        """How many samples are held."""
        return self._count

    def numbers(self) -> np.ndarray:
        """The held samples, ascending."""
        return self.ranges.numbers()

    def places(self, indices: np.ndarray) -> np.ndarray:
        """The position of each sample among the held ones. Raises IndexError naming the first that is not held."""
        if len(self.ranges) == 0:
            if len(indices):
                raise IndexError(f"sample {int(indices[0])} is not held: nothing is")
            return np.zeros(0, np.int64)
        run = np.searchsorted(self.ranges.starts, indices, side="right") - 1
        outside = (run < 0) | (indices >= self.ranges.stops[run])
        if outside.any():
            raise IndexError(f"sample {int(indices[outside][0])} is not held")
        return indices - self.ranges.starts[run] + self._offsets[run]
