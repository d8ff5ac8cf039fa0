# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""Numba kernels of sparse_rows.py."""

from __future__ import annotations

import numpy as np
from numba import njit

from ddl.kernels.sparse_rows import BLOCK_ROWS
from ddl.kernels.sums_numba import _add, _copy, _squares, _sum, _wide_squares

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**_options)
def _add_run(total, arrays, low):
    """total = the sum of arrays[:, low:low + total.size], added in row order; returns its squared norm."""
    high = low + total.size
    if len(arrays) == 1:
        _copy(total, arrays[0, low:high])
    else:
        _sum(total, arrays[0, low:high], arrays[1, low:high])
    for r in range(2, len(arrays)):
        _add(total, arrays[r, low:high])
    squared = np.float64(_squares(total))
    return squared if np.isfinite(squared) else _wide_squares(total)


@njit(**_options)
def add_touched(out, arrays, start, width, touched, before, me, ranks):
    norm, rows = 0.0, len(touched)
    for block in range(me * BLOCK_ROWS, rows, ranks * BLOCK_ROWS):
        for row in range(block, min(block + BLOCK_ROWS, rows)):
            low = start + row * width
            if touched[row]:
                norm += _add_run(out[low : low + width], arrays, low)
            elif before[row]:
                out[low : low + width] = 0
    return norm


@njit(**_options)
def pack_sums(packed, arrays, start, width, picked, first, last):
    norm, at = 0.0, first
    while at < last:
        row, column = at // width, at % width
        count = min(width - column, last - at)
        norm += _add_run(packed[at : at + count], arrays, start + picked[row] * width + column)
        at += count
    return norm
