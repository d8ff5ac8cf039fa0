"""Every step and epoch reaches callbacks, files and the console, even if a rank dies while reporting it."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.data import Order
from ddl.errors import Diverged, JobEnded, Stop
from ddl.fault.recover import RecoverySettings

STEPS, PER_EPOCH = 5, 4
SETTINGS = {"run.dir": "run"}


def events(kind):
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


@pytest.mark.parametrize("rank", [0, 1])
def test_wherever_a_rank_dies_each_step_and_epoch_is_reported(rank, whole_job, tmp_path, monkeypatch):
    steps, passed = 3, Counter[str]()
    short = partial(whole_job, settings=SETTINGS, total_steps=steps, order=Order(50, 6, 48, 1))  # two steps an epoch

    def probe_of(number):
        def probe(point):
            passed[point] += number == rank

        return probe

    run_ranks(3, short, probe=probe_of)
    # With ranks as threads, a death inside a checkpoint would kill the writer thread instead.
    points = [point for point in passed if point.partition(".")[0] not in ("setup", "checkpoint")]
    deaths = [(point, count) for point in sorted(points) for count in range(1, passed[point] + 1)]
    for point, count in deaths[:: 5 if rank else 2]:
        here = tmp_path / f"{point}-{count}"
        here.mkdir()
        monkeypatch.chdir(here)
        heard = []
        listening = partial(short, callbacks=[lambda outcome, h=heard: h.append(outcome.step)])
        results = run_ranks(3, listening, death=Death(rank, count, point))
        assert isinstance(results[rank], Killed)
        where = (point, count)
        assert sorted(set(heard)) == list(range(1, steps + 1)), where
        assert heard == sorted(heard) and len(heard) <= steps + 1, where  # the last one before the death, again
        assert [event["step"] for event in events("step")] == list(range(1, steps + 1)), where
        assert [event["step"] for event in events("epoch")] == [2, steps], where


def test_a_callback_in_which_the_leader_died_is_called_again_for_the_step(whole_job):
    heard = []

    def callback(outcome):
        heard.append(outcome.step)
        if outcome.step == 3 and heard.count(3) == 1:
            raise Killed("in a callback")

    results = run_ranks(3, lambda g: whole_job(g, SETTINGS, total_steps=STEPS, callbacks=[callback]))
    assert isinstance(results[0], Killed) and results[1][1] is None
    assert heard == [1, 2, 3, 3, 4, 5]


def test_the_last_step_before_too_few_ranks_are_left_is_reported(whole_job):
    heard = []

    def callback(outcome):
        heard.append(outcome.step)
        if outcome.step == 3 and heard.count(3) == 1:
            raise Killed("in a callback")

    few = RecoverySettings(min_ranks=3)
    results = run_ranks(3, lambda g: whole_job(g, SETTINGS, recovery=few, callbacks=[callback]))
    assert all(isinstance(failure, Stop) for _, failure in results[1:])
    assert heard == [1, 2, 3, 3] and [event["step"] for event in events("step")] == [1, 2, 3]


def test_memory_that_cannot_be_shared_is_reported_once(whole_job):
    results = run_ranks(4, lambda g: whole_job(g, SETTINGS), can_share=False, death=Death(0, 3, "step.compute"))
    assert results[1][1] is None
    said = [event["message"] for event in events("warning") if "cannot share memory" in event["message"]]
    assert len(said) == 1 and "these threads may not" in said[0]


def test_no_warning_when_memory_is_shared_or_not_requested(whole_job):
    run_ranks(2, lambda g: whole_job(g, {"run.dir": "run"}))
    assert not events("warning")
    run_ranks(2, lambda g: whole_job(g, {"run.dir": "run"}, algorithm="ring", total_steps=12), can_share=False)
    assert not events("warning")


@pytest.mark.parametrize("spares", [1, 2])
def test_spares_end_with_the_status_of_the_job(spares, whole_job, monkeypatch):
    few = RecoverySettings(min_ranks=3)
    results = run_ranks(2, lambda g: whole_job(g, SETTINGS), spares=spares)
    assert [failure for _, failure in results] == [None] * (2 + spares)
    monkeypatch.setattr("ddl.train.work.compare", lambda *_: None)  # no majority holds the same state
    results = run_ranks(2, lambda g: whole_job(g, {"run.dir": "two"}, check_every=3), spares=spares)
    assert [type(failure) for _, failure in results] == [Diverged] * 2 + [JobEnded] * spares
    assert {failure.exit_status for _, failure in results} == {Diverged.exit_status}
    deaths = [Death(rank, 1, "step.compute") for rank in range(spares)]
    results = run_ranks(3, lambda g: whole_job(g, {"run.dir": "three"}, recovery=few), spares=spares, death=deaths)
    assert all(result[1] is None for result in results if not isinstance(result, Killed))


def test_a_spare_ends_with_75_when_the_job_is_asked_to_stop(whole_job):
    results = run_ranks(2, lambda g: whole_job(g, SETTINGS, stop=g.rank == 1), spares=1)
    assert [loop.exit_status(failure) for loop, failure in results] == [Stop.exit_status] * 3


class Listener:
    """A callback that also listens to epochs and the end; it can die in any of these calls."""

    def __init__(self, fatal: tuple = ()):
        self.heard: list[tuple] = []
        self.fatal = fatal

    def __call__(self, outcome):
        self._hear("step", outcome.step)

    def on_epoch(self, epoch, results):
        assert 0 < results["train"]["loss"] < 5 and "accuracy" in results["validation"]
        self._hear("epoch", epoch)

    def on_end(self, results):
        assert sorted(results) == ["test", "train", "validation"] and results["test"]["samples"] == 50
        self._hear("end", 0)

    def _hear(self, *what):
        self.heard.append(what)
        if what == self.fatal and self.heard.count(what) == 1:
            raise Killed("in a callback")


REPORTED = [*(("step", n) for n in (1, 2, 3, 4)), ("epoch", 1), ("step", 5), ("epoch", 2), ("end", 0)]


@pytest.mark.parametrize("fatal", [(), ("epoch", 1), ("epoch", 2), ("end", 0), ("step", 4)])
def test_epochs_and_the_end_are_reported_again_by_the_next_leader(fatal, whole_job):
    listener = Listener(fatal)
    results = run_ranks(3, lambda g: whole_job(g, SETTINGS, total_steps=STEPS, callbacks=[listener]))
    assert isinstance(results[0], Killed) == bool(fatal) and results[1][1] is None
    assert list(dict.fromkeys(listener.heard)) == REPORTED  # in this order, and complete
    assert len(listener.heard) <= len(REPORTED) + 3 * bool(fatal)  # the last step, epoch and end may be repeated


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_callback_may_listen_only_to_epochs(ranks, whole_job):
    heard = []

    class Epochs:
        def on_epoch(self, epoch, results):
            heard.append(epoch)

    run_ranks(ranks, lambda g: whole_job(g, SETTINGS, total_steps=STEPS, callbacks=[Epochs()]))
    assert heard == [1, 2]
