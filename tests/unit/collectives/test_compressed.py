"""Sums between nodes in few bytes: nothing is lost, only late, and every rank gets the same bits."""

import numpy as np
import pytest

from ddl.collectives.compressed import CompressedSum
from ddl.comm.threads import run_ranks
from ddl.kernels.wire import WIRES


def part(rank, step, length):
    """A multiple of 1/64 below 512: exact in sums of float32, but not in the short forms."""
    return np.random.default_rng([rank, step]).integers(-32767, 32768, length).astype(np.float32) / 64


@pytest.mark.parametrize("length", [1, 100, 70_000])
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("name", sorted(WIRES))
def test_what_was_summed_and_what_is_left_equal_all_parts(name, size, length):
    steps = 3 if length < 1000 else 1

    def work(group):
        total = CompressedSum(group, range(size), length, WIRES[name])
        summed = np.zeros(length)
        for step in range(steps):
            x = part(group.rank, step, length)
            total.run(x)
            total.settle(True)
            summed += x
        return summed, total.error

    results = run_ranks(size, work)
    assert all(np.array_equal(results[0][0], summed) for summed, _ in results)
    left = sum(error.astype(np.float64) for _, error in results)
    assert left.any() or length == 1
    want = sum(part(rank, step, length).astype(np.float64) for rank in range(size) for step in range(steps))
    assert np.array_equal(results[0][0] + left, want)


def test_a_step_that_is_not_committed_leaves_the_error_as_it_was():
    def work(group):
        total = CompressedSum(group, [0, 1], 50, WIRES["int8"])
        found = []
        for step, committed in enumerate([True, False, True]):
            x = part(group.rank, step, 50)
            if not committed:
                x[7] = np.nan
            total.run(x)
            total.settle(committed)
            found.append(total.error.copy())
        return found

    for first, second, third in run_ranks(2, work):
        assert np.array_equal(first, second) and not np.array_equal(second, third) and np.isfinite(third).all()


@pytest.mark.parametrize("size", [2, 4])
def test_each_rank_sends_its_share_of_a_quarter_of_the_bytes(size):
    def work(group):
        sent, stream = [], group.stream
        group.stream = lambda outgoing, *rest: (sent.extend(x.nbytes for x in outgoing), stream(outgoing, *rest))
        CompressedSum(group, range(size), 3200 * size, WIRES["int8"]).run(np.ones(3200 * size, np.float32))
        return sum(sent)

    assert run_ranks(size, work) == [2 * (size - 1) * 3300] * size
