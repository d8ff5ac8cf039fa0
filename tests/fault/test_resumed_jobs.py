"""Resuming from a checkpoint in mid-epoch, after every kind of end; and the damage a checkpoint survives."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
ROOT = Path(__file__).parents[2]
EVERY = ("--checkpoint.every_steps", "4")


def slow(jobs, seconds: float = 0.1) -> list[str]:
    (jobs.folder / "slow.py").write_text(f"import time\ndef step(outcome): time.sleep({seconds})\n")
    return ["--train.callbacks", '["slow:step"]']


@pytest.fixture
def killed(jobs):
    """A job on 4 ranks, all killed at once after step 14, in its third epoch.

    Step 14 is reported after the callback has slept through step 13; by then the checkpoint of step 12 is written."""
    running = jobs.start(*slow(jobs), *EVERY)
    running.until(14)
    running.kill()
    ended = running.wait()
    assert ended.status != 0 and not ended.summary
    return ended


def test_a_killed_job_resumes_to_the_same_bits(jobs, killed, calm):
    again = jobs.run(folder=killed.folder)
    assert again.status == 0 and again.is_exact(), again.said
    assert again.of("start")[-1]["step"] == 12
    assert again.summary["parameters_sha256"] == calm.summary["parameters_sha256"]


@pytest.mark.parametrize("ranks", [1, 3, 6])
def test_a_killed_job_resumes_on_another_number_of_ranks(ranks, jobs, killed, calm):
    again = jobs.run(folder=killed.folder, n=ranks)
    assert again.status == 0 and again.is_exact(), again.said
    assert again.losses == pytest.approx(calm.losses, rel=1e-8)
    assert again.summary["test"]["accuracy"] == calm.summary["test"]["accuracy"]


def test_a_truncated_checkpoint_is_passed_over_with_a_line(jobs, killed, calm):
    before, newest = sorted((killed.folder / "checkpoints").glob("step_????????"))[-2:]
    largest = max(newest.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    again = jobs.run(folder=killed.folder)
    assert again.status == 0 and again.is_exact(), again.said
    assert any(newest.name in line["message"] and "skipped" in line["message"] for line in again.of("warning"))
    assert again.of("start")[-1]["step"] == int(before.name[5:])
    assert again.summary["parameters_sha256"] == calm.summary["parameters_sha256"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("left", [128 << 10, 0])
def test_a_full_disk_costs_a_checkpoint_and_nothing_else(jobs, calm, left):
    """left: bytes that the disk still takes, from step 5 to 13. Without any, until events wait in memory."""
    folder = jobs.folder / "disk" / "run"
    folder.parent.mkdir()
    ballast = (
        f"import os\nLEFT = {left}\n"
        f"path, metrics = {str(folder.parent / 'ballast')!r}, {str(folder / 'metrics.jsonl')!r}\n"
        "sizes = []\n"
        "def step(outcome):\n"
        "    if outcome.step == 5:\n"
        "        with open(path, 'wb', 0) as file:\n"
        "            free = os.statvfs(path)\n"
        "            file.write(bytes(max(free.f_bavail * free.f_frsize - LEFT, 0)))\n"
        "    sizes.append(os.stat(metrics).st_size)\n"
        "    if outcome.step >= 13 and (LEFT or sizes[-1] == sizes[-2]) and os.path.exists(path):\n"
        "        os.unlink(path)\n"
    )
    (jobs.folder / "ballast.py").write_text(ballast)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(folder.parent)])
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        ended = jobs.run(
            "--train.callbacks",
            '["ballast:step"]',
            *EVERY,
            folder=folder,
            environ={"PYTHONPATH": f"{ROOT}:{jobs.folder}"},
        )
        assert ended.status == 0 and ended.is_exact(), ended.said
        assert sorted(ended.losses) == list(range(1, 31))
        warnings = [line["message"] for line in ended.of("warning")]
        full = [message for message in warnings if "the disk is full" in message]
        assert full and "earlier ones are untouched" in full[0]
        assert left or any(message.startswith("metrics.jsonl waits in memory") for message in warnings)
        assert ended.of("checkpoint")[0]["step"] == 4
        assert ended.of("checkpoint")[-1]["step"] == 30
        assert ended.summary["parameters_sha256"] == calm.summary["parameters_sha256"]
    finally:
        subprocess.run(["umount", str(folder.parent)], check=True)


def test_an_older_launch_leaves_when_a_newer_one_takes_its_folder(jobs, calm):
    older = jobs.start(*slow(jobs, 0.5), "--checkpoint.every_steps", "2", n=2)
    older.until(5)
    newer = jobs.run(*EVERY, folder=older.folder, n=2)
    assert newer.status == 0 and newer.summary["status"] == "finished", newer.said
    ended = older.wait()
    assert ended.status == 75 and "belongs to" in ended.said, ended.said
    assert newer.summary["steps"] == 30
