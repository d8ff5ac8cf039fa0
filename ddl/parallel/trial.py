"""Which of two ways is faster, found out while both do the work: for what changes nothing but the time of a step.

What the ways are is their owner's affair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

BLOCK = 8  # steps of one way before the other has its turn
LEAST, MOST, ENOUGH_S = 4, 20, 2.0  # blocks of both: where steps are long, fewer tell as much


class Trial:
    """Asked once a step whether to do a thing in the next one; tries both, in turns, and stays with the faster.

    clock: seconds, from any beginning."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._began = self._last = 0.0
        self._asked = 0
        self._seconds: tuple[list[float], list[float]] = ([], [])
        self.chosen: bool | None = None

    def next(self) -> bool:
        """Whether to do it now."""
        if self.chosen is not None:
            return self.chosen
        now, step = self._clock(), self._asked - 1  # the step that ends here, if one does
        self._began = now if step < 0 else self._began
        self._asked += 1
        # The first step of a block still pays for what the other way has left behind.
        if step >= 0 and step % BLOCK:
            self._seconds[_way(step)].append(now - self._last)
        self._last = now
        blocks, more = divmod(self._asked - 1, BLOCK)
        is_long = now - self._began > ENOUGH_S and blocks >= LEAST
        if more == 0 and blocks % 2 == 0 and (is_long or blocks >= MOST):
            without, with_it = map(statistics.median, self._seconds)
            self.chosen = with_it < without
            return self.chosen
        return _way(self._asked - 1)


def _way(step: int) -> bool:
    return step // BLOCK % 2 == 0
