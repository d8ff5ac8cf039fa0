"""ddl.elastic: a user's own loop survives deaths and ends with the result of an undisturbed run."""

import numpy as np
import pytest

from ddl import elastic
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.errors import Diverged, Stop, UserCodeError, UserError

STEPS, SHARDS = 3, 6


def gradient_of(shard, w):
    return (shard + 1) * (w - shard)


def train(state, world):
    while state.step < STEPS:
        gradient = sum((gradient_of(shard, state.w) for shard in world.shards), np.zeros(3))
        state.w -= 0.01 * world.allreduce(gradient)
        state.step += 1
        state.commit()
    return state.step


def job(group):
    state = elastic.State(w=np.zeros(3), step=0)
    return elastic.run(train, state, shards=SHARDS, group=group), state.w, state.commits


def expected():
    w = np.zeros(3)
    for _ in range(STEPS):
        w -= 0.01 * sum(gradient_of(shard, w) for shard in range(SHARDS))
    return w


@pytest.mark.parametrize("size", [1, 2, 3])
def test_without_failures_all_ranks_end_with_the_same_status(size):
    for steps, w, commits in run_ranks(size, job):
        assert steps == STEPS and commits == STEPS
        assert np.allclose(w, expected(), rtol=1e-12)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_death_at_any_point_changes_nothing(rank):
    died = True
    count = 0
    while died:
        count += 1
        results = run_ranks(3, job, death=Death(rank, count))
        died = isinstance(results[rank], Killed)
        for result in results:
            if not isinstance(result, Killed):
                assert np.allclose(result[1], expected(), rtol=1e-12) and result[2] == STEPS
    assert count > 30


def test_uncommitted_changes_are_rolled_back():
    state = elastic.State(w=np.ones(2), note="a")
    state.w += 1
    state.note = "b"
    state.restore()
    assert (state.w == 1).all() and state.note == "a"
    state.w = 5
    state.commit()
    state.restore()
    assert (state.w == 5).all()


def test_a_state_takes_only_the_names_it_was_made_with():
    state = elastic.State(step=0)
    with pytest.raises(AttributeError, match="no 'stpe'"):
        state.stpe = 1
    with pytest.raises(AttributeError, match=r"it has step$"):
        _ = state.other


def wrong_job(is_wrong):
    """The job with a function that raises where ``is_wrong(identity, commits)`` says so."""

    def job_of(group):
        state = elastic.State(w=np.zeros(3), step=0)

        def function(state, world):
            while state.step < STEPS:
                gradient = sum((gradient_of(shard, state.w) for shard in world.shards), np.zeros(3))
                state.w -= 0.01 * world.allreduce(gradient)
                if is_wrong(world.group.me.identity, state.commits):
                    raise ValueError(f"mine at {state.step}")
                state.step += 1
                state.commit()
            return state.step

        return elastic.run(function, state, shards=SHARDS, group=group), state.w

    return job_of


@pytest.mark.parametrize("rank", [0, 2])
def test_an_exception_on_one_rank_costs_that_rank(rank):
    results = run_ranks(3, wrong_job(lambda identity, commits: identity == rank and commits == 1))
    assert isinstance(results.pop(rank), ValueError)
    for steps, w in results:
        assert steps == STEPS and np.allclose(w, expected(), rtol=1e-12)


@pytest.mark.parametrize("commits", [0, 1])
def test_an_exception_on_every_rank_ends_every_rank(commits):
    results = run_ranks(3, wrong_job(lambda identity, now: now == commits))
    # A rank may learn of the first exception in its previous call, and raise only after that rank has left.
    refused = [result for result in results if not isinstance(result, ValueError)]
    assert len(refused) >= 2
    for result in refused:
        assert isinstance(result, UserCodeError) and "raised ValueError: mine at" in str(result)
        assert "in function" in result.traceback


def test_before_the_first_commit_one_exception_ends_all():
    for result in run_ranks(3, wrong_job(lambda identity, commits: identity == 1)):
        assert isinstance(result, UserCodeError) and "rank 1 raised" in str(result)


def test_the_same_exception_on_a_second_rank_ends_all():
    results = run_ranks(4, wrong_job(lambda identity, commits: (identity, commits) in ((1, 1), (3, 2))))
    assert isinstance(results.pop(1), ValueError)
    assert all(isinstance(result, UserCodeError) and "rank 3 raised" in str(result) for result in results)


def test_too_few_ranks_stop_every_rank():
    results = run_ranks(
        3,
        lambda group: elastic.run(train, elastic.State(w=np.zeros(3), step=0), group=group, min_ranks=3),
        death=Death(1, 20),
    )
    assert isinstance(results.pop(1), Killed)
    assert all(isinstance(result, Stop) and "min_ranks is 3" in str(result) for result in results)


def test_an_array_may_be_laid_out_in_any_order():
    def behind(group):
        state = elastic.State(w=np.asfortranarray(np.arange(6.0).reshape(2, 3)), step=0)

        def function(state, world):
            while state.step < STEPS:
                state.w += world.allreduce(np.ones((2, 3)) / world.size)
                state.step += 1
                state.commit()

        elastic.run(function, state, shards=SHARDS, group=group)
        return state.w

    # Some deaths leave a rank one commit behind, and the state has to travel.
    for count in range(10, 40):
        for result in run_ranks(3, behind, death=Death(0, count)):
            assert isinstance(result, Killed) or np.allclose(result, np.arange(6.0).reshape(2, 3) + STEPS)


def drifting(change, check_every):
    """The job, in which ``change(rank, state)`` is made before each commit."""

    def job(group):
        state = elastic.State(w=np.zeros(3), bias=np.zeros(1), step=0, own=object())

        def function(state, world):
            while state.step < 6:
                state.w += world.allreduce(np.ones(3))
                state.step += 1
                change(world.rank, state)
                state.commit()

        elastic.run(function, state, group=group, check_every=check_every)
        return state.commits

    return job


def set_step(rank, state):
    if rank == 0 and state.step == 4:
        state.step = 5


def drift(rank, state):
    if state.step == 3:
        state.w += 1e-12 * (rank == 2)
        state.bias += (rank == 1) * 1.0


@pytest.mark.parametrize(
    ("change", "ranks", "commit", "named"),
    [
        (drift, 3, 4, "bias on rank 1; w on rank 2"),
        (drift, 2, 4, "bias on rank 1;"),
        (set_step, 3, 4, "step on rank 0;"),
    ],
)
def test_ranks_that_are_about_to_commit_different_states_are_named(change, ranks, commit, named):
    results = run_ranks(ranks, drifting(change, check_every=2))
    assert all(isinstance(result, Diverged) for result in results)
    assert {str(result) for result in results} == {str(results[0])}
    assert f"ranks hold different states at commit {commit}: {named}" in str(results[0])


def test_states_are_compared_only_at_the_set_interval():
    assert run_ranks(2, drifting(drift, check_every=0)) == [6, 6]
    assert run_ranks(3, drifting(lambda rank, state: None, check_every=1)) == [6, 6, 6]


def test_states_that_are_created_unequal_are_named_before_the_first_call():
    def job(group):
        state = elastic.State(w=np.full(3, float(group.rank)))
        elastic.run(lambda state, world: state.commit(), state, group=group)

    for result in run_ranks(2, job):
        assert "ranks hold different states at commit 0: w on rank 1" in str(result)


ODD = {
    "texts": lambda: np.array(["a", "b"]),
    "dates": lambda: np.array(["2026-01-01"], "datetime64[D]"),
    "objects": lambda: np.array([[0], None], object),
    "masked": lambda: np.ma.array([1.0, 2.0], mask=[False, True]),
}


def test_texts_dates_objects_and_masked_arrays_return_to_the_last_commit_and_reach_a_rank_that_missed_it():
    def job(group):
        state = elastic.State(step=0, **{name: made() for name, made in ODD.items()})

        def function(state, world):
            assert state.objects[0] == [state.step] and state.masked.mask.tolist() == [False, True]
            while state.step < 4:
                state.dates += np.timedelta64(1, "D")
                state.texts[0] = str(state.step)
                state.objects[0][0] += 1
                state.masked[0] += 1
                world.allreduce(np.zeros(1))
                state.step += 1
                state.commit()

        elastic.run(function, state, group=group, shards=2, check_every=2)
        return str(state.dates[0]), state.texts.tolist(), state.objects.tolist(), str(state.masked)

    for count in range(4, 30, 3):
        for result in run_ranks(2, job, death=Death(1, count)):
            assert isinstance(result, Killed) or result == ("2026-01-05", ["3", "b"], [[4], None], "[5.0 --]"), result


def test_odd_values_and_arguments_are_refused():
    state = elastic.State(count=np.zeros(2, int))
    state.count = np.array([1, 2])
    with pytest.raises(UserError, match="holds int64, not float64"):
        state.count = state.count + 0.5
    with pytest.raises(UserError, match="not a dict"):
        elastic.run(lambda state, world: None, {"step": 0})
    with pytest.raises(UserError, match="shards = 0"):
        elastic.run(lambda state, world: None, state, shards=0)


def test_a_commit_that_one_rank_skips_ends_all_with_both_calls():
    def job(group):
        def function(state, world):
            for number in range(3):
                world.allreduce(np.ones(2))
                if number < 2 or world.rank == 0:
                    state.commit()

        return elastic.run(function, elastic.State(step=0), group=group)

    for result in run_ranks(2, job):
        assert isinstance(result, UserCodeError)
        assert "rank 0 commit, rank 1 returned from the function" in str(result)


def test_the_leader_prints_the_lines_of_a_death_that_training_prints(capfd):
    results = run_ranks(3, job, death=Death(1, 30))
    assert isinstance(results[1], Killed)
    lost, recovered = " ".join(capfd.readouterr().err.split()).split(" ms, recovered in ")
    assert lost.startswith("lost rank 1 on ") and " detected after " in lost and " at step " in lost
    assert "2 ranks continue after step" in recovered and recovered.endswith("shard 2 to rank 0; shard 3 to rank 2")


@pytest.mark.parametrize(
    ("make", "shards", "error", "said"),
    [
        (lambda rank: {"w": np.full(3, rank == 1)}, [6, 6, 6], Diverged, "different states at commit 0: w on rank 1;"),
        (lambda rank: {"w": np.zeros(3), "lr": 0.1 * rank}, [6, 6, 6], Diverged, "lr on ranks 1, 2;"),
        (lambda rank: {"w": np.zeros(3 + (rank == 2))}, [6, 6, 6], UserCodeError, "w (3,) float64, step), rank 2 "),
        (lambda rank: {"w": np.zeros(3, ["f4", "f8", "f8"][rank])}, [6, 6, 6], UserCodeError, "w (3,) float32, step)"),
        (
            lambda rank: {"w": np.zeros(3)},
            [6, 7, 6],
            UserCodeError,
            "6 shards, a state of w (3,) float64, step), rank 1 ",
        ),
    ],
)
def test_ranks_that_begin_differently_end_alike_before_the_first_call(make, shards, error, said):
    def job(group):
        state = elastic.State(**make(group.rank), step=0)
        return elastic.run(train, state, shards=shards[group.rank], group=group)

    results = run_ranks(3, job)
    assert all(isinstance(result, error) for result in results), results
    assert said in str(results[0])
