"""An arena: scratch arrays that are reused in the next step.

Every training step asks for the same shapes in the same order, so the n-th request of a step gets the n-th array of
the previous step: nothing is allocated, and no page is touched for the first time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np

from ddl.arrays.namespace import Array


class Arena:
    """Scratch arrays by order of request. ``rewind`` starts a new step and invalidates all arrays given out.

    ``grown`` counts the allocations so far; in the steady state it does not change."""

    def __init__(self, xp=np):
        self.xp = xp
        self.grown = 0
        self._blocks: list[Array] = []
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Arrays requested within are invalid at its end; the next requests reuse them while they are in the caches."""
        kept = self._next
        yield
        self._next = kept

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(block.nbytes for block in self._blocks)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype | str) -> Array:
        """A contiguous array with undefined content, valid until ``rewind``."""
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        place, self._next = self._next, self._next + 1
        if place == len(self._blocks) or self._blocks[place].nbytes < nbytes:
            block = self.xp.empty(max(nbytes, 1), np.uint8)
            self.grown += 1
            self._blocks[place : place + 1] = [block]
        return self._blocks[place][:nbytes].view(dtype).reshape(shape)
