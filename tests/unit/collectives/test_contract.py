"""Collectives that users call: one result for each dtype at any number of ranks, and one error on all ranks."""

import threading

import numpy as np
import pytest

import ddl
from ddl.collectives import end_script, reduce_across_ranks
from ddl.comm.threads import run_ranks
from ddl.optim import SGD, Momentum

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
def test_the_mean_of_equal_arrays_is_that_array_even_if_their_sum_overflows(kind, order, ranks):
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
    assert issubclass(outcomes[0][0], ValueError) and set(outcomes) == {outcomes[0]}
    assert "rank 0 allreduce(sum" in outcomes[0][1] and "rank 2 allreduce(sum" in outcomes[0][1]


def test_a_mean_does_not_meet_a_sum_nor_an_allreduce_a_broadcast(on_ranks):
    first = on_ranks(2, lambda rank: ddl.allreduce(np.ones(2), average=rank == 0))
    second = on_ranks(2, lambda rank: ddl.allreduce(np.ones(2)) if rank else ddl.broadcast({"x": np.ones(2)}))
    for outcomes in (first, second):
        assert issubclass(outcomes[0][0], ValueError) and outcomes[0] == outcomes[1]


def test_a_broadcast_with_different_roots_or_shapes_writes_nothing(on_ranks):
    def broadcast(rank, root, shape):
        x = np.full(shape, float(rank))
        with pytest.raises(ValueError, match="different calls"):
            ddl.broadcast({"x": x}, root)
        return set(x.ravel().tolist())

    assert on_ranks(2, lambda rank: broadcast(rank, rank, 2)) == [{0.0}, {1.0}]
    assert on_ranks(2, lambda rank: broadcast(rank, 0, (2, 3 + rank))) == [{0.0}, {1.0}]


def test_tensors_are_summed_whether_or_not_they_need_a_gradient(on_ranks):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def mean(rank):
        tensors = torch.tensor(1.0 + rank, requires_grad=True), torch.full((2,), 1.0 + rank, dtype=torch.bfloat16)
        return [ddl.allreduce(tensor).tolist() for tensor in tensors]

    assert on_ranks(2, mean) == [[1.5, [1.5, 1.5]]] * 2


def test_a_broadcast_takes_booleans_and_big_endian_arrays(on_ranks):
    def broadcast(rank):
        arrays = {"a": np.full(2, rank == 0), "b": np.full(2, 7 - rank, ">i4")}
        ddl.broadcast(arrays)
        return arrays["a"].tolist(), arrays["b"].tolist()

    assert on_ranks(2, broadcast) == [([True, True], [7, 7])] * 2


def test_arrays_without_names_and_masked_arrays_are_refused(on_ranks):
    def refused(rank):
        with pytest.raises(TypeError, match="arrays by name"):
            ddl.broadcast(np.ones(3))
        with pytest.raises(TypeError, match="masked"):
            ddl.allreduce(np.ma.masked_array([1.0, 2.0], [False, True]))

    on_ranks(2, refused)


def test_an_optimizer_step_with_other_gradients_on_one_rank_changes_no_parameter(on_ranks):
    def step(rank):
        params = {"w": np.ones(2), "b": np.ones(2)}
        optimizer = ddl.DistributedOptimizer(SGD(lr=1.0), params)
        with pytest.raises(ValueError, match="different calls"):
            optimizer.step({name: np.ones(2) for name in ("w", "b")[rank:]})
        return params["w"].tolist(), params["b"].tolist()

    assert on_ranks(2, step) == [([1, 1], [1, 1])] * 2


# Ranks that make different numbers of calls.


def train(rank, batches, **joined):
    """Steps of one rank with gradients 1 + rank; its parameters, and the mean of an allreduce in each step."""
    params, means = {"w": np.zeros(3)}, []
    optimizer = ddl.DistributedOptimizer(Momentum(lr=1.0, momentum=0.5), params)
    with ddl.join(*[optimizer][: joined.get("given", 1)]):
        for number in range(batches[rank]):
            optimizer.lr = 1.0 / (1 + number)
            optimizer.step({"w": np.full(3, 1.0 + rank)})
            means.append(float(ddl.allreduce(np.float32(rank))))
    return params["w"].tolist(), means, optimizer.steps


@pytest.mark.parametrize("batches", [[5, 8], [8, 5], [0, 3], [2, 7, 4], [0, 0], [3, 3, 3], [1, 0, 6]])
def test_in_a_join_block_a_rank_that_is_finished_has_no_weight_and_the_same_parameters(batches, on_ranks):
    outcomes = on_ranks(len(batches), lambda rank: train(rank, batches))
    w = trace = 0.0
    means = []
    for number in range(max(batches)):
        contributing = [rank for rank, count in enumerate(batches) if count > number]
        trace = 0.5 * trace + np.mean([1.0 + rank for rank in contributing])
        w -= trace / (1 + number)
        means.append(float(np.float32(sum(contributing)) / np.float32(len(contributing))))
    for rank, outcome in enumerate(outcomes):
        assert outcome == (pytest.approx([w] * 3, rel=1e-12), means[: batches[rank]], max(batches)), rank
        assert outcome[0] == outcomes[0][0]


def test_a_broadcast_and_sums_of_every_dtype_go_on_without_a_rank_that_is_finished(on_ranks):
    def loop(rank):
        received = {"a": np.full(2, rank), "b": np.full((2, 2), rank + 0.5, ">f4")}
        with ddl.join():
            if rank:
                ddl.broadcast(received, root=2)
                sums = [ddl.allreduce(np.ones(2, dtype), average=False).tolist() for dtype in ("?", "f2", "i4", "f8")]
                assert sums == [[2, 2]] * 4
                assert ddl.allreduce(np.ones(0)).shape == (0,)
        return received["a"].tolist(), received["b"].tolist()

    assert on_ranks(3, loop) == [([0, 0], [[0.5] * 2] * 2)] + [([2, 2], [[2.5] * 2] * 2)] * 2


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: ddl.broadcast({"x": np.ones(2)}, root=0), "the rank that all others receive from"),
        (
            lambda: ddl.DistributedOptimizer(Momentum(lr=1.0), {"w": np.ones(2)}).step({"w": np.ones(2)}),
            "whose optimizer was not given to ddl.join",
        ),
    ],
    ids=["broadcast", "step"],
)
def test_calls_that_need_a_finished_rank_are_rejected_on_every_rank(call, reason, on_ranks):
    def loop(rank):
        with ddl.join():
            if rank:
                call()

    outcomes = on_ranks(3, loop)
    assert outcomes[0][0] is ValueError and set(outcomes) == {outcomes[0]}
    assert outcomes[0][1].startswith("rank 0 has left its ddl.join block: no ") and reason in outcomes[0][1]


def test_a_rank_outside_the_join_block_of_the_others_is_named(on_ranks):
    def loop(rank):
        if rank == 0:
            return ddl.allreduce(np.ones(1))
        with ddl.join():
            pass

    outcomes = on_ranks(2, loop)
    assert outcomes[0] == outcomes[1] and "rank 1 join(0 optimizers)" in outcomes[0][1]


def test_join_blocks_are_not_nested(on_ranks):
    def loop(rank):
        with ddl.join(), pytest.raises(ddl.errors.DdlError, match="inside another"), ddl.join():
            pass

    on_ranks(2, loop)


def test_a_call_that_another_rank_does_not_make_before_its_end_fails_with_the_reason(on_ranks):
    def script(rank):
        raised = ""
        try:
            for _ in range(3 - rank % 2):
                ddl.allreduce(np.ones(2))
        except ValueError as error:
            raised = str(error)
        end_script(ddl.world.group())
        return raised

    outcomes = on_ranks(3, script)
    assert outcomes == [outcomes[0], "", outcomes[0]]
    assert "call 3 of each): rank 0 allreduce(mean, shape (2,), float64), rank 1 ended its script" in outcomes[0]


def test_parameters_that_differ_before_the_first_step_are_named_and_not_updated(on_ranks):
    def step(rank):
        params = {"w": np.ones(2), "b": np.full(2, float(rank == 1)), "c": np.full(1, float(rank == 2))}
        optimizer = ddl.DistributedOptimizer(SGD(lr=1.0), params)
        with pytest.raises(ValueError, match="parameters before the first step") as caught:
            optimizer.step({name: np.ones_like(x) for name, x in params.items()})
        assert params["w"].tolist() == [1, 1]
        return str(caught.value)

    outcomes = on_ranks(3, step)
    assert set(outcomes) == {outcomes[0]} and "b on rank 1; c on rank 2; call ddl.broadcast(params)" in outcomes[0]


def test_learning_rates_that_differ_are_refused(on_ranks):
    def step(rank):
        optimizer = ddl.DistributedOptimizer(SGD(lr=0.1 * (1 + rank)), {"w": np.ones(2)})
        optimizer.step({"w": np.ones(2)})

    outcomes = on_ranks(2, step)
    assert outcomes[0] == outcomes[1] and "lr 0.1)" in outcomes[0][1] and "lr 0.2)" in outcomes[0][1]
