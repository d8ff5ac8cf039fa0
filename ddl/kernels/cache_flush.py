"""Flush arrays from the processor's caches before a core writes memory that another core has read.

A store to a line that another core has cached waits until that copy is invalidated, and such stores are served one
after another: writing 1 MiB took 100 to 480 us that way on two cores of a Zen 4, depending on its address, and 11 us
if no other core had read it. Flushing it first, which invalidates all copies at once, took 40 us, and writing it
then 27 us.

ddl/parallel/sums.py decides what to flush, and whether flushing pays on this machine."""

from __future__ import annotations

import numpy as np

from ddl.kernels.backend import kernel, runs_compiled


def can_flush(x: np.ndarray) -> bool:
    """Whether ``flush`` and ``flush_rows`` have an effect on arrays like ``x``: compiled, on x86 with CLFLUSHOPT."""
    if not runs_compiled(x):
        return False
    from ddl.kernels.cache_flush_numba import HAS_CLFLUSHOPT

    return HAS_CLFLUSHOPT


@kernel
def flush(x: np.ndarray, start: int, stop: int) -> None:
    """Write the cache lines of x[start:stop] back to memory and drop them from all caches; ``x`` keeps its values.

    x: (length,); start and stop are clipped to it. No effect where ``can_flush`` is False."""


@kernel
def flush_rows(x: np.ndarray, start: int, width: int, rows: np.ndarray, first: int, last: int) -> None:
    """Flush the marked rows of a table of ``width`` columns that begins at x[start], but never x[first:last].

    rows: (rows of the table,) bytes; rows marked 0 stay in the caches."""
