"""Taking arrays out of the processor's caches, before a core writes what another one has read.

A store to a line of which another core holds a copy waits until that copy is gone, and such stores go one after
another: 1 MiB took 100 to 480 us that way on two cores of a Zen 4, by where in memory it lay, and 11 us where nobody
else had read it. Evicting it first, all copies at once, took 40 us, and writing it then 27.

Who writes what others have read is parallel's business."""

from __future__ import annotations

import numpy as np

from ddl.kernels.backend import kernel, runs_compiled


def can_evict(x: np.ndarray) -> bool:
    """Whether the two below do anything with arrays like ``x``: compiled, on x86 with CLFLUSHOPT."""
    if not runs_compiled(x):
        return False
    from ddl.kernels.cache_flush_numba import KNOWS

    return KNOWS


@kernel
def evict(x: np.ndarray, start: int, stop: int) -> None:
    """Write the lines of x[start:stop] back to memory and drop them from all caches; ``x`` (length,) stays as it is.

    What lies beyond the end of ``x`` is left out. Nothing happens where that cannot be done (``can_evict``)."""


@kernel
def evict_rows(x: np.ndarray, start: int, width: int, rows: np.ndarray, first: int, last: int) -> None:
    """The same for some rows of a table of ``width`` columns, which begins at x[start], but for x[first:last].

    rows: (rows of the table,) bytes, 0 for those that stay in the caches."""
