"""``sbatch slurm/train.sbatch`` on two sandboxed nodes: real Slurm daemons, each node in its own namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = Path(os.environ.get("DDL_SLURM_SANDBOX", ROOT.parent / "shared" / "slurm-sandbox.sh"))

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="the Slurm sandbox makes namespaces and needs root"),
    pytest.mark.skipif(not SANDBOX.exists(), reason=f"no Slurm sandbox at {SANDBOX} (DDL_SLURM_SANDBOX names another)"),
]


def sandbox(*words: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(SANDBOX), *words], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def slurm():
    """The environment in which sbatch reaches a sandbox of at least two nodes."""
    was_up = sandbox("status").returncode == 0
    if not was_up:
        started = sandbox("start")
        if started.returncode != 0:
            pytest.skip(f"the sandbox does not start here: {started.stderr.strip().splitlines()[-1:]}")
    line = sandbox("env").stdout.strip()
    name, _, value = line.removeprefix("export ").partition("=")
    # The sandbox's jobs run as root, as it does itself.
    yield {**os.environ, name: value, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if not was_up:
        sandbox("stop")


@pytest.fixture(scope="module")
def environment() -> str:
    """The virtual environment that the tests run in, on the path of every node."""
    if sys.prefix == sys.base_prefix:
        pytest.skip("not in a virtual environment: slurm/train.sbatch needs one")
    return sys.prefix


def ended(job: str, slurm: dict[str, str], deadline_s: float) -> str:
    """The state that a job ended in."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        shown = subprocess.run(
            ["scontrol", "show", "job", job], env=slurm, capture_output=True, text=True, timeout=30
        ).stdout
        state = next((word.split("=")[1] for word in shown.split() if word.startswith("JobState=")), "")
        if state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            return state
        time.sleep(0.5)
    subprocess.run(["scancel", job], env=slurm, timeout=30)
    raise AssertionError(f"job {job} did not end within {deadline_s:.0f} s")


def queue(slurm: dict[str, str], environment: str, folder: Path, *words: str) -> str:
    """The number of a job of two nodes with two ranks each."""
    done = subprocess.run(
        ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", str(ROOT / "slurm" / "train.sbatch"), *words],
        env={**slurm, "DDL_VENV": environment, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split(";")[0]


def submit(slurm: dict[str, str], environment: str, folder: Path, *words: str) -> tuple[str, str, dict]:
    """(state, output, summary) of a job that was waited for."""
    job = queue(slurm, environment, folder, *words)
    state = ended(job, slurm, 150)
    output = (folder / f"ddl-{job}.out").read_text(errors="replace")
    found = list(folder.glob("runs/*/summary.json")) + list(folder.glob("run/summary.json"))
    return state, output, json.loads(found[0].read_text()) if found else {}


def test_the_digits_job_trains_on_two_nodes_with_two_ranks_each(slurm, environment, tmp_path):
    words = ("--train.epochs", "4", "--run.seed", "3")
    state, output, summary = submit(slurm, environment, tmp_path, *words)
    assert state == "COMPLETED", output
    assert summary["status"] == "finished" and summary["ranks_finished"] == 4, output
    assert summary["samples"]["missing"] == summary["samples"]["repeated"] == 0
    assert output.count("node1") >= 1 and output.count("node2") >= 1, output

    alone = subprocess.run(
        [sys.executable, "-m", "ddl.train", *words, "--run.dir", str(tmp_path / "alone")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert alone.returncode == 0, alone.stderr
    local = json.loads((tmp_path / "alone" / "summary.json").read_text())
    assert (local["steps"], local["samples"], local["shards"]) == (
        summary["steps"],
        summary["samples"],
        summary["shards"],
    )
    images = 360  # in the test split
    assert abs(local["test"]["accuracy"] - summary["test"]["accuracy"]) * images <= 2.5


def test_invalid_settings_fail_the_job_with_one_line(slurm, environment, tmp_path):
    state, output, summary = submit(slurm, environment, tmp_path, "--optim.lr", "fast")
    assert state == "FAILED" and not summary
    assert output.count("[optim] lr is fast") == 1, output


def test_the_warning_before_the_time_limit_stops_a_job_that_a_second_submission_ends(slurm, environment, tmp_path):
    run = tmp_path / "run"
    job = queue(slurm, environment, tmp_path, "--train.epochs", "100000", "--run.dir", "run")
    deadline = time.monotonic() + 60
    while '"event":"step"' not in ((run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""):
        assert time.monotonic() < deadline, (tmp_path / f"ddl-{job}.out").read_text(errors="replace")
        time.sleep(0.2)
    # As Slurm does with --signal=B:USR1, but at a moment of our choosing.
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=slurm, check=True, timeout=30)
    output = tmp_path / f"ddl-{job}.out"
    assert ended(job, slurm, 60) == "FAILED", output.read_text(errors="replace")
    shown = subprocess.run(["scontrol", "show", "job", job], env=slurm, capture_output=True, text=True).stdout
    assert "ExitCode=75:0" in shown, output.read_text(errors="replace")
    stopped = json.loads((run / "summary.json").read_text())
    assert stopped["status"] == "stopped" and stopped["steps"] > 0

    steps = stopped["steps"] + 20
    state, text, summary = submit(slurm, environment, tmp_path, "--train.steps", str(steps), "--run.dir", "run")
    assert state == "COMPLETED" and f"resumes from step {stopped['steps']}" in text, text
    assert summary["status"] == "finished" and summary["steps"] == steps
