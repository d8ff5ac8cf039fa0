"""Faults are swept: kill a rank at its 1st kill point, its 2nd, ...: survivors hold the right sum or PeerLost."""

from itertools import count
from unittest import mock

import numpy as np
import pytest

from ddl.arrays import Layout
from ddl.collectives import TABLE, allreduce, ring, shared
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.errors import PeerLost
from ddl.parallel import GradientSum, SumOptions

LENGTH = 40


def total_of(group):
    return sum(member.identity + 1.0 for member in group.members)


def until_agreed(group, work):
    """Do ``work(group)`` until all survivors have done it; every number on the way must be right."""
    while True:
        try:
            assert np.array_equal(work(group), np.full(LENGTH, total_of(group), np.float32))
            if group.agree(1):
                return total_of(group)
        except PeerLost:
            pass
        group.revoke()
        group = group.shrink()


def summing(algorithm):
    def work(group):
        x = np.full(LENGTH, group.me.identity + 1.0, np.float32)
        allreduce(x, group, algorithm)
        return x

    return lambda group: until_agreed(group, work)


def reducing(overlap):
    layout = Layout.of({"a": (16,), "b": (16,), "c": (8,)})

    def work(group):
        reducer = GradientSum(group, layout, 2, SumOptions(overlap=overlap, bucket_mib=0))
        try:
            reducer.local.flat[:] = reducer.header[:] = group.me.identity + 1.0
            for name in ("c", "b", "a"):
                reducer.announce([name])
            total = reducer.finish()
            assert (total.header == total_of(group)).all()
            assert np.isclose(total.squared_norm, layout.length * total_of(group) ** 2)
            return total.gradient[:LENGTH].copy()
        finally:
            reducer.close()

    return lambda group: until_agreed(group, work)


def sweep(size, job, deaths_at, few_bytes=0, **how):
    """Run ``job`` with the deaths of ``deaths_at(1)``, ``deaths_at(2)``, ... until one run needs them no more."""
    with (
        mock.patch.object(ring, "SEGMENT_BYTES", 32),
        mock.patch.object(shared, "PIECE_BYTES", 128 if not few_bytes else 4 * LENGTH),
        mock.patch.object(shared, "BLOCK_BYTES", 64),
        mock.patch.object(shared, "SMALL_BYTES", few_bytes),
    ):
        for number in count(1):
            deaths = deaths_at(number)
            results = run_ranks(size, job, death=deaths, **how)
            dead = {rank for rank, result in enumerate(results) if isinstance(result, Killed)}
            alive = [rank for rank in range(size) if rank not in dead]
            for rank in alive:  # a rank that died after the agreement is in the sum, and that is right
                assert isinstance(results[rank], float), (deaths, results)
                assert results[rank] >= sum(r + 1.0 for r in alive), (deaths, results)
            assert len({results[rank] for rank in alive}) <= 1, (deaths, results)
            if len(dead) < len(deaths):
                return number


@pytest.mark.parametrize("nodes", [[0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]])
@pytest.mark.parametrize("algorithm", list(TABLE))
def test_a_death_anywhere_never_corrupts_a_sum(algorithm, nodes):
    for victim in range(len(nodes)):
        points = sweep(len(nodes), summing(algorithm), lambda n, v=victim: [Death(v, n)], nodes=nodes)
        assert points > 8


def test_a_death_anywhere_in_a_sum_with_one_barrier():
    def thrice(group):
        for _ in range(2):
            assert np.array_equal(once(group), np.full(LENGTH, total_of(group), np.float32))
        return once(group)

    def once(group):
        x = np.full(LENGTH, group.me.identity + 1.0, np.float32)
        allreduce(x, group, "shared")
        return x

    for victim in range(3):
        sweep(3, lambda g: until_agreed(g, thrice), lambda n, v=victim: [Death(v, n)], few_bytes=4 * LENGTH)


@pytest.mark.parametrize(
    ("overlap", "nodes", "can_share"),
    [("on", [0, 0, 0], True), ("on", [0, 0, 1], True), ("on", [0, 0, 1], False), ("off", [0, 0, 1], True)],
)
def test_a_death_anywhere_in_a_step_never_corrupts_a_gradient(overlap, nodes, can_share):
    for victim in range(3):
        sweep(3, reducing(overlap), lambda n, v=victim: [Death(v, n)], nodes=nodes, can_share=can_share)


@pytest.mark.parametrize("algorithm", ["ring", "shared"])
def test_a_second_death_anywhere_in_the_recovery(algorithm):
    sweep(4, summing(algorithm), lambda n: [Death(1, 9), Death(2, n)])


def test_down_to_one():
    results = run_ranks(5, summing("ring"), death=[Death(rank, 7 + 9 * rank) for rank in range(4)])
    assert [isinstance(result, Killed) for result in results] == [True] * 4 + [False] and results[4] == 5.0
