"""Adding rows: plain and compiled give the same bits, streamed or not, wherever the slice lies."""

import numpy as np
import pytest

from ddl.kernels.sums import add_rows, squares


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("stream", [0, 1024, 2048])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 5), (16, 3000), (3, 70), (0, 2048)])
def test_rows_are_added_in_their_order(dtype, stream, count, start, stop):
    rows = np.random.default_rng(1).standard_normal((count, 3001)).astype(dtype)
    found = {}
    for way in (add_rows, add_rows.plain):
        memory = np.full(3001 + 64, 7, dtype)
        first = (-memory.ctypes.data % 64) // memory.itemsize
        out = memory[first : first + 3001]
        norm = way(out, rows, start, stop, stream)
        expected = np.zeros(stop - start, dtype if dtype != "float16" else "float32")
        for row in rows:
            expected = expected + row[start:stop]
        assert np.array_equal(out[start:stop], expected.astype(dtype))
        assert (out[:start] == 7).all() and (out[stop:] == 7).all()
        assert norm == pytest.approx(float((out[start:stop].astype(np.float64) ** 2).sum()), rel=1e-3)
        found[way] = out
    assert np.array_equal(found[add_rows], found[add_rows.plain])


@pytest.mark.parametrize("way", [add_rows, add_rows.plain])
@pytest.mark.parametrize("stream", [0, 1024, 2048])
def test_the_norm_shows_a_poisoned_element_and_no_large_one(way, stream):
    out = np.zeros(4096, np.float32)
    rows = np.full((2, 4096), 1e25, np.float32)
    assert way(out, rows, 0, 4096, stream) == pytest.approx(4096 * 4e50, rel=1e-3)
    for poison in (np.nan, np.inf, -np.inf):
        rows[1, 100] = poison
        assert not np.isfinite(way(out, rows, 0, 4096, stream))
    rows[:] = 3e38  # finite, but not their sum
    assert not np.isfinite(way(out, rows, 0, 4096, stream))
    assert squares(np.array([3e30], np.float32)) == pytest.approx(9e60, rel=1e-3)
