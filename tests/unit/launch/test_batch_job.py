"""What a batch job does about its end, with Slurm's commands replaced by a script that records its calls."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest

from ddl.config import Job
from ddl.launcher.slurm import BatchJob, batch_job_id, end_time
from ddl.sweep.trial import RunProcess

BATCH = {"ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "3"}
COMMAND = """#!/bin/sh
echo "${0##*/} $*" >>"$FAKE/calls"
case "${0##*/} $*" in
  *"show job"*) cat "$FAKE/job" ;;
  "scontrol requeue"*) [ ! -e "$FAKE/refuses" ] || { echo "Access denied" >&2; exit 1; } ;;
  *batch_script*) echo "#!/bin/sh" >"$4" ;;
  sbatch*) echo 8 ;;
esac
"""


class Slurm:
    """The fake: the controller's answer about job 7, and the calls of its commands."""

    def __init__(self, folder):
        self.folder = folder
        self.shows()

    def shows(self, state="RUNNING", requeue=1, ends_in_s=3600.0):
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + ends_in_s))
        text = f"JobId=7 JobName=x Requeue={requeue} JobState={state} TimeLimit=01:00:00 EndTime={end} StdOut=/o"
        (self.folder / "job").write_text(text)

    def calls(self, word):
        path = self.folder / "calls"
        return [line for line in path.read_text().splitlines() if line.startswith(word)] if path.exists() else []


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    for name in ("scontrol", "sbatch", "scancel"):
        (tmp_path / name).write_text(COMMAND)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setattr("ddl.launcher.slurm.RETRY_S", 0.0)
    return Slurm(tmp_path)


def batch(**settings):
    job = Job()
    job = replace(job, slurm=replace(job.slurm, **settings))
    return BatchJob("7", job, ["job.toml", "--run.dir", "r"], {**os.environ, **BATCH})


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        (BATCH, "7"),
        ({**BATCH, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "5_2"),
        ({**BATCH, "SLURM_STEP_ID": "0"}, ""),  # a task of srun
        ({"SLURM_JOB_ID": "7"}, ""),  # a shell of salloc
        ({}, ""),
    ],
)
def test_only_the_batch_script_of_a_job_starts_it_again(environ, job):
    assert batch_job_id(environ) == job


@pytest.mark.parametrize(("status", "requeued"), [(75, 1), (0, 0), (1, 0), (2, 0)])
def test_only_a_run_that_can_be_resumed_is_requeued(slurm, status, requeued):
    with batch() as job:
        assert job.finish(status) == status
    assert slurm.calls("scontrol requeue") == ["scontrol requeue 7"] * requeued
    assert not slurm.calls("sbatch")


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_a_job_that_slurm_is_ending_is_left_to_it(slurm, state):
    with batch() as job:
        slurm.shows(state)
        job.finish(75)
    assert not slurm.calls("scontrol requeue") and not slurm.calls("sbatch")


def test_a_refused_requeue_queues_a_second_job_with_the_same_resources_and_words(slurm):
    (slurm.folder / "refuses").touch()
    with batch() as job:
        job.finish(75)
    (call,) = slurm.calls("sbatch")
    assert "--nodes=2 --ntasks-per-node=3 --time=01:00:00 --output=/o --open-mode=append" in call
    assert call.endswith("/script job.toml --run.dir r") and "--dependency" not in call


@pytest.mark.parametrize(("status", "cancelled"), [(0, True), (1, True), (75, False)])
def test_a_job_that_may_not_be_requeued_has_a_successor_from_its_start(slurm, status, cancelled):
    slurm.shows(requeue=0)
    with batch() as job:
        assert "--dependency afternotok:7" in slurm.calls("sbatch")[0]
        job.finish(status)
    assert slurm.calls("scancel") == ["scancel 8"] * cancelled
    assert not slurm.calls("scontrol requeue") and len(slurm.calls("sbatch")) == 1


@pytest.mark.parametrize(("ends_in_s", "cancelled"), [(3600.0, True), (-5.0, False)])
def test_the_successor_goes_when_the_user_cancels_the_job_and_stays_when_its_time_is_over(slurm, ends_in_s, cancelled):
    slurm.shows(requeue=0)
    with batch(margin_s=0.0) as job:
        slurm.shows("COMPLETING", 0, ends_in_s)
        job.finish(75)
    assert bool(slurm.calls("scancel")) is cancelled


def test_a_job_whose_run_another_one_has_taken_over_leaves_no_successor(slurm):
    slurm.shows(requeue=0)
    with batch() as job:
        assert job.finish(75, is_taken_over=True) == 75
    assert slurm.calls("scancel") == ["scancel 8"]
    assert not slurm.calls("scontrol requeue") and len(slurm.calls("sbatch")) == 1


def test_a_successor_gets_as_many_gpus(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_GPUS_PER_NODE", "8")
    (slurm.folder / "refuses").touch()
    with batch() as job:
        job.finish(75)
    assert "--gpus-per-node=8" in slurm.calls("sbatch")[0]


def test_a_trial_of_a_sweep_does_not_take_itself_for_the_batch_script(tmp_path, monkeypatch):
    for name, value in BATCH.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "sitecustomize.py").write_text(
        "import os; print('variable', os.environ.get('ENVIRONMENT'), os.environ['SLURM_JOB_ID'], flush=True)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    log = tmp_path / "log"
    process = RunProcess(["--version"], 2, sorted(os.sched_getaffinity(0)), log)
    deadline = time.monotonic() + 60
    while process.status() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "variable None 7" in log.read_text()


def test_nothing_is_queued_where_the_settings_say_so(slurm):
    with batch(requeue="off") as job:
        job.finish(75)
    assert not slurm.calls("scontrol requeue") and not slurm.calls("sbatch")


def test_the_clock_asks_for_a_stop_before_the_time_limit_without_any_signal(slurm, monkeypatch):
    slurm.shows(ends_in_s=50.0)
    asked = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: asked.append(number))
    try:
        with batch(margin_s=60.0) as job:
            deadline = time.monotonic() + 20
            while not asked and time.monotonic() < deadline:
                time.sleep(0.05)
            slurm.shows("COMPLETING", ends_in_s=50.0)  # however late: it was the clock that ended the run
            job.finish(75)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert asked == [signal.SIGUSR1] and slurm.calls("scontrol requeue")


def test_a_job_without_a_limit_has_no_end():
    assert end_time({"EndTime": "Unknown"}) is None and end_time({}) is None
