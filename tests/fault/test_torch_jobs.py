"""The examples in PyTorch, with and without a rank that dies in the middle: the same to the last printed digit."""

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
    if passes == 40 and os.environ["OMPI_COMM_WORLD_RANK"] == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(self, *arguments, **options)

torch.Tensor.backward = dying
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def run(folder, *words, launcher=()):
    """(stdout, stderr) of a Python program, whose launch must end with status 0."""
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
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(("script", "victim"), [("torch_trainer.py", 0), ("torch_loop.py", 1)])
def test_a_rank_that_dies_changes_nothing_in_the_result(script, victim, tmp_path):
    for name in ("alone", "struck"):
        (tmp_path / name).mkdir()
    alone, _ = run(tmp_path / "alone", EXAMPLES / script)
    struck, err = run(tmp_path / "struck", "-c", STRUCK, EXAMPLES / script, victim, launcher=TOLERANT)
    result = re.compile(r"accuracy (0\.\d+), loss (0\.\d+)")
    assert result.search(alone) and result.findall(struck) == result.findall(alone), struck + err
    assert alone.startswith("1 ") and struck.startswith("2 "), struck + err  # one survivor prints, of two
    assert float(result.search(alone)[1]) > 0.8
