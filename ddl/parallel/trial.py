"""Measure in running training steps whether an optimisation pays that changes nothing but their duration.

The caller applies the optimisation; this module only alternates and compares."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

BLOCK = 8  # consecutive steps with the same answer
# Blocks of each kind, two at a time: at least LEAST, then until ENOUGH_S have passed, at most MOST. Long steps vary
# less in proportion, so fewer of them suffice.
LEAST, MOST, ENOUGH_S = 4, 20, 2.0


class Trial:
    """Answers once per step whether to apply the optimisation in the next one.

    Alternates blocks of steps with and without it, compares the medians, and keeps the faster choice.

    clock: returns seconds, from any origin. chosen: the final answer, None while the trial is running."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._began = self._last = 0.0
        self._asked = 0
        self._seconds: tuple[list[float], list[float]] = ([], [])  # of the steps without, and with it
        self.chosen: bool | None = None

    def next(self) -> bool:
        """Whether to apply it in the step that begins now."""
        if self.chosen is not None:
            return self.chosen
        now, step = self._clock(), self._asked - 1  # the number of the step that ends now; -1 at the first call
        self._began = now if step < 0 else self._began
        self._asked += 1
        # The first step of a block is not counted: the caches are still as the other kind of step left them.
        if step >= 0 and step % BLOCK:
            self._seconds[_applies(step)].append(now - self._last)
        self._last = now
        blocks, more = divmod(self._asked - 1, BLOCK)
        is_long = now - self._began > ENOUGH_S and blocks >= LEAST
        if more == 0 and blocks % 2 == 0 and (is_long or blocks >= MOST):
            without, with_it = map(statistics.median, self._seconds)
            self.chosen = with_it < without
            return self.chosen
        return _applies(self._asked - 1)


def _applies(step: int) -> bool:
    return step // BLOCK % 2 == 0
