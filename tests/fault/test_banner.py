"""The banner says whether this launch survives a rank's death; that is asked before MPI changes the answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
SHORT = ("--train.steps=1", "--model.name=mlp", "--train.compiled=off")


@pytest.mark.parametrize(
    ("launcher", "words", "expected"),
    [
        ([], [], "ends the job (a single process, started without mpirun)"),
        (["mpirun", "-n", "2"], ["--fault.tolerance=off"], "ends the job (fault.tolerance is off)"),
        (["mpirun", "--with-ft", "ulfm", "-n", "2"], [], "is survived (launched with --with-ft ulfm)"),
        (["env", "PRTE_MCA_state_base_recoverable=1", "PRTE_MCA_state_base_notify_errors=1", "mpirun", "-n", "2"], [],
         "is survived (launcher made recoverable by "),
    ],
    ids=["alone", "off", "flag", "variables"],
)  # fmt: skip
def test_the_banner_says_whether_a_death_is_survived_and_why(launcher, words, expected, tmp_path):
    names = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [*launcher, sys.executable, "-m", "ddl.train", *SHORT, *words],
        cwd=tmp_path,
        env=names,
        capture_output=True,
        text=True,
        timeout=100,
    )
    said = " ".join(done.stdout.split())
    assert f"a rank's death {expected}" in said, done.stdout + done.stderr
    assert ("mpirun's exit status can be 0 for a lost job: trust ddl.launch's, or summary.json" in said) == bool(
        launcher
    )


def test_the_banner_names_ddl_launch_as_the_command_whose_status_counts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ddl.launch", "-n", "2", *SHORT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "the exit status of ddl.launch is the job's" in done.stdout, done.stdout + done.stderr
