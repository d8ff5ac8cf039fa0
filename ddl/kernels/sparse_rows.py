"""Tables: arrays of (rows, width) of which a step touches few rows, such as the gradient of an embedding.

Which rows those are is said with the gradient's name (``InRows``); what is made of it is parallel's business."""

from __future__ import annotations

import numpy as np

from ddl.arrays.namespace import Array
from ddl.kernels.backend import kernel
from ddl.kernels.sums import squares

BLOCK_ROWS = 16  # so many, one after another, are one rank's: they end on cache lines


class InRows(str):
    """The name of a gradient that is zero outside of ``rows``: row numbers in an array of any shape, repeats allowed.

    What is built from it as from any str is a plain name, and says nothing about rows."""

    rows: Array

    def __new__(cls, name: str, rows: Array) -> InRows:
        made = super().__new__(cls, name)
        made.rows = rows
        return made

    def below(self, scope: str) -> InRows:
        """The same gradient, seen from outside."""
        return InRows(f"{scope}.{self}", self.rows)


def in_turn(rows: int, ranks: int) -> np.ndarray:
    """(rows,) which of a node's ranks ``add_touched`` has each row summed by: blocks of rows are theirs in turn."""
    found: np.ndarray = np.arange(rows) // BLOCK_ROWS % ranks
    return found


@kernel
def add_touched(
    out: np.ndarray,
    arrays: np.ndarray,
    start: int,
    width: int,
    touched: np.ndarray,
    before: np.ndarray,
    me: int,
    ranks: int,
) -> float:
    """The table in ``out`` becomes the sum of those in ``arrays``, as far as it is ``me``'s share; its squared norm.

    out: (length,), arrays: (ranks, length); the table begins at ``start`` in each. touched: (rows,) bytes, 0 where all
    of them are zero; before: likewise, of what ``out`` still holds. Blocks of rows are the ranks' in turn. Additions
    are those of ``add_rows``."""
    mine = in_turn(len(touched), ranks) == me
    table = out[start : start + len(touched) * width].reshape(-1, width)
    table[mine & (touched == 0) & (before != 0)] = 0
    picked = np.flatnonzero(mine & (touched != 0))
    total = np.empty(len(picked) * width, out.dtype)
    norm = pack_sums(total, arrays, start, width, picked, 0, total.size)
    table[picked] = total.reshape(-1, width)
    return float(norm)


@kernel
def pack_sums(
    packed: np.ndarray, arrays: np.ndarray, start: int, width: int, picked: np.ndarray, first: int, last: int
) -> float:
    """packed[first:last] = the sums of those elements of the ``picked`` rows; their squared norm.

    packed: (at least len(picked) * width,), row by row; the rest is as in ``add_touched``."""
    if first >= last:
        return 0.0
    low = first // width
    rows = picked[low : -(-last // width)]
    stop = start + (int(rows.max()) + 1) * width
    chosen = arrays[:, start:stop].reshape(len(arrays), -1, width)[:, rows]
    with np.errstate(over="ignore", invalid="ignore"):
        total = chosen[0].astype(np.float32 if packed.dtype == np.float16 else packed.dtype)
        for term in chosen[1:]:
            total += term
        packed[first:last] = total.reshape(-1)[first - low * width : last - low * width]
        return squares(packed[first:last])
