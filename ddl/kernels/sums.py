"""Adding up the rows of an array, a block at a time, and the squared norm of what comes out.

Whose rows they are, and who adds which part, is collectives' business."""

from __future__ import annotations

import math

import numpy as np

from ddl.kernels.backend import kernel

BLOCK = 1 << 15


@kernel
def add_rows(out: np.ndarray, rows: np.ndarray, start: int, stop: int, stream: int) -> float:
    """out[start:stop] = the sum of rows[:, start:stop], in the order of the rows; returns its squared norm.

    out: (length,), rows: (ranks, length), both of one dtype; float16 is added in float32 and rounded once.
    The norm is not finite exactly when an element of the sum is not; overflow is no error here.
    stream: write past the caches what is more than they hold, so many elements at a time; 0: not (compiled only)."""
    norm = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for low in range(start, stop, BLOCK):
            block = slice(low, min(low + BLOCK, stop))
            total = out[block] if out.dtype != np.float16 else np.zeros(block.stop - low, np.float32)
            if len(rows) == 1:
                total[...] = rows[0, block]
            else:
                np.add(rows[0, block], rows[1, block], out=total, dtype=total.dtype)
            for row in rows[2:]:
                np.add(total, row[block], out=total)
            out[block] = total
            norm += squares(out[block])
    return norm


def squares(x: np.ndarray) -> float:
    """The sum of the squares of ``x`` (length,); in float64 where large numbers would overflow."""
    if x.dtype == np.float16:
        x = x.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(x.dot(x))
        if not math.isfinite(found):
            wide = x.astype(np.float64)
            found = float(wide.dot(wide))
    return found
