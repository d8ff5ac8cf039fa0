"""Failures around training, such as a full disk, cost a whole job as little as possible and are reported."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ddl.checkpoint import RunFolderLease, Store
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.data import Arrays
from ddl.errors import CheckpointError, DataError, Diverged, LeaseLost

SETTINGS = {"run.dir": "run", "checkpoint.keep": 1}


def summary():
    with open("run/summary.json") as file:
        return json.load(file)


def recorded():
    with open("run/ledger.jsonl") as file:
        return [line["step"] for line in map(json.loads, file) if "step" in line]


@pytest.fixture
def disk(monkeypatch):
    """While ``disk["is_full"]`` is set, no rank can acquire the lease of a run folder."""
    from ddl.checkpoint import lease

    write, disk = lease.replace_file, {"is_full": False}

    def replace_file(*words):
        if disk["is_full"]:
            raise OSError(28, "No space left on device")
        write(*words)

    monkeypatch.setattr(lease, "replace_file", replace_file)
    return disk


def test_a_full_disk_and_the_leaders_death_cost_one_rank(whole_job, disk):
    def probe(point):
        disk["is_full"] = (disk["is_full"] or point == "setup.announce") and point != "end.checkpoint"

    results = run_ranks(
        3,
        lambda group: whole_job(group, SETTINGS),
        death=Death(0, 4, "step.commit"),
        probe=lambda rank: probe,
    )
    assert isinstance(results.pop(0), Killed)
    assert [failure for _, failure in results] == [None, None]
    assert summary()["status"] == "finished" and [lost["rank"] for lost in summary()["failures"]] == [0]


def test_a_disk_that_stays_full_ends_the_job_with_all_ranks_alive(whole_job, disk):
    def probe(point):
        disk["is_full"] = disk["is_full"] or point == "setup.announce"

    results = run_ranks(3, lambda group: whole_job(group, SETTINGS), probe=lambda rank: probe)
    assert all(isinstance(failure, CheckpointError) and loop.state.progress.step == 9 for loop, failure in results)


def fail_at_3(outcome):
    if outcome.step == 3:
        raise ZeroDivisionError("mine")


def test_an_exception_on_the_only_rank_is_in_the_summary(whole_job):
    (result,) = run_ranks(1, lambda group: whole_job(group, SETTINGS, callbacks=[fail_at_3]))
    assert isinstance(result, ZeroDivisionError)
    assert (summary()["status"], summary()["exit_status"], summary()["steps"]) == ("failed", 1, 3)
    assert "ZeroDivisionError('mine')" in summary()["error"]


def test_a_failure_that_a_restart_may_avoid_leaves_no_summary(whole_job):
    def trouble(outcome):
        raise OSError("the user's disk")

    (result,) = run_ranks(1, lambda group: whole_job(group, SETTINGS, callbacks=[trouble]))
    assert isinstance(result, OSError) and not os.path.exists("run/summary.json")


def test_a_launch_whose_folder_was_taken_writes_nothing_more(whole_job):
    def take_over(outcome):
        if outcome.step == 3:
            RunFolderLease("run", "a newer launch")

    results = run_ranks(2, lambda group: whole_job(group, SETTINGS, callbacks=[take_over]))
    assert all(isinstance(failure, LeaseLost) for _, failure in results)
    assert recorded() == [0, 1, 2]
    assert not os.path.exists("run/summary.json")


def test_a_long_evaluation_keeps_touching_a_file(whole_job, monkeypatch):
    """A file that changes is the supervisor's only evidence of progress."""
    monkeypatch.setattr("ddl.run.log.TOUCH_S", 0.0)
    changed = []

    def probe(point):
        if point == "evaluate.batch":
            changed.append(os.stat("run/ledger.jsonl").st_mtime > 1)
            os.utime("run/ledger.jsonl", (1, 1))

    run_ranks(1, lambda group: whole_job(group, SETTINGS, evaluate_rows=5), probe=lambda rank: probe)
    assert len(changed) > 9 and all(changed)


def saved_steps():
    return [entry.step for entry in Store("run/checkpoints").entries()]


class Poisoned(Arrays):
    """A test split that cannot be read."""

    def gather(self, indices):
        raise DataError("column x3 holds a value that is not finite")


def test_a_test_split_that_cannot_be_read_costs_the_evaluation_and_not_the_training(whole_job):
    x = np.zeros((5, 5))
    changes = {"test": Poisoned(x, np.zeros(5, np.int64)), "total_steps": 3}
    for _, failure in run_ranks(2, lambda group: whole_job(group, SETTINGS, **changes)):
        assert isinstance(failure, DataError)
    assert saved_steps() == [3]


def test_the_last_step_is_saved_once(whole_job):
    settings = {**SETTINGS, "checkpoint.keep": 3}
    run_ranks(2, lambda group: whole_job(group, settings, total_steps=8))
    assert saved_steps() == [4, 6, 8]


def test_a_checkpoint_folder_that_is_deleted_is_created_again(whole_job):
    def delete(outcome):
        if outcome.step == 5:
            shutil.rmtree("run/checkpoints", ignore_errors=True)  # the writer may be in it

    results = run_ranks(2, lambda group: whole_job(group, SETTINGS, callbacks=[delete]))
    assert [failure for _, failure in results] == [None, None] and saved_steps()[-1] == 9


def test_a_run_that_skips_every_step_fails(whole_job):
    def make_nan(batch, segments, generators):
        return {**batch, "x": batch["x"] * np.nan}

    results = run_ranks(2, lambda group: whole_job(group, SETTINGS, augment=[make_nan], total_steps=3))
    for loop, failure in results:
        assert isinstance(failure, Diverged) and "all 3 steps were skipped" in str(failure)
        assert loop.exit_status(failure) == 1
    assert (summary()["status"], summary()["exit_status"]) == ("failed", 1)


def test_a_job_whose_lost_rank_is_to_be_regained_stops_at_a_checkpoint(whole_job):
    results = run_ranks(3, lambda group: whole_job(group, SETTINGS, all_ranks=True), death=Death(1, 4, "step.commit"))
    assert isinstance(results.pop(1), Killed)
    assert [loop.exit_status(failure) for loop, failure in results] == [75, 75]
    assert summary()["status"] == "stopped" and 0 < saved_steps()[-1] == summary()["steps"] < 9


def test_the_third_launch_in_a_row_that_is_stopped_at_its_first_step_fails(whole_job):
    def status(**changes):
        ((loop, failure),) = run_ranks(1, lambda group: whole_job(group, SETTINGS, total_steps=20, **changes))
        return loop.exit_status(failure), summary()["status"], summary()["early_stops"]

    assert [status(stop=True) for _ in range(2)] == [(75, "stopped", 1), (75, "stopped", 2)]
    assert [status(stop=True) for _ in range(2)] == [(1, "failed", 3), (1, "failed", 4)]
    assert saved_steps()[-1] == 4  # each has saved its step
    assert status() == (0, "finished", 0)


def test_older_checkpoints_are_deleted_to_make_room_for_the_last_one(whole_job):
    """The disk has room for the last one beside one other."""
    folder = Path("run/checkpoints")

    def probe(point):
        is_last = any(folder.glob("step_00000009.tmp-*"))
        if point == "checkpoint.write" and is_last and len([*folder.glob("step_????????")]) > 1:
            raise OSError(28, "No space left on device")

    settings = {**SETTINGS, "checkpoint.keep": 3}
    ((loop, failure),) = run_ranks(1, lambda group: whole_job(group, settings), probe=lambda rank: probe)
    assert failure is None and saved_steps() == [8, 9] and loop.status == "finished"


def test_a_run_folder_that_is_deleted_is_made_again_with_all_that_the_final_model_needs(whole_job):
    def delete(outcome):
        if outcome.step == 5:
            while os.path.exists("run"):  # the writer may be in it
                shutil.rmtree("run", ignore_errors=True)

    ((_, failure),) = run_ranks(1, lambda group: whole_job(group, SETTINGS, callbacks=[delete]))
    assert failure is None and saved_steps()[-1] == 9 and summary()["status"] == "finished"
    assert {"config.toml", "owner.json"} <= set(os.listdir("run"))
