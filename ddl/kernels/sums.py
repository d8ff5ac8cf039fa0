"""Sum the rows of an array block by block, and compute the squared norm of the result.

The collectives decide what the rows hold and which rank sums which part."""

from __future__ import annotations

import math

import numpy as np

from ddl.kernels.backend import kernel

BLOCK = 1 << 15  # elements: the block and its norm are computed while the block is in the cache


@kernel
def add_rows(out: np.ndarray, rows: np.ndarray, start: int, stop: int, stream: int) -> float:
    """out[start:stop] = the sum of rows[:, start:stop], added in row order; returns the squared norm of the sum.

    out: (length,), rows: (ranks, length), of the same dtype; float16 is added in float32 and rounded once.
    The norm is finite exactly when every element of the sum is finite; overflow raises no error or warning.
    stream: elements per block written with non-temporal stores, which bypass the caches; 0: ordinary stores.
    Only the compiled kernel streams."""
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
    """The sum of the squares of ``x`` (length,), recomputed in float64 if it overflows."""
    if x.dtype == np.float16:
        x = x.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(x.dot(x))
        if not math.isfinite(total):
            wide = x.astype(np.float64)
            total = float(wide.dot(wide))
    return total
