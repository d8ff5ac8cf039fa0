"""The same claims as over threads, over MPI, at any number of ranks."""

import os
import tracemalloc

import numpy as np
import pytest

from ddl.arrays import Layout
from ddl.collectives import TABLE, PersistentAllreduce, allreduce, ring, shared
from ddl.comm import mpi
from ddl.errors import CommError
from ddl.parallel import Backward, GradientSum, SumOptions, reducer

pytestmark = pytest.mark.mpi
ALGORITHMS = [*TABLE, "auto"]


def parts_of(group, length, dtype=np.float32):
    return np.random.default_rng(length).integers(-9, 10, (group.size, length)).astype(dtype)


def check_sum(group, length, algorithm, dtype=np.float32):
    parts = parts_of(group, length, dtype)
    x = parts[group.rank].copy()
    allreduce(x, group, algorithm)
    assert np.array_equal(x, parts.sum(axis=0))


def test_members_know_each_other(group):
    assert group.me.pid == os.getpid() and len(group.members) == group.size
    assert group.gather_objects(group.rank) == list(range(group.size))
    assert sorted(rank for ranks in group.nodes for rank in ranks) == list(range(group.size))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("length", [0, 1, 3, 1000, 300_000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_rank_gets_the_sum(group, algorithm, length, dtype):
    check_sum(group, length, algorithm, dtype)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("length", [6, 7, 8, 100, 333])
def test_messages_above_the_limit_go_in_chunks(group, small_messages, algorithm, length):
    check_sum(group, length, algorithm)


def test_exchange_of_unequal_lengths_in_chunks(group, small_messages):
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    incoming = np.zeros(10 * before)
    group.exchange(np.full(10 * group.rank, group.rank, float), after, incoming, before)
    assert (incoming == before).all()


def test_broadcast_send_receive_and_agree(group, small_messages):
    x = np.full(20, group.rank, np.float32)
    group.broadcast(x, group.size - 1)
    assert (x == group.size - 1).all()
    if group.size > 1 and group.rank < 2:
        y = np.full(20, 5.0) if group.rank == 0 else np.zeros(20)
        group.send(y, 1) if group.rank == 0 else group.receive(y, 0)
        assert (y == 5).all()
    expected = np.bitwise_and.reduce([8 | rank for rank in range(group.size)])
    assert group.agree(8 | group.rank) == expected


def test_memory_is_shared_and_leaves_no_descriptor_behind(group):
    before = len(os.listdir("/proc/self/fd"))
    memory = group.share(1000, 100)
    if group.size == 1 and not isinstance(group, mpi.MpiGroup):
        return
    place = group.local_ranks.index(group.rank)
    memory.slots[place, :1000] = group.rank
    group.node_barrier()
    assert [row[999] for row in memory.slots] == group.local_ranks
    group.node_barrier()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the mapping keeps one descriptor open
    memory.close()


@pytest.mark.parametrize("who", ["first", "last"])
def test_if_one_rank_cannot_map_memory_all_ranks_know(group, monkeypatch, who):
    if group.size == 1:
        pytest.skip("a single rank has no peers")

    def full(*_):
        raise OSError("no space")

    if group.rank == (0 if who == "first" else group.size - 1):
        monkeypatch.setattr("ddl.comm.shared_memory.create", full)
        monkeypatch.setattr("ddl.comm.shared_memory.open_of", full)
    assert group.share(100, 100) is None


@pytest.mark.parametrize("overlap", ["auto", "on", "off"])
@pytest.mark.parametrize("algorithm", ["auto", "ring", "native"])
def test_gradients_headers_and_norms(group, overlap, algorithm):
    layout = Layout.of({"w1": (64, 128), "b1": (128,), "w2": (128, 10), "b2": (10,)})
    reducer = GradientSum(group, layout, 6, SumOptions(algorithm, 0.001, overlap))
    for step in range(20):
        for name in reversed(list(layout.shapes)):
            reducer.local[name][...] = group.rank + step
            reducer.announce([name])
        reducer.header[:] = group.rank
        total = reducer.finish()
        ranks = sum(range(group.size))
        expected = ranks + step * group.size
        for view in layout.views(total.gradient).values():
            assert (view == expected).all()
        assert (total.header == ranks).all()
        assert total.squared_norm == pytest.approx(expected**2 * layout.size, rel=1e-5)
    reducer.close()


@pytest.fixture
def two_nodes(group):
    """The same processes as if even and odd ranks lived on two machines."""
    if group.size < 2:
        pytest.skip("two nodes need two ranks")
    from mpi4py import MPI

    me = mpi.this_process(group.rank, node=f"node {group.rank % 2}")
    split = mpi.MpiGroup(MPI, MPI.COMM_WORLD.Dup(), me, group.size, 0, False, group.probe)
    yield split
    split.close()


@pytest.mark.parametrize("algorithm", ["ring", "hierarchical", "native", "auto"])
def test_sums_over_two_nodes(two_nodes, monkeypatch, algorithm):
    monkeypatch.setattr(ring, "SEGMENT_BYTES", 4000)
    monkeypatch.setattr(shared, "PIECE_BYTES", 64 << 10)
    for length in (1, 100, 50_000):
        check_sum(two_nodes, length, algorithm)


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_gradients_over_two_nodes(two_nodes, overlap):
    test_gradients_headers_and_norms(two_nodes, overlap, "auto")


@pytest.mark.parametrize("algorithm", ["auto", "ring"])
@pytest.mark.parametrize("length", [1, 5000, 300_000])
def test_the_same_memory_again_and_again(group, algorithm, length):
    ours = PersistentAllreduce(group, length, algorithm=algorithm)
    for step in range(5):
        ours.local[:] = group.rank + step
        ours.run()
        assert (ours.result == sum(range(group.size)) + group.size * step).all()


@pytest.mark.parametrize("length", [5000, 300_000])
def test_the_same_memory_again_and_again_over_two_nodes(two_nodes, length):
    test_the_same_memory_again_and_again(two_nodes, "auto", length)


@pytest.mark.parametrize("algorithm", ["auto", "ring", "native"])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_rows_of_a_table(group, monkeypatch, algorithm, share):
    monkeypatch.setattr(reducer, "SPARSE_BYTES", 0)
    layout = Layout.of({"table": (4000, 5), "rest": (9,)})
    total = GradientSum(group, layout, 1, SumOptions(algorithm), Backward(by_rows=["table"]))
    for step in range(5):
        whole = np.zeros((4000, 5), np.float32)
        for rank in range(group.size):
            rows = np.random.default_rng([rank, step]).integers(0, 4000, int(4000 * share / group.size))
            whole[rows] += rank + 1
            if rank == group.rank:
                total.local.views.clear("table")[rows] = rank + 1
                total.local.views.zero_outside["table"] = rows
        total.local["rest"][...] = step
        assert np.array_equal(layout.views(total.finish().gradient)["table"], whole)
    total.close()


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_rows_of_a_table_over_two_nodes(two_nodes, monkeypatch, share):
    monkeypatch.setattr(reducer, "SPARSE_BYTES_BETWEEN_NODES", 0)
    test_rows_of_a_table(two_nodes, monkeypatch, "auto", share)


def test_an_error_of_mpi_is_ours(group):
    if not isinstance(group, mpi.MpiGroup):
        pytest.skip("started without MPI")
    with pytest.raises(CommError, match="send"):
        group.send(np.zeros(1), group.size + 5)


def test_a_step_allocates_no_arrays(group):
    reducer = GradientSum(group, Layout.of({"w": (500, 500)}), 8, SumOptions(overlap="off"))
    for _ in range(3):
        reducer.finish()
    tracemalloc.start()
    for _ in range(5):
        reducer.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000  # of a gradient of a million bytes


def test_sums_that_are_closed_keep_no_memory(group):
    if not isinstance(group, mpi.MpiGroup) or group.size == 1:
        pytest.skip("nothing is shared")
    before = len(group._memory)
    for _ in range(3):
        reducer = GradientSum(group, Layout.of({"w": (500, 500)}), 8)
        view = reducer.local.flat
        reducer.close()
        assert len(group._memory) == before
        view[:] = 1  # a closed mapping stays valid while an array views it
