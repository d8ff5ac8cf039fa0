# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""The compiled twins of evict.py."""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ddl.kernels.backend import LINE
from ddl.kernels.simd import pointer

# What this process compiles for, not what the processor has: the compiler aborts on an instruction beyond that.
KNOWS = "+clflushopt" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")
_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@intrinsic
def _evict_line(typingctx, x, at):
    """The line in which x[at] lies. Later loads and stores of it see what was in it."""

    def build(context, builder, signature, arguments):
        if KNOWS:
            place = pointer(context, builder, signature.args[0], arguments[0], arguments[1], ir.IntType(8))
            name = "llvm.x86.clflushopt"
            flush = builder.module.globals.get(name)
            if flush is None:
                flush = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [place.type]), name)
            builder.call(flush, [place])
        return context.get_dummy_value()

    return types.void(x, types.intp), build


@njit(**_options)
def evict(x, start, stop):
    step, first, last = LINE // x.itemsize, max(start, 0), min(stop, x.size)
    if first < last:
        _evict_line(x, first)
        first += step - (x.ctypes.data + first * x.itemsize) % LINE // x.itemsize
    for i in range(first, last, step):
        _evict_line(x, i)


@njit(**_options)
def evict_rows(x, start, width, rows, first, last):
    for row in range(rows.size):
        if rows[row]:
            low = start + row * width
            high = low + width
            evict(x, low, min(high, first))
            evict(x, max(low, last), high)
