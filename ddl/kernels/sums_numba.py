# mypy: disable-error-code="untyped-decorator,no-untyped-def,call-overload"
"""The compiled twins of sums.py.

Elements are added in the order of the rows; only the squared norm may be summed in another order."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ddl.kernels.backend import LINE
from ddl.kernels.simd import pointer

BLOCK = 1024  # elements that are added in the first-level cache before they are written

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@intrinsic
def _stream_line(typingctx, out, a, b, at):
    """out[at:] = a[at:] + b[at:] for the 64 bytes of a cache line, which ``out`` begins, written past the caches."""

    def build(context, builder, signature, arguments):
        def place(k):
            return pointer(context, builder, signature.args[k], arguments[k], arguments[3])

        terms = builder.load(place(1)), builder.load(place(2))
        for term in terms:
            term.align = out.dtype.bitwidth // 8
        written = builder.store(builder.fadd(*terms), place(0))
        written.align = LINE
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(out, a, b, types.intp), build


@intrinsic
def _fence(typingctx):
    """Streamed lines are in memory before anything that follows: other processes are told of them next."""

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


# Reordering a sum keeps NaN and infinity.
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
    step = LINE // out.itemsize
    if count == 1 or (out.ctypes.data + start * out.itemsize) % LINE:
        stream = 0
    block = stream if stream else BLOCK
    kept = np.empty(stream, out.dtype)
    for low in range(start, stop, block):
        high = min(low + block, stop)
        part, first, last = out[low:high], rows[0, low:high], rows[count - 1, low:high]
        whole = (high - low) // step * step if stream else 0
        # All rows but the last are summed where the caches keep it, so that the last sum alone is streamed.
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
            found = np.float64(_squares_of_sum(first, last))
        else:
            found = np.float64(_squares(part))
        norm += found if np.isfinite(found) else _wide_squares(part)
    if stream:
        _fence()
    return norm
