"""Magnitude pruning: the smallest weights become zero during training, and stay zero.

The share of zeros rises along a cubic from 0 to its final value (Zhu and Gupta, 2017). Which weights are zero is a slot
of the optimizer, so checkpoints and recoveries keep it, and ranks that hold equal parameters choose equal weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddl.arrays import Array, namespace_of

SLOT = "pruned"  # 1 where a weight stays zero, else 0


@dataclass(frozen=True)
class Pruning:
    """sparsity: the share of the weights that are zero in the end. places: of the weights in the flat buffer.

    begin, end: the updates at which the share begins to rise and at which it is reached. every: updates between two
    choices of weights. by_layer: each of ``places`` has this share of zeros; else all of them together."""

    sparsity: float
    places: Sequence[slice]
    begin: int
    end: int
    every: int = 10
    by_layer: bool = False

    def share(self, update: int) -> float:
        """The share of zeros after ``update``, counted from 0."""
        passed = min(max(update - self.begin, 0) / max(self.end - self.begin, 1), 1.0)
        return self.sparsity * (1 - (1 - passed) ** 3) if update < self.end else self.sparsity

    def _is_due(self, update: int) -> bool:
        return update >= self.begin and ((update - self.begin) % self.every == 0 or update == self.end)

    def _limits(self, params: Array, update: int) -> list[float]:
        """The magnitude up to which the weights of each place become zero."""
        xp, share = namespace_of(params), self.share(update)

        def limit(sizes: Array) -> float:
            count = int(share * len(sizes))
            # By value: ranks whose processors sort in another order still choose the same weights.
            return float(xp.partition(sizes, count - 1)[count - 1]) if count else -1.0

        sizes = [xp.abs(params[place]) for place in self.places]
        return [limit(s) for s in sizes] if self.by_layer else [limit(xp.concatenate(sizes))] * len(sizes)

    def mark(self, new: Array, old: Array, params: Array, update: int, within: Sequence[slice]) -> None:
        """Mark in ``new`` what is marked in ``old``, and the smallest of ``params`` if a choice is due; ``within``.

        All arrays are flat and of one length; params: as they are before the update."""
        limits = self._limits(params, update) if self._is_due(update) else [-1.0] * len(self.places)
        for place, limit in zip(self.places, limits, strict=True):
            for part in _common(place, within):
                new[part] = (old[part] != 0) | (abs(params[part]) <= limit)

    def clear(self, params: Array, marks: Array, within: Sequence[slice]) -> None:
        """Set the marked ones of ``params`` to zero, ``within``."""
        for place in self.places:
            for part in _common(place, within):
                params[part][marks[part] != 0] = 0


def _common(place: slice, within: Sequence[slice]) -> list[slice]:
    both = [slice(max(place.start, other.start), min(place.stop, other.stop)) for other in within]
    return [part for part in both if part.start < part.stop]
