"""slurm/train.sbatch without Slurm, against a stub of mpirun: where the run goes, signals, and what its end means."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUB = """#!{python}
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
pathlib.Path("words.json").write_text(json.dumps(words))
sys.path.insert(0, {root!r})
from ddl.config import load
folder = pathlib.Path(load(words[words.index("ddl.train") + 1:]).run.dir)
folder.mkdir(parents=True, exist_ok=True)
status = os.environ["ENDS"]
if status == "waits":
    signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit())
    (folder / "config.toml").touch()
    time.sleep(100)
if status != "dies":
    (folder / "summary.json").write_text(json.dumps({{"status": status, "launch": os.environ["DDL_LAUNCH"]}}))
"""


@pytest.fixture
def batch(tmp_path):
    """batch("job.toml", ends="finished"): the script, in a folder with a job file that names its run folder."""
    tools = tmp_path / "environment" / "bin"
    tools.mkdir(parents=True)
    (tools / "activate").write_text(f'export PATH="{tools}:$PATH"\n')
    (tools / "mpirun").write_text(STUB.format(python=sys.executable, root=str(ROOT)))
    (tools / "mpirun").chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    (tmp_path / "job.toml").write_text('[run]\ndir = "mine"\n')

    def run(*words: str, ends: str = "finished", after_s: float | None = None) -> subprocess.CompletedProcess[str]:
        """after_s: seconds until USR1 is sent to the script, again and again: the first may come before Python has
        started, and is lost then. The job saves itself by the clock if no other comes."""
        names = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_SUBMIT_DIR": str(tmp_path)}
        command = ["bash", str(ROOT / "slurm" / "train.sbatch"), *words]
        process = subprocess.Popen(
            command,
            env={**os.environ, **names, "DDL_VENV": str(tools.parent), "ENDS": ends, "PYTHONPATH": _paths()},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if after_s is not None:
            time.sleep(after_s)
            deadline = time.monotonic() + 100
            while process.poll() is None and time.monotonic() < deadline:
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.2)
        out, err = process.communicate(timeout=100)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


def _paths() -> str:
    # The link above is not a virtual environment, so pass this interpreter's search path on.
    return os.pathsep.join([str(ROOT), *filter(None, sys.path)])


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ((), "runs/slurm-7"),
        (("job.toml",), "mine"),
        (("job.toml", "--run.dir", "other"), "other"),
        (("--run.dir=other", "--train.steps=3"), "other"),
    ],
)
def test_the_run_folder_comes_from_the_command_line_or_the_job_file(batch, tmp_path, words, folder):
    done = batch(*words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / folder / "summary.json").exists()
    assert len(list(tmp_path.rglob("summary.json"))) == 1


@pytest.mark.parametrize(("ends", "status"), [("finished", 0), ("stopped", 75), ("failed", 1), ("dies", 1)])
def test_the_exit_status_comes_from_the_summary_and_not_from_mpirun(batch, ends, status):
    assert batch("--restarts", "0", ends=ends).returncode == status


@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.6, 2.0])
def test_signals_from_any_moment_of_the_start_on_reach_the_job_and_are_recorded_once(batch, tmp_path, after_s):
    done = batch(ends="waits", after_s=after_s)
    assert done.returncode == 75, (done.returncode, done.stderr)
    assert json.loads((tmp_path / "runs" / "slurm-7" / "summary.json").read_text())["early_stops"] == 1


def test_bad_arguments_print_one_line_before_anything_starts(batch, tmp_path):
    done = batch("--optim.lrr=1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("ddl.launch: [optim] has no setting 'lrr'")
    assert not (tmp_path / "words.json").exists()
