"""A batch job of Slurm: when it ends, and how it starts again after it ended early.

Works with Slurm's commands alone. supervisor.py trains; launch.py connects the two."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from ddl.config import Job
from ddl.errors import EX_TEMPFAIL
from ddl.launcher.mpirun import Host

COMMAND_S = 30.0  # for one of Slurm's commands
CLOCK_S = 1.0
ATTEMPTS, RETRY_S = 3, 2.0  # of a question to Slurm's controller
# Options of the successor: variables of the batch job -> options of sbatch.
_SAME = {
    "SLURM_JOB_NAME": "--job-name",
    "SLURM_JOB_NUM_NODES": "--nodes",
    "SLURM_NTASKS": "--ntasks",
    "SLURM_NTASKS_PER_NODE": "--ntasks-per-node",
    "SLURM_CPUS_PER_TASK": "--cpus-per-task",
    "SLURM_GPUS": "--gpus",
    "SLURM_GPUS_PER_NODE": "--gpus-per-node",
    "SLURM_GPUS_PER_TASK": "--gpus-per-task",
    "SLURM_MEM_PER_CPU": "--mem-per-cpu",
    "SLURM_MEM_PER_NODE": "--mem",
    "SLURM_JOB_PARTITION": "--partition",
    "SLURM_JOB_ACCOUNT": "--account",
    "SLURM_JOB_QOS": "--qos",
    "SLURM_JOB_RESERVATION": "--reservation",
    "SLURM_ARRAY_TASK_ID": "--array",
}


def batch_job_id(environ: Mapping[str, str] = os.environ) -> str:
    """The id, for Slurm's commands, of the batch job whose script runs this process; "" outside of one.

    A task of an array is named ARRAY_TASK: the number alone can mean the whole array."""
    if environ.get("ENVIRONMENT") != "BATCH" or "SLURM_STEP_ID" in environ or "SLURM_JOB_ID" not in environ:
        return ""
    task = environ.get("SLURM_ARRAY_TASK_ID")
    return environ["SLURM_JOB_ID"] if task is None else f"{environ['SLURM_ARRAY_JOB_ID']}_{task}"


def show_job(job: str) -> dict[str, str]:
    """What Slurm's controller knows about a job; empty if it does not answer."""
    done = _run("scontrol", "--oneliner", "show", "job", job)
    return dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(\S*)", done.stdout)) if done.returncode == 0 else {}


def end_time(shown: Mapping[str, str]) -> float | None:
    """When the job reaches its time limit, in seconds since the epoch; None if it has none."""
    try:
        return time.mktime(time.strptime(shown.get("EndTime", ""), "%Y-%m-%dT%H:%M:%S"))
    except ValueError:  # "Unknown", or the controller did not answer
        return None


def allocated_hosts(tasks: int, environ: Mapping[str, str] = os.environ) -> list[Host]:
    """The nodes of the allocation, with the tasks on each; none if they do not add up to ``tasks``."""
    shown = _run("scontrol", "show", "hostnames", environ.get("SLURM_JOB_NODELIST", ""))
    names, slots = shown.stdout.split(), list(tasks_per_node(environ.get("SLURM_TASKS_PER_NODE", "")))
    if len(names) != len(slots) or sum(slots) != tasks:
        return []
    return [Host(name, count) for name, count in zip(names, slots, strict=True)]


def tasks_per_node(text: str) -> Iterator[int]:
    """Slurm's ``2(x3),1`` as 2, 2, 2, 1."""
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        yield from [int(count)] * int(times or 1)


class BatchJob:
    """Within ``with``: sends this process USR1 ``slurm.margin_s`` before the time limit. ``finish`` then starts the
    job again if it ended early.

    job_id: as ``batch_job_id`` returns it. words: arguments of the batch script, for a successor."""

    def __init__(self, job_id: str, job: Job, words: Sequence[str], environ: Mapping[str, str] = os.environ):
        self.id, self.settings, self.words, self.environ = job_id, job.slurm, list(words), environ
        self._successor = ""
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._watch_the_clock, daemon=True)
        self._by_clock = False

    def __enter__(self) -> BatchJob:
        shown = show_job(self.id)
        kind = self.settings.requeue
        if kind == "chain" or (kind == "auto" and shown.get("Requeue") == "0"):
            self._successor = self._submit("--dependency", f"afternotok:{self.id}")
        if self.settings.margin_s:
            self._clock.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()

    def finish(self, status: int, *, is_taken_over: bool = False) -> int:
        """Start the job again if ``status``, the supervisor's, says that it can be resumed, and Slurm does not do so
        itself and the user has not cancelled it, and no other job has taken over the run. Returns the status of the
        batch job."""
        self._over.set()
        if is_taken_over:
            if self._successor:
                _run("scancel", self._successor)
            return status
        state = self._state() if status == EX_TEMPFAIL else ""
        # A job that Slurm ends is COMPLETING already: by scancel, or at the limit that the clock did not see.
        resumes = status == EX_TEMPFAIL and (state == "RUNNING" or self._by_clock)
        if self._successor:
            if resumes:
                _say(f"job {self._successor} continues the run")
            elif state != "COMPLETING" or not self._is_past_limit():
                _run("scancel", self._successor)
            return status
        if not resumes or self.settings.requeue == "off":
            return status
        if self.settings.requeue != "chain":
            _say(f"job {self.id} is queued again and resumes the run")
            done = _run("scontrol", "requeue", self.id)
            if done.returncode == 0:
                return status
            _say(f"scontrol requeue: {' '.join(done.stderr.split())}")
        if successor := self._submit():
            _say(f"job {successor} continues the run")
        return status

    def _state(self) -> str:
        """The job's state; "", and a line, if Slurm's controller does not answer several times."""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(RETRY_S)
            if state := show_job(self.id).get("JobState", ""):
                return state
        _say("Slurm's controller does not answer, so it is not known whether the job was cancelled: submit it again")
        return ""

    def _is_past_limit(self) -> bool:
        end = end_time(show_job(self.id))
        return end is not None and time.time() > end

    def _watch_the_clock(self) -> None:
        known = self.environ.get("SLURM_JOB_END_TIME", "")
        end = float(known) if known.isdecimal() else end_time(show_job(self.id))
        while end is not None and not self._over.wait(CLOCK_S):
            if time.time() < end - self.settings.margin_s:
                continue
            later = end_time(show_job(self.id))  # the limit may have been extended
            if later is not None and time.time() < later - self.settings.margin_s:
                end = later
                continue
            _say(f"{max(end - time.time(), 0):.0f} s are left until the time limit: the run is saved (slurm.margin_s)")
            self._by_clock = True
            os.kill(os.getpid(), signal.SIGUSR1)
            return

    def _submit(self, *options: str) -> str:
        """Queue a job like this one; returns its id, or "" if Slurm refuses."""
        shown = show_job(self.id)
        words = [f"{option}={self.environ[name]}" for name, option in _SAME.items() if self.environ.get(name)]
        if limit := shown.get("TimeLimit"):
            words.append(f"--time={limit}")
        if (features := shown.get("Features", "(null)")) != "(null)":
            words.append(f"--constraint={features}")
        if (output := shown.get("StdOut")) and output != "/dev/null":
            words += [f"--output={output}", "--open-mode=append"]
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "script")
            done = _run("scontrol", "write", "batch_script", self.environ["SLURM_JOB_ID"], str(script))
            if done.returncode == 0:
                clean = {name: value for name, value in self.environ.items() if not name.startswith("SLURM_ARRAY_")}
                done = _run("sbatch", "--parsable", *words, *options, str(script), *self.words, environ=clean)
        if done.returncode:
            _say(f"no job was queued to continue this one: {' '.join(done.stderr.split())}")
            return ""
        return done.stdout.strip().split(";")[0]


def _run(*words: str, environ: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """One of Slurm's commands; a failure to run it reads like a failure of the command."""
    try:
        return subprocess.run(
            words,
            env={**environ, "SLURM_TIME_FORMAT": "standard"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))


def _say(line: str) -> None:
    print(f"ddl.launch: {line}", file=sys.stderr, flush=True)
