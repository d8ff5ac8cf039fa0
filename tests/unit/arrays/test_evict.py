"""Flushing cache lines changes no values; it covers exactly the named rows and leaves the kept ones alone."""

import importlib
import subprocess
import sys

import numpy as np
import pytest

from ddl.kernels.cache_flush import flush, flush_rows


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 4096), (5, 6), (3, 999), (4095, 4096), (9, 3)])
def test_flushing_changes_no_values(rng, dtype, compiled, start, stop):
    x, wanted = (rng.integers(-9, 9, 4096).astype(dtype) for _ in range(2))
    x[...] = wanted
    (flush if compiled else flush.plain)(x, start, stop)
    assert np.array_equal(x, wanted)
    x[start:stop] += 1  # from memory, and back
    (flush_rows if compiled else flush_rows.plain)(x, start, 3, np.ones(7, np.uint8), 2, 9)
    wanted[start:stop] += 1
    assert np.array_equal(x, wanted)


def test_the_kernel_contains_the_instruction_if_the_processor_has_it():
    numba = pytest.importorskip("numba")
    compiled_kernels = importlib.import_module("ddl.kernels.cache_flush_numba")
    found = numba.njit(compiled_kernels.flush.py_func)
    found(np.zeros(64, np.float32), 0, 64)
    (code,) = found.inspect_asm().values()
    assert ("clflushopt" in code) is compiled_kernels.HAS_CLFLUSHOPT


@pytest.mark.parametrize("first", range(0, 14, 3))
@pytest.mark.parametrize("last", range(0, 20, 4))
def test_kept_rows_are_not_flushed(monkeypatch, first, last):
    pytest.importorskip("numba")
    compiled_kernels = importlib.import_module("ddl.kernels.cache_flush_numba")
    reached = np.zeros(20, int)

    def mark(x, start, stop):
        reached[start : max(start, stop)] += 1

    monkeypatch.setattr(compiled_kernels, "flush", mark)
    rows = np.array([1, 0, 1, 1, 0], np.uint8)
    last = max(first, last)
    compiled_kernels.flush_rows.py_func(np.zeros(20, np.float32), 2, 3, rows, first, last)
    wanted = np.zeros(20, int)
    wanted[2:17] = rows.repeat(3)
    wanted[first:last] = 0
    assert np.array_equal(reached, wanted)


def test_nothing_beyond_the_end_is_touched():
    """The page after an array may be unmapped."""
    program = """
import mmap, ctypes, numpy as np
from ddl.kernels.cache_flush import flush, flush_rows
memory = mmap.mmap(-1, 8192)
whole = np.frombuffer(memory, np.float32)
ctypes.CDLL(None).mprotect(ctypes.c_void_p(whole.ctypes.data + 4096), 4096, 0)
x = whole[:1024]
flush(x, 1000, 2048)
flush_rows(x, 1000, 16, np.ones(9, np.uint8), 0, 0)
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n", done.stderr
