"""Threads fulfil the contract of a Group: data arrives unchanged, and a death raises PeerLost instead of blocking."""

import os

import numpy as np
import pytest

from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import alone, run_ranks
from ddl.errors import CommError, JobEnded, PeerLost


@pytest.mark.parametrize("size", [2, 3, 5])
def test_exchange_around_a_circle_moves_every_array_one_on(size):
    def shift(group):
        incoming = np.empty(4)
        after, before = (group.rank + 1) % size, (group.rank - 1) % size
        group.exchange(np.full(4, group.rank, float), after, incoming, before)
        return incoming.tolist()

    assert run_ranks(size, shift) == [[(rank - 1) % size] * 4 for rank in range(size)]


def test_a_send_delivers_the_data_as_it_was_when_sent():
    def talk(group):
        x = np.arange(3.0) if group.rank == 0 else np.zeros(3)
        if group.rank == 0:
            group.send(x, 1)
            x[:] = 9
        else:
            group.receive(x, 0)
        group.barrier()
        return x.tolist()

    assert run_ranks(2, talk)[1] == [0, 1, 2]


def test_two_sends_that_rely_on_buffering_raise_an_error():
    def both_send(group):
        group.send(np.zeros(1), 1 - group.rank)

    assert any(isinstance(r, CommError) for r in run_ranks(2, both_send, wait_limit_s=0.1))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_collectives(size):
    def talk(group):
        x = np.full(3, group.rank + 1)
        group.native_allreduce(x)
        y = np.full(2, group.rank)
        group.broadcast(y, size - 1)
        return x.tolist(), y.tolist(), group.gather_objects({"rank": group.rank}), group.agree(0b110 | group.rank)

    total = [size * (size + 1) // 2] * 3
    everyone = [{"rank": rank} for rank in range(size)]
    common = int(np.bitwise_and.reduce([0b110 | rank for rank in range(size)]))
    assert run_ranks(size, talk) == [(total, [size - 1] * 2, everyone, common)] * size


def test_memory_is_shared_by_the_ranks_of_a_node_only():
    def write(group):
        memory = group.share(8, 8)
        memory.slots[group.local_ranks.index(group.rank)] = group.rank
        group.node_barrier()
        return memory.slots[:, 0].tolist()

    assert run_ranks(5, write, nodes=[0, 1, 0, 1, 1]) == [[0, 2], [1, 3, 4], [0, 2], [1, 3, 4], [1, 3, 4]]


def test_where_memory_cannot_be_shared_every_rank_gets_none():
    assert run_ranks(3, lambda group: group.share(8, 8), can_share=False) == [None] * 3


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot pin threads to cores")
def test_ranks_with_a_death_share_one_core_and_the_affinity_is_restored():
    before = os.sched_getaffinity(0)
    assert run_ranks(2, lambda group: os.sched_getaffinity(0)) == [before] * 2
    one, other = run_ranks(2, lambda group: os.sched_getaffinity(0), death=Death(0, 1))
    assert one == other and len(one) == 1 and one <= before
    assert os.sched_getaffinity(0) == before


def test_spares_sleep_until_they_are_released_and_agree_with_the_rest():
    def live(group):
        if group.is_spare:
            group.wait_as_spare()
        elif group.is_leader:
            group.release_spares()
        return group.rank, group.size, group.agree(5 if group.is_spare else 7)

    assert run_ranks(2, live, spares=2) == [(rank, 2, 5) for rank in range(4)]


def test_a_spare_steps_in_for_the_dead():
    def live(group):
        try:
            if group.is_spare:
                group.wait_as_spare()
            for _ in range(9):
                group.barrier()
        except PeerLost:
            group.revoke()
            group = group.shrink()
        x = np.ones(1)
        group.native_allreduce(x)
        return group.size, group.generation, [m.identity for m in group.members], x.item()

    results = run_ranks(2, live, spares=1, death=Death(rank=0, count=5))
    assert isinstance(results[0], Killed)
    assert results[1:] == [(2, 1, [1, 2], 2.0)] * 2


def test_a_death_is_seen_only_by_waiting_peers_until_a_member_revokes():
    def live(group):
        if group.rank == 0:
            with pytest.raises(PeerLost) as lost:
                group.receive(np.zeros(1), 2)
            group.revoke()
        else:
            with pytest.raises(PeerLost) as lost:
                group.receive(np.zeros(1), 0)  # 0 lives, and sends nothing: only the revocation ends this
        return lost.value.ranks, lost.value.generation

    results = run_ranks(3, live, death=Death(rank=2, count=1))
    assert results[0] == ([2], 0) and results[1][1] == 0


def test_agreement_is_zero_for_all_when_a_member_died():
    results = run_ranks(3, lambda group: group.agree(7), death=Death(rank=1, count=1, point="job.agree"))
    assert results[0] == results[2] == 0 and isinstance(results[1], Killed)


def test_shrink_keeps_order_and_can_turn_workers_into_spares():
    def live(group):
        try:
            group.barrier()
            group.barrier()
        except PeerLost:
            pass
        group.revoke()
        group = group.shrink(workers=2)
        return group.rank, group.size, [m.identity for m in group.members]

    results = run_ranks(4, live, death=Death(rank=1, count=1))
    assert [results[r] for r in (0, 2, 3)] == [(0, 2, [0, 2, 3]), (1, 2, [0, 2, 3]), (2, 2, [0, 2, 3])]


def test_kill_points_are_named_by_use_and_call():
    passed = []
    run_ranks(1, lambda group: group.barrier(), probe=lambda rank: passed.append)
    assert passed == ["job.barrier", "job.barrier.done"]


def test_a_rank_that_returned_is_not_waited_for():
    results = run_ranks(2, lambda group: group.receive(np.zeros(1), 1) if group.rank == 0 else None)
    assert isinstance(results[0], PeerLost)


def test_a_message_of_another_size_is_refused():
    def talk(group):
        group.send(np.zeros(3), 1) if group.rank == 0 else group.receive(np.zeros(2), 0)

    assert isinstance(run_ranks(2, talk)[1], CommError)


def test_a_single_rank_needs_no_peers():
    group = alone()
    x = np.ones(3)
    group.native_allreduce(x)
    group.barrier()
    assert (group.rank, group.size, group.tolerant, group.is_leader) == (0, 1, False, True) and x.sum() == 3


def job_that_one_rank_ends(group):
    """Rank 1 ends the job in its third step; the others recover from any failure until they learn of it."""
    step = 0
    while True:
        try:
            while step < 5:
                group.barrier()
                step += 1
                if group.me.identity == 1 and step == 3:
                    group.end_job(2)
                    return 2
            if group.agree(1):
                return 0
        except PeerLost:
            pass
        except JobEnded as end:
            return end.exit_status
        group.revoke()
        try:
            group = group.shrink()
        except JobEnded as end:
            return end.exit_status


def test_one_rank_can_end_the_job_of_all():
    assert run_ranks(4, job_that_one_rank_ends) == [2] * 4


@pytest.mark.parametrize("victim", [0, 2])
def test_the_end_reaches_all_survivors_of_any_death(victim):
    for count in range(1, 40):
        results = run_ranks(3, job_that_one_rank_ends, death=Death(victim, count))
        assert (
            all(isinstance(r, Killed) if rank == victim else r == 2 for rank, r in enumerate(results))
            or results == [2] * 3
        )
