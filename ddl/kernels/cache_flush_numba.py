# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""Numba kernels of cache_flush.py."""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ddl.kernels.backend import LINE
from ddl.kernels.simd import pointer

# The features Numba compiles for, not those of the processor: LLVM aborts on an instruction outside its target.
HAS_CLFLUSHOPT = "+clflushopt" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")
_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@intrinsic
def _flush_line(typingctx, x, at):
    """Flush the cache line that holds x[at]; later loads read the same values from memory."""

    def build(context, builder, signature, arguments):
        if HAS_CLFLUSHOPT:
            address = pointer(context, builder, signature.args[0], arguments[0], arguments[1], ir.IntType(8))
            name = "llvm.x86.clflushopt"
            function = builder.module.globals.get(name)
            if function is None:
                function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [address.type]), name)
            builder.call(function, [address])
        return context.get_dummy_value()

    return types.void(x, types.intp), build


@njit(**_options)
def flush(x, start, stop):
    step, first, last = LINE // x.itemsize, max(start, 0), min(stop, x.size)
    if first < last:
        _flush_line(x, first)
        # Continue at the start of the next cache line: one flush per line suffices from there.
        first += step - (x.ctypes.data + first * x.itemsize) % LINE // x.itemsize
    for i in range(first, last, step):
        _flush_line(x, i)


@njit(**_options)
def flush_rows(x, start, width, rows, first, last):
    for row in range(rows.size):
        if rows[row]:
            low = start + row * width
            high = low + width
            flush(x, low, min(high, first))
            flush(x, max(low, last), high)
