"""Collectives that users call: one result for each dtype at any number of ranks, and one error on all ranks."""

import threading

import numpy as np
import pytest

import ddl
from ddl.collectives import reduce_across_ranks
from ddl.comm.threads import run_ranks
from ddl.optim import SGD

KINDS = ["i1", "u2", "i8", "f2", "f4", "f8", "?"]


def reduced(values, average):
    """What each rank gets or raises; ``values`` by rank."""

    def work(group):
        try:
            return reduce_across_ranks(values[group.rank], group, average)
        except (TypeError, ValueError) as error:
            return type(error), str(error)

    return run_ranks(len(values), work)


@pytest.fixture
def on_ranks(monkeypatch):
    """Run a function on ranks that are threads, in which ``ddl`` works as after ``ddl.init()``."""
    joined = threading.local()
    monkeypatch.setattr("ddl.world.group", lambda: joined.group)

    def run(size, function):
        def work(group):
            joined.group = group
            try:
                return function(group.rank)
            except (TypeError, ValueError) as error:
                return type(error), str(error)

        return run_ranks(size, work)

    return run


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_equal_arrays_is_that_array_whatever_their_sum(kind, order, ranks):
    largest = {"i1": 100, "u2": 60000, "i8": 2**50, "f2": 3e4, "?": True}.get(kind, 1.5)
    x = np.full((2, 3), largest, np.dtype(kind).newbyteorder(order))
    for mean in reduced([x] * ranks, average=True):
        assert mean.dtype == (np.float64 if kind[0] in "iu?" else np.dtype(kind)) and mean.dtype.isnative
        assert mean.shape == (2, 3) and (mean == largest).all()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_keeps_the_dtype_and_counts_booleans(kind, order, ranks):
    x = np.ones(5, np.dtype(kind).newbyteorder(order))
    for total in reduced([x] * ranks, average=False):
        assert total.dtype == (np.int64 if kind == "?" else np.dtype(kind)) and total.dtype.isnative
        assert (total == ranks).all()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("x", [np.array(["a"]), np.array([None]), np.ones(2, "c16"), np.ones(2, "M8[s]")], ids=str)
def test_a_dtype_that_cannot_be_summed_is_refused_on_any_number_of_ranks(x, ranks):
    outcomes = reduced([x] * ranks, average=False)
    assert outcomes[0][0] is TypeError and set(outcomes) == {outcomes[0]} and str(x.dtype) in outcomes[0][1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.ones(3, "i8"), np.ones(3, "f8")),
        (np.ones((2, 3)), np.ones((3, 2))),
        (np.ones(2), np.ones(3)),
        (np.ones(2), np.array(["a", "b"])),
        (0, np.ones(2)),
    ],
    ids=["dtype", "shape", "length", "refused dtype", "sum of no shards"],
)
def test_ranks_whose_arguments_differ_get_the_same_error(one, other):
    outcomes = reduced([one, one, other], average=False)
    assert outcomes[0][0] is ValueError and set(outcomes) == {outcomes[0]}
    assert "rank 0 allreduce(sum" in outcomes[0][1] and "rank 2 allreduce(sum" in outcomes[0][1]


def test_a_mean_does_not_meet_a_sum_nor_an_allreduce_a_broadcast(on_ranks):
    first = on_ranks(2, lambda rank: ddl.allreduce(np.ones(2), average=rank == 0))
    second = on_ranks(2, lambda rank: ddl.allreduce(np.ones(2)) if rank else ddl.broadcast({"x": np.ones(2)}))
    for outcomes in (first, second):
        assert outcomes[0][0] is ValueError and outcomes[0] == outcomes[1]


def test_a_broadcast_with_different_roots_or_shapes_writes_nothing(on_ranks):
    def broadcast(rank, root, shape):
        x = np.full(shape, float(rank))
        with pytest.raises(ValueError, match="different calls"):
            ddl.broadcast({"x": x}, root)
        return set(x.ravel().tolist())

    assert on_ranks(2, lambda rank: broadcast(rank, rank, 2)) == [{0.0}, {1.0}]
    assert on_ranks(2, lambda rank: broadcast(rank, 0, (2, 3 + rank))) == [{0.0}, {1.0}]


def test_a_broadcast_takes_booleans_and_big_endian_arrays(on_ranks):
    def broadcast(rank):
        arrays = {"a": np.full(2, rank == 0), "b": np.full(2, 7 - rank, ">i4")}
        ddl.broadcast(arrays)
        return arrays["a"].tolist(), arrays["b"].tolist()

    assert on_ranks(2, broadcast) == [([True, True], [7, 7])] * 2


def test_an_optimizer_step_with_other_gradients_on_one_rank_changes_no_parameter(on_ranks):
    def step(rank):
        params = {"w": np.ones(2), "b": np.ones(2)}
        optimizer = ddl.DistributedOptimizer(SGD(lr=1.0), params)
        with pytest.raises(ValueError, match="different calls"):
            optimizer.step({name: np.ones(2) for name in ("w", "b")[rank:]})
        return params["w"].tolist(), params["b"].tolist()

    assert on_ranks(2, step) == [([1, 1], [1, 1])] * 2
