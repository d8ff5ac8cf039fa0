"""ddl.elastic: a loop of the user's own survives deaths and ends at the result of an undisturbed run."""

import numpy as np
import pytest

from ddl import elastic
from ddl.comm.threads import Death, Killed, run_ranks

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
def test_without_failures_all_ranks_end_alike(size):
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


def test_what_was_not_committed_is_taken_back():
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
    with pytest.raises(AttributeError, match="it has \\['step'\\]"):
        _ = state.other
