"""Every allreduce gives every rank the sum: one suite that all algorithms inherit."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddl.collectives import TABLE, allreduce, ring, shared
from ddl.comm.threads import run_ranks
from ddl.errors import UserError
from ddl.kernels.sums import squares

ALGORITHMS = [*TABLE, "auto"]


def parts_of(size, length, dtype, seed=0):
    """Small whole numbers: every order of summation gives the same, exactly."""
    return np.random.default_rng(seed).integers(-9, 10, (size, length)).astype(dtype)


def sums(parts, algorithm, **how):
    def work(group):
        x = parts[group.rank].copy()
        allreduce(x, group, algorithm)
        return x

    return run_ranks(len(parts), work, **how)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("length", [0, 1, 2, 17, 4096])
def test_every_rank_gets_the_sum(algorithm, size, length):
    parts = parts_of(size, length, np.float32)
    for got in sums(parts, algorithm):
        assert np.array_equal(got, parts.sum(axis=0))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_every_dtype(algorithm, dtype):
    parts = parts_of(3, 1000, dtype)
    for got in sums(parts, algorithm):
        assert got.dtype == dtype and np.array_equal(got, parts.sum(axis=0))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=20, deadline=None)
@given(
    nodes=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    length=st.integers(0, 300),
    dtype=st.sampled_from([np.float32, np.float64, np.float16]),
    small=st.sampled_from([64, 256]),
    few_bytes=st.sampled_from([0, 128]),
    can_share=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_topology_length_and_cutting(algorithm, nodes, length, dtype, small, few_bytes, can_share, seed):
    parts = parts_of(len(nodes), length, dtype, seed)
    with (
        mock.patch.object(ring, "SEGMENT_BYTES", small),
        mock.patch.object(shared, "PIECE_BYTES", 2 * small),
        mock.patch.object(shared, "BLOCK_BYTES", small),
        mock.patch.object(shared, "SMALL_BYTES", few_bytes),
    ):
        for got in sums(parts, algorithm, nodes=nodes, can_share=can_share):
            assert np.array_equal(got, parts.sum(axis=0))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("nodes", [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1, 0]])
def test_all_ranks_end_with_the_same_bits(algorithm, nodes):
    parts = np.random.default_rng(1).normal(size=(len(nodes), 999)).astype(np.float32)
    first, *others = sums(parts, algorithm, nodes=nodes)
    assert np.allclose(first, parts.sum(axis=0, dtype=np.float64), atol=1e-5)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_several_sums_in_a_row_do_not_mix(algorithm):
    def work(group):
        found = []
        for k in range(5):
            x = np.full(3000 - 700 * k, group.rank + k, np.float32)
            allreduce(x, group, algorithm)
            found.append(set(x.tolist()))
        return found

    for got in run_ranks(3, work):
        assert got == [{3.0 * k + 3} for k in range(5)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_matrix_is_summed_in_place_and_a_strided_array_is_refused(algorithm):
    def work(group):
        x = np.ones((3, 4), np.float32)
        allreduce(x, group, algorithm)
        with pytest.raises(ValueError, match="contiguous"):
            allreduce(np.ones((4, 4), np.float32)[:, ::2], group, algorithm)
        return x

    for got in run_ranks(2, work):
        assert (got == 2).all()


def test_float16_in_shared_memory_is_rounded_once():
    parts = np.array([[2048.0], [1.0], [1.0]], np.float16)  # 2048 + 1 is 2048 in float16, 2050 is not lost
    for got in sums(parts, "shared"):
        assert got.item() == 2050.0


def test_an_unknown_algorithm_is_named():
    assert isinstance(sums(np.ones((2, 1)), "tree")[0], UserError)


def test_a_ring_of_some_ranks_does_not_involve_the_others():
    def work(group):
        x = np.array([group.rank + 1.0, 0.0])
        if group.rank in (0, 3):
            ring.allreduce(x, group, [3, 0])
        return x[0]

    assert run_ranks(4, work) == [5, 2, 3, 5]


@pytest.mark.parametrize("size", [2, 3])
def test_a_ring_sends_no_more_than_its_share(size):
    """2(n-1)/n of the bytes, counted at the wire."""

    def work(group):
        sent, stream = [], group.stream
        group.stream = lambda outgoing, *rest: (sent.extend(x.nbytes for x in outgoing), stream(outgoing, *rest))
        ring.allreduce(np.ones(60 * size, np.float32), group)
        return sum(sent)

    assert run_ranks(size, work) == [2 * (size - 1) * 240] * size


@given(count=st.integers(0, 500), parts=st.integers(1, 7), itemsize=st.sampled_from([1, 2, 4, 8, 16]))
def test_runs_cover_once_and_cut_on_cache_lines(count, parts, itemsize):
    cuts = shared.runs(count, parts, itemsize)
    assert [i for cut in cuts for i in range(count)[cut]] == list(range(count))
    assert all(cut.start * itemsize % shared.LINE_BYTES == 0 or cut.start == count for cut in cuts)


def test_squares_of_large_numbers_do_not_overflow_but_a_poisoned_element_shows():
    assert squares(np.array([1e30, 1e30], np.float32)) == pytest.approx(2e60, rel=1e-6)
    assert squares(np.array([300.0], np.float16)) == 90000
    for poison in (np.nan, np.inf):
        assert not np.isfinite(squares(np.array([1.0, poison], np.float32)))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 2, 23, 400])
def test_a_ring_fills_its_input_on_demand_and_exactly_once(size, length):
    parts = parts_of(size, length, np.float32)

    def work(group):
        x, written = np.full(length, np.nan, np.float32), []

        def write(part):
            written.extend(range(length)[part])
            x[part] = parts[group.rank][part]

        ring.allreduce(x, group, write=write)
        return x, written

    with mock.patch.object(ring, "SEGMENT_BYTES", 64):
        for got, written in run_ranks(size, work):
            assert np.array_equal(got, parts.sum(axis=0)) and sorted(written) == list(range(length))
