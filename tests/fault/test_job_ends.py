"""How a job ends when no rank may continue, or a stop is requested: its status, its message, nothing left running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from .conftest import QUICK, ROOT

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]


def slow(jobs, seconds: float = 0.1) -> list[str]:
    """Settings that make every step last, so that a job can be met under way."""
    (jobs.folder / "slow.py").write_text(f"import time\ndef step(outcome): time.sleep({seconds})\n")
    return ["--train.callbacks", '["slow:step"]']


def test_without_tolerance_an_exception_ends_the_job_with_one_traceback(jobs):
    running = jobs.start(*slow(jobs), flags=jobs.INTOLERANT, chaos="raise rank 1 at step 5")
    running.until(4)
    near = time.monotonic()
    ended = running.wait()
    assert time.monotonic() - near < 10
    assert ended.status not in (0, 75) and ended.said.count("InjectedError: injected") == 1, ended.said


def test_without_tolerance_a_death_ends_the_job(jobs):
    ended = jobs.run(flags=jobs.INTOLERANT, chaos="kill rank 1 at step 5")
    assert ended.status not in (0, 75), ended.said


def test_sys_exit_on_one_rank_without_tolerance_ends_the_job(jobs):
    ended = jobs.run(flags=jobs.INTOLERANT, chaos="quit rank 1 at step 5", n=2, limit_s=60.0)
    assert ended.status == 1 and "rank 1 ended before the job did" in ended.said


def test_a_hang_without_tolerance_ends_the_job_if_a_limit_is_set(jobs):
    words = ("--fault.tolerance", "off", "--fault.hang_timeout_s", "2")
    ended = jobs.run(*words, chaos="hang rank 1 at step 5 point step.compute", n=2)
    assert ended.status not in (0, 75), ended.said
    notes = [json.loads(path.read_text()) for path in ended.folder.glob("notes/*/rank-1.json")]
    assert [(note["kind"], note["step"]) for note in notes] == [("hang", 5)]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_without_mpirun_saves_a_checkpoint_and_ends_with_75(number, jobs):
    (jobs.folder / "own.py").write_text(
        f"import os\ndef step(done):\n    if done.step == 3: os.kill(os.getpid(), {number:d})\n"
    )
    words = [*QUICK, "--train.callbacks", "own:step", "--run.dir", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "ddl.train", *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=jobs.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 75, done.stdout + done.stderr
    assert json.loads((jobs.folder / "run" / "summary.json").read_text())["status"] == "stopped"
    assert (jobs.folder / "run" / "checkpoints" / "step_00000004").is_dir()


def test_ctrl_c_before_training_ends_the_command_without_a_traceback(jobs):
    (jobs.folder / "own.py").write_text("import os, signal, time\ndef source(): os.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-m", "ddl.train", "--data.source", "own:source"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=jobs.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


LATE = """
import os, signal, time
import ddl.comm.mpi as mpi
from ddl.train.__main__ import main
from ddl.run.runner import Runner

finish, close = mpi.finish, Runner._close

def stops(group, status=0):
    if group.me.identity == 1 and os.environ["LATE"] == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    finish(group, status)

def hangs(runner):
    if runner.group.me.identity == 1 and os.environ["LATE"] == "hang":
        time.sleep(1000)
    close(runner)

mpi.finish, Runner._close = stops, hangs
raise SystemExit(main())
"""


@pytest.mark.parametrize("late", ["stop", "hang"])
def test_a_rank_that_hangs_after_the_agreed_end_does_not_block_the_others(late, jobs):
    (jobs.folder / "late.py").write_text(LATE)
    ended = jobs.run("--fault.hang_timeout_s", "3", program=("late.py",), environ={"LATE": late})
    assert ended.status == 0 and ended.summary["status"] == "finished" and ended.is_exact(), ended.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("flags", [("--with-ft", "ulfm"), ()], ids=["tolerant", "not tolerant"])
def test_an_interrupted_mpirun_leaves_no_process(number, flags, jobs):
    running = jobs.start(*slow(jobs), flags=flags)
    running.until(3)
    os.kill(running.process.pid, number)
    ended = running.wait()  # which sees that nothing is left
    assert ended.status != 0 and ended.seconds < 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_supervisor_leaves_no_process(number, jobs):
    running = jobs.supervised(*slow(jobs))
    running.until(3)
    os.kill(running.process.pid, number)
    ended = running.wait()
    assert ended.status == 75, ended.said


@pytest.mark.parametrize("how", ["tolerant", "not tolerant", "supervised"])
def test_usr1_writes_a_checkpoint_and_ends_with_75(how, jobs, calm):
    if how == "supervised":
        running = jobs.supervised(*slow(jobs))
    else:
        running = jobs.start(*slow(jobs), flags=("--with-ft", "ulfm") if how == "tolerant" else ())
    running.until(7)
    os.kill(running.process.pid, signal.SIGUSR1)
    ended = running.wait()
    steps = ended.summary["steps"]
    assert ended.status == 75 and ended.summary["status"] == "stopped" and 7 <= steps < 30, ended.said
    assert (ended.folder / "checkpoints" / f"step_{steps:08d}").is_dir()
    again = jobs.run(folder=ended.folder, flags=())
    assert again.status == 0 and again.is_exact(), again.said
    assert again.summary["parameters_sha256"] == calm.summary["parameters_sha256"]
