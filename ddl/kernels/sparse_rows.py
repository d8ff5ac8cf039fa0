"""Sparse rows: arrays (rows, width) of which a step writes only a few rows, such as the gradient of an embedding.

A layer's backward names the rows (``TouchedRows``); ddl/parallel decides whether to sum only those."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddl.arrays.namespace import Array
from ddl.kernels.backend import kernel
from ddl.kernels.sums import squares

BLOCK_ROWS = 16  # consecutive rows summed by the same rank; 16 rows of any width end on a cache line


@dataclass(frozen=True, eq=False)
class TouchedRows:
    """What backward yields instead of a gradient's name to promise that the gradient is zero outside of ``rows``.

    rows: row numbers in an integer array of any shape; repeats are allowed. As text it is the plain name, so code that
    only needs names formats it like any other, which drops the promise."""

    name: str
    rows: Array

    def __str__(self) -> str:
        return self.name

    def below(self, scope: str) -> TouchedRows:
        """The same gradient under the name it has in the layer that contains this one as ``scope``."""
        return TouchedRows(f"{scope}.{self.name}", self.rows)


def summing_rank(rows: int, ranks: int) -> np.ndarray:
    """(rows,) the local rank for which ``add_touched`` sums each row: blocks of rows, dealt out round-robin."""
    return np.asarray(np.arange(rows) // BLOCK_ROWS % ranks)


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
    """Replace rank ``me``'s share of the table in ``out`` by the sum over ``arrays``; returns its squared norm.

    out: (length,), arrays: (ranks, length); the table (rows, width) begins at ``start`` in each. touched: (rows,)
    bytes, 0 for rows that are zero in all arrays; before: the same for what ``out`` still holds from the last sum.
    The ranks share the rows as ``summing_rank`` says. Rows are added in the same order as in ``add_rows``."""
    mine = summing_rank(len(touched), ranks) == me
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
    """packed[first:last] = those elements of the sums of the ``picked`` rows; returns their squared norm.

    packed: (at least len(picked) * width,), the picked rows one after another. The other arguments are as in
    ``add_touched``. first and last may cut a row: ranks share the elements evenly, whatever the width."""
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
