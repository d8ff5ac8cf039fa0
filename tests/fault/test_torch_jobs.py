"""The examples in PyTorch, with and without a rank that dies in the middle.

The trainer and the own loop print the same to the last digit; unchanged DDP keeps training."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "launch" / "examples"
TOLERANT = ["mpirun", "--with-ft", "ulfm", "--map-by", ":oversubscribe", "-n", "3"]
# Runs a script in which one rank dies in its backward pass number 40.
STRUCK = """
import os, runpy, signal, sys, torch
backward, passes = torch.Tensor.backward, 0

def dying(self, *arguments, **options):
    global passes
    passes += 1
    if passes == 40 and os.environ["OMPI_COMM_WORLD_RANK"] == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(self, *arguments, **options)

torch.Tensor.backward = dying
script, victim = sys.argv[1], sys.argv.pop(2)
sys.argv[:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


def run(folder, *words, launcher=(), status=0):
    """(stdout, stderr) of a Python program, whose launch must end with this status."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, sys.executable, *map(str, words)],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("script", "words", "victim", "result", "limits"),
    [
        ("torch_trainer.py", [], 0, r"accuracy (0\.\d+), loss (0\.\d+)", (0.8, 1)),
        ("torch_loop.py", [], 1, r"accuracy (0\.\d+), loss (0\.\d+)", (0.8, 1)),
        ("nanogpt.py", ["--steps", 48], 0, r"(\d\.\d+) bits per byte of unseen files, entropy .* (\d\.\d+)", (2, 4.4)),
    ],
)
def test_a_rank_that_dies_changes_nothing_in_the_result(script, words, victim, result, limits, tmp_path):
    for name in ("alone", "struck"):
        (tmp_path / name).mkdir()
    alone, _ = run(tmp_path / "alone", EXAMPLES / script, *words)
    victims = [EXAMPLES / script, victim, *words]
    struck, err = run(tmp_path / "struck", "-c", STRUCK, *victims, launcher=TOLERANT)
    results = re.findall(result, alone)
    assert results and re.findall(result, struck) == results, alone + struck + err
    assert re.search(r"^1 (of 1 )?ranks", alone, re.MULTILINE), alone
    assert re.search(r"^2 (of 3 )?ranks", struck, re.MULTILINE), struck + err  # one survivor prints, of two
    assert limits[0] < float(results[0][0]) < limits[1]


@pytest.mark.parametrize("victim", [0, 3])
def test_unchanged_ddp_keeps_training_on_the_other_ranks(victim, tmp_path):
    launcher = [*TOLERANT[:-1], "4"]
    out, err = run(tmp_path, "-c", STRUCK, EXAMPLES / "torch_ddp.py", victim, launcher=launcher)
    assert re.findall(r"on (\d) ranks$", out, re.MULTILINE)[-1] == "3", out + err
    assert re.search(
        rf"^ddl: lost rank {victim} on .*; 3 ranks keep training after .*; step 39 is skipped; ", err, re.M
    )
    assert float(re.findall(r"accuracy (0\.\d+)", out)[0]) > 0.8, out + err


def test_unchanged_ddp_without_a_launcher_is_one_rank(tmp_path):
    out, err = run(tmp_path, EXAMPLES / "torch_ddp.py")
    assert out.count("on 1 ranks") == 10 and "accuracy 0." in out, out + err


@pytest.mark.parametrize("script", ["torch_ddp.py", "torch_loop.py"])
def test_a_launcher_that_ends_the_job_with_a_rank_is_named_at_the_start(script, tmp_path):
    (tmp_path / "began.py").write_text(
        "import os, runpy, sys\nimport torch\ntorch.Tensor.backward = lambda *_: os._exit(3)\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')\n"
    )
    flags = ["--prtemca", "state_base_recoverable", "0", "--prtemca", "state_base_notify_errors", "0"]
    launcher = ["mpirun", *flags, "--map-by", ":oversubscribe", "-n", "2"]
    _, err = run(tmp_path, "began.py", EXAMPLES / script, launcher=launcher, status=3)
    reason = "mpirun was started without --with-ft ulfm: it ends the job when a process dies"
    line = f"ddl: a rank's death ends this job ({reason})"
    assert err.splitlines().count(line) == 1, err
