"""Whole jobs under ddl.launch: whatever strikes them, they end with the result of an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddl.audit import report
from ddl.launcher.mpirun import members

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
ROOT = Path(__file__).parents[2]
STEPS = 40
WORDS = (
    f"-n 3 --train.steps {STEPS} --train.dtype float64 --checkpoint.every_steps 7 --metrics.console_every_s 0".split()
)


def launch(folder, *words):
    """(summary, what was said) of a supervised job that has to end well."""
    done = subprocess.run(
        [sys.executable, "-m", "ddl.launch", *WORDS, "--run.dir", str(folder), *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert report(folder).is_exact
    assert not members(summary["launch"])
    assert not list(Path("/dev/shm").glob("ddl*"))
    return summary, done.stdout + done.stderr


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The undisturbed run."""
    return launch(tmp_path_factory.mktemp("calm") / "run")[0]


DRILLS = {
    # name: (script, settings, ways in which ranks were lost in the last launch, launches)
    "crash": ("kill rank 0 at step 9; segv rank 2 at step 20", (), ["crash", "crash"], 1),
    "stopped": ("stop rank 1 at step 9", (), ["stopped"], 1),
    "hang": ("hang rank 1 at step 9", ("--fault.hang_timeout_s", "20", "--train.compiled", "off"), ["hang"], 1),
    "exception": ("raise rank 1 at step 9", (), ["exception"], 1),
    "all at once": ("kill ranks 0,1,2 at step 17", (), [], 2),
    "all at once, with replicas": ("kill ranks 0,1,2 at step 17", ("--checkpoint.replica", "true"), [], 2),
    "a recovery that hangs": (
        "kill rank 2 at step 9; hang ranks 0,1 at point recover.shrink",
        ("--fault.recovery_timeout_s", "3"),
        [],
        2,
    ),
    "without tolerance": ("kill rank 1 at step 17", ("--fault.tolerance", "off"), [], 2),
    "in a checkpoint": ("kill rank 0 at point checkpoint.rename:2", (), ["crash"], 1),
}


@pytest.mark.parametrize("drill", DRILLS)
def test_a_job_ends_like_an_undisturbed_one(drill, calm, tmp_path):
    script, settings, kinds, launches = DRILLS[drill]
    summary, said = launch(tmp_path / "run", "--chaos", script, *settings)
    assert summary["steps"] == STEPS
    assert [failure["kind"] for failure in summary["failures"]] == kinds, said
    assert report(tmp_path / "run").launches == launches
    assert summary["test"]["loss"] == pytest.approx(calm["test"]["loss"], rel=1e-8)


def test_when_all_ranks_are_lost_the_job_resumes_from_the_copy_in_memory_that_no_disk_has(calm, tmp_path):
    words = ("--checkpoint.every_steps", "0", "--checkpoint.replica", "true", "--checkpoint.replica_every_s", "0.01")
    summary, said = launch(tmp_path / "run", "--chaos", "kill ranks 0,1,2 at step 17", *words)
    lines = map(json.loads, (tmp_path / "run" / "ledger.jsonl").read_text().splitlines())
    first, again = [line["start"] for line in lines if "start" in line]
    assert first == 0 and 0 < again <= 17, said
    assert summary["test"]["loss"] == pytest.approx(calm["test"]["loss"], rel=1e-8)


def test_random_trials_end_as_calm_ones():
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault.trials", "--count", "8", "--seed", "3"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
