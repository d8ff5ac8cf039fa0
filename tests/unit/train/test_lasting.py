"""What goes wrong around the training of a whole job costs as little as it may, and says what it was."""

import json
import os

import pytest

from ddl.checkpoint import Fence
from ddl.comm.threads import Death, Killed, ThreadGroup, run_ranks
from ddl.errors import CheckpointError, Fenced, PeerLost

SETTINGS = {"run.dir": "run", "checkpoint.keep": 1}


def summary():
    with open("run/summary.json") as file:
        return json.load(file)


def recorded():
    with open("run/ledger.jsonl") as file:
        return [line["step"] for line in map(json.loads, file) if "step" in line]


@pytest.fixture
def disk(monkeypatch):
    """``disk["is_full"]``: nobody can enter himself as the owner of a folder."""
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


def mistake(outcome):
    if outcome.step == 3:
        raise ZeroDivisionError("mine")


def test_an_exception_on_the_only_rank_stands_in_the_summary(whole_job):
    (result,) = run_ranks(1, lambda group: whole_job(group, SETTINGS, callbacks=[mistake]))
    assert isinstance(result, ZeroDivisionError)
    assert (summary()["status"], summary()["exit_status"], summary()["steps"]) == ("failed", 1, 3)
    assert "ZeroDivisionError('mine')" in summary()["error"]


def test_what_another_start_may_get_around_leaves_no_word(whole_job):
    def trouble(outcome):
        raise OSError("a disk of the user's")

    (result,) = run_ranks(1, lambda group: whole_job(group, SETTINGS, callbacks=[trouble]))
    assert isinstance(result, OSError) and not os.path.exists("run/summary.json")


def test_a_launch_whose_folder_was_taken_enters_nothing_more(whole_job):
    def take_over(outcome):
        if outcome.step == 3:
            Fence("run", "a newer launch")

    results = run_ranks(2, lambda group: whole_job(group, SETTINGS, callbacks=[take_over]))
    assert all(isinstance(failure, Fenced) for _, failure in results)
    assert recorded() == [0, 1, 2]
    assert not os.path.exists("run/summary.json")


def test_refills_that_bring_nobody_are_given_up(whole_job, monkeypatch):
    asked = []

    def refill(self, count):
        asked.append(self.generation)
        raise PeerLost([], self.generation, "refill")

    monkeypatch.setattr(ThreadGroup, "refill", refill)
    results = run_ranks(3, lambda group: whole_job(group, SETTINGS, respawn=True), death=Death(1, 4, "step.commit"))
    assert isinstance(results.pop(1), Killed)
    assert [failure for _, failure in results] == [None, None]
    assert sorted(set(asked)) == [1, 2] and len(asked) == 4  # twice, by two ranks


def test_a_long_evaluation_shows_that_the_job_goes_on(whole_job, monkeypatch):
    """The supervisor sees nothing but files that change."""
    monkeypatch.setattr("ddl.run.log.TOUCH_S", 0.0)
    changed = []

    def probe(point):
        if point == "evaluate.batch":
            changed.append(os.stat("run/ledger.jsonl").st_mtime > 1)
            os.utime("run/ledger.jsonl", (1, 1))

    run_ranks(1, lambda group: whole_job(group, SETTINGS, evaluate_rows=5), probe=lambda rank: probe)
    assert len(changed) > 9 and all(changed)
