"""The best state is the final one: on all ranks, in the summary, and when ranks die while it is restored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ddl.checkpoint import Store
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks

RUN = {"run.dir": "runs/best", "checkpoint.keep": 1}
# The learning rate grows until the loss does: the best state is neither the first nor the newest.
WORSENS = {"lr": lambda step: 0.01 if step < 8 else 5.0, "total_steps": 16}


def ends(whole_job, death=None, size=3, **changes):
    """The states of the ranks that are left, and the summary."""
    job = lambda group: whole_job(group, RUN, **{**WORSENS, **changes})  # noqa: E731
    results = [one for one in run_ranks(size, job, death=death) if not isinstance(one, Killed)]
    assert results and all(failure is None for _, failure in results)
    return [loop.state for loop, _ in results], json.loads(Path("runs/best/summary.json").read_text())


def validation_losses() -> dict[int, float]:
    lines = [json.loads(line) for line in Path("runs/best/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["validation"]["loss"] for line in lines if line["event"] == "epoch"}


def test_training_ends_with_the_state_of_the_lowest_validation_loss(whole_job):
    states, summary = ends(whole_job, restore_best=True)
    losses = validation_losses()
    best = min(losses, key=losses.get)
    assert 0 < best < 16 == summary["steps"]
    final = summary["final"]
    assert (final["checkpoint"], final["step"], final["epoch"]) == ("best", best, best / 4)
    assert final["validation"] == summary["validation"]
    assert final["test"]["loss"] == summary["test"]["loss"] == final["validation"]["loss"] == losses[best]  # one split
    store = Store("runs/best/checkpoints")
    arrays, _ = store.load(store.best())
    for state in states:
        for name, value in state.to_named().items():
            assert np.array_equal(value, arrays[name]), name
    assert store.newest_step() == 16  # a longer job resumes from there


def test_without_restoring_the_newest_state_is_the_final_one(whole_job):
    _, summary = ends(whole_job)
    assert (summary["final"]["checkpoint"], summary["final"]["step"]) == ("newest", 16)
    assert summary["final"]["validation"]["loss"] == validation_losses()[16]


def test_a_newest_state_that_is_the_best_is_final_as_the_best(whole_job):
    _, summary = ends(whole_job, restore_best=True, lr=lambda step: 0.01)
    assert (summary["final"]["checkpoint"], summary["final"]["step"]) == ("best", 16)


@pytest.mark.parametrize(
    ("rank", "point", "nth"),
    [
        *((rank, "end.restore", 1) for rank in (0, 1)),
        *((rank, "job.broadcast", nth) for rank in (0, 2) for nth in (5, 6, 8)),  # the first four are the set-up's
        *((rank, "evaluate.batch", 5) for rank in (0, 1)),  # the test split, with the best state
        (0, "end.summary", 1),
    ],
)
def test_a_death_at_the_end_changes_nothing(rank, point, nth, whole_job):
    states, summary = ends(whole_job, restore_best=True, death=Death(rank, nth, point))
    assert len(states) == 2
    losses = validation_losses()
    best = min(losses, key=losses.get)
    assert (summary["final"]["checkpoint"], summary["final"]["step"]) == ("best", best)
    assert summary["final"]["test"]["loss"] == pytest.approx(losses[best], rel=1e-12)  # of other batches
    assert len({state.digest() for state in states}) == 1
    assert summary["parameters_sha256"] == states[0].parameters_digest()
    assert Store("runs/best/checkpoints").newest_step() == 16


def test_two_deaths_while_ranks_that_share_a_replica_restore_the_best_leave_the_newest_checkpoint_whole(whole_job):
    newest = lambda: Store("runs/best/checkpoints").load()[0]  # noqa: E731
    ends(whole_job, restore_best=True, sharded="on")
    wanted = newest()
    shutil.rmtree("runs")
    # Rank 1 has received all of the best state, rank 2 has not, when the leader dies; then rank 1 dies too.
    deaths = (Death(0, 15, "job.broadcast.message"), Death(1, 5, "evaluate.batch"))
    states, summary = ends(whole_job, restore_best=True, sharded="on", death=deaths)
    assert len(states) == 1 and summary["final"]["checkpoint"] == "best"
    for name, value in newest().items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-9, err_msg=name)
