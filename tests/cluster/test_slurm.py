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


STEPS = 400


def await_steps(folder: Path, count: int, deadline_s: float = 120) -> None:
    """Until the run's ledger has ``count`` steps."""
    deadline = time.monotonic() + deadline_s
    while steps_in(folder) < count:
        assert time.monotonic() < deadline, "".join(p.read_text(errors="replace") for p in folder.parent.glob("*.out"))
        time.sleep(0.2)


def steps_in(folder: Path) -> int:
    path = folder / "ledger.jsonl"
    return sum('"step"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def shown(slurm: dict[str, str], job: str) -> str:
    return subprocess.run(
        ["scontrol", "show", "job", job], env=slurm, capture_output=True, text=True, timeout=30, check=True
    ).stdout


def parameters(folder: Path) -> bytes:
    """Parameters and optimizer state of a run's last checkpoint."""
    content = max((folder / "checkpoints").glob(f"step_*{STEPS}*")).joinpath("arrays.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def assert_exact(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["steps"] == STEPS
    audit = subprocess.run(
        [sys.executable, "-m", "ddl.audit", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert audit.returncode == 0, audit.stdout + audit.stderr


@pytest.fixture(scope="module")
def undisturbed(slurm, environment, tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    state, output, _ = submit(slurm, environment, folder, "--train.steps", str(STEPS), "--run.dir", "run")
    assert state == "COMPLETED", output
    return parameters(folder / "run")


def signal_batch(slurm: dict[str, str], job: str, name: str) -> None:
    # As Slurm does with --signal=B:USR1 and with preempt_send_user_signal, but at a moment of our choosing.
    subprocess.run(["scancel", "--batch", f"--signal={name}", job], env=slurm, check=True, timeout=30)


@pytest.mark.parametrize("signals", [("USR1", "USR2"), ("TERM",)])
def test_a_signalled_job_is_queued_again_and_ends_at_the_parameters_of_the_undisturbed_one(
    slurm, environment, tmp_path, undisturbed, signals
):
    run = tmp_path / "run"
    job = queue(slurm, environment, tmp_path, "--train.steps", str(STEPS), "--run.dir", "run")
    for count, name in enumerate(signals):
        await_steps(run, steps_in(run) + 20)
        signal_batch(slurm, job, name)
        deadline = time.monotonic() + 60
        while f"Restarts={count + 1}" not in shown(slurm, job):
            assert time.monotonic() < deadline, (tmp_path / f"ddl-{job}.out").read_text(errors="replace")
            time.sleep(0.5)
    assert ended(job, slurm, 240) == "COMPLETED", (tmp_path / f"ddl-{job}.out").read_text(errors="replace")
    assert_exact(run)
    assert parameters(run) == undisturbed


def test_a_cancelled_job_is_not_queued_again_and_a_second_submission_ends_it(slurm, environment, tmp_path, undisturbed):
    run = tmp_path / "run"
    words = ("--train.steps", str(STEPS), "--checkpoint.every_steps", "10", "--run.dir", "run")
    job = queue(slurm, environment, tmp_path, *words)
    await_steps(run, 30)
    subprocess.run(["scancel", job], env=slurm, check=True, timeout=30)
    assert ended(job, slurm, 60) == "CANCELLED"
    assert "Restarts=0" in shown(slurm, job)
    state, text, _ = submit(slurm, environment, tmp_path, *words)
    assert state == "COMPLETED" and "resumes from step" in text, text
    assert_exact(run)
    assert parameters(run) == undisturbed
