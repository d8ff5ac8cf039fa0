# mypy: disable-error-code="untyped-decorator,no-untyped-def,call-overload"
"""Numba kernels of sums.py.

Elements are added in row order, so the sums equal NumPy's bit for bit; only the squared norm is summed in any order."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ddl.kernels.backend import LINE
from ddl.kernels.simd import pointer

BLOCK = 1024  # elements: a block of partial sums stays in the first-level cache

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@intrinsic
def _stream_line(typingctx, out, a, b, at):
    """out[at:] = a[at:] + b[at:] for one cache line (64 bytes), written with a non-temporal store.

    out[at] must be the first element of a cache line; ``a`` and ``b`` may be aligned to elements only."""

    def build(context, builder, signature, arguments):
        def address(k):
            return pointer(context, builder, signature.args[k], arguments[k], arguments[3])

        terms = builder.load(address(1)), builder.load(address(2))
        for term in terms:
            term.align = out.dtype.bitwidth // 8
        written = builder.store(builder.fadd(*terms), address(0))
        written.align = LINE
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(out, a, b, types.intp), build


@intrinsic
def _memory_fence(typingctx):
    """Order non-temporal stores before all later ones, such as the flag of the barrier that follows.

    Without it another process could pass the barrier and still read the old values."""

    def build(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), build


@njit(**_options)
def _copy(total, row):
    for i in range(total.size):
        total[i] = row[i]


@njit(**_options)
def _sum(total, a, b):
    for i in range(total.size):
        total[i] = a[i] + b[i]


@njit(**_options)
def _add(total, row):  # not _sum(total, total, row), whose arrays overlap: no vectors there
    for i in range(total.size):
        total[i] += row[i]


# Reordering allows vector instructions. NaN and infinity still reach the norm: fast-math may not assume them away.
@njit(**_options, fastmath={"reassoc", "contract", "nsz"})
def _squares(x):
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i] * x[i]
    return total


@njit(**_options, fastmath={"reassoc", "contract", "nsz"})
def _squares_of_sum(a, b):
    total = a.dtype.type(0)
    for i in range(a.size):
        value = a[i] + b[i]
        total += value * value
    return total


@njit(**_options)
def _wide_squares(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@njit(**_options)
def add_rows(out, rows, start, stop, stream):
    count, norm = len(rows), 0.0
    # A non-temporal store needs an aligned address, and a copy of one row has no sum to fuse it with.
    step = LINE // out.itemsize
    if count == 1 or (out.ctypes.data + start * out.itemsize) % LINE:
        stream = 0
    block = stream if stream else BLOCK
    kept = np.empty(stream, out.dtype)
    for low in range(start, stop, block):
        high = min(low + block, stop)
        part, first, last = out[low:high], rows[0, low:high], rows[count - 1, low:high]
        whole = (high - low) // step * step if stream else 0
        # All rows but the last are summed into a cached buffer; only the addition of the last row is streamed.
        total = kept[: high - low] if whole else part
        summed = count - 1 if whole else count
        if count == 1:
            _copy(part, first)
        elif summed > 1:
            _sum(total, first, rows[1, low:high])
            first = total
        for r in range(2, summed):
            _add(total, rows[r, low:high])
        if whole:
            for i in range(0, whole, step):
                _stream_line(part, first, last, i)
            for i in range(whole, high - low):
                part[i] = first[i] + last[i]
            squared = np.float64(_squares_of_sum(first, last))
        else:
            squared = np.float64(_squares(part))
        norm += squared if np.isfinite(squared) else _wide_squares(part)
    if stream:
        _memory_fence()
    return norm
