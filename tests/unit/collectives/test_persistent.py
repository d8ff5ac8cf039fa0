"""The same arrays summed again and again: right at every call, wherever they lie."""

from unittest import mock

import numpy as np
import pytest

from ddl.collectives import TABLE, PersistentAllreduce, ring
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.errors import PeerLost

NODES = [[0], [0, 0], [0, 0, 0], [0, 1], [0, 0, 1, 1], [0, 1, 1, 0, 1]]


def again_and_again(group, length, calls=4, dtype=np.float32, algorithm="auto"):
    """Whole numbers that differ by rank and call; the sums, and whether ``local`` outlived each."""
    ours = PersistentAllreduce(group, length, dtype, algorithm)
    found, kept = [], []
    for number in range(calls):
        mine = np.arange(length) % 5 + group.rank * number
        ours.local[:] = mine
        ours.run()
        found.append(ours.result.copy())
        kept.append(ours.result is ours.local or np.array_equal(ours.local, mine))
    return found, kept


@pytest.mark.parametrize("nodes", NODES, ids=str)
@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("algorithm", ["auto", *TABLE])
@pytest.mark.parametrize(("length", "dtype"), [(1, np.float64), (3000, np.float32), (40_000, np.float32)])
def test_every_call_gives_every_rank_the_sum(nodes, can_share, algorithm, length, dtype):
    size = len(nodes)
    results = run_ranks(
        size, lambda g: again_and_again(g, length, 4, dtype, algorithm), nodes=nodes, can_share=can_share
    )
    for found, kept in results:
        assert all(kept)
        for number, got in enumerate(found):
            assert got.dtype == dtype
            assert np.array_equal(got, np.arange(length) % 5 * size + number * size * (size - 1) // 2)


@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 0, 1, 1]], ids=str)
def test_all_ranks_read_the_same_bits(nodes):
    def work(group):
        ours = PersistentAllreduce(group, 30_000)
        ours.local[:] = np.random.default_rng(group.rank).normal(size=30_000)
        ours.run()
        return ours.result.copy()

    first, *others = run_ranks(len(nodes), work, nodes=nodes)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(("nodes", "algorithm"), [([0, 0, 0], "shared"), ([0, 0, 1, 1], "hierarchical")], ids=str)
def test_a_death_anywhere_never_corrupts_a_sum(nodes, algorithm):
    size, length = len(nodes), 40

    def work(group):
        try:
            ours = PersistentAllreduce(group, length, algorithm=algorithm)
            for number in range(3):
                ours.local[:] = group.rank + number
                ours.run()
                assert (ours.result == size * (size - 1) / 2 + size * number).all()
        except PeerLost:
            group.revoke()
        return "right"

    with mock.patch.object(ring, "SEGMENT_BYTES", 32):
        for victim in range(size):
            for count in range(1, 200):
                results = run_ranks(size, work, nodes=nodes, death=Death(victim, count))
                assert all(got == "right" or isinstance(got, Killed) for got in results), (victim, count, results)
                if results[victim] == "right":
                    break
            else:
                raise AssertionError("the job never ends")
