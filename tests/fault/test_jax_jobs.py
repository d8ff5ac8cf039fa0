"""The examples in JAX: the same result on one rank, and on three of which one dies in the middle."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddl.launcher.mpirun import find_mpirun

pytest.importorskip("jax", reason="JAX is not installed")

EXAMPLES = Path(__file__).parents[2] / "launch" / "examples"
STRUCK = """
import os, runpy, signal, sys
import ddl.jax
compute, calls = ddl.jax.Model.loss_and_gradients, 0

def dying(self, *arguments):
    global calls
    calls += 1
    if calls == 25 and os.environ["OMPI_COMM_WORLD_RANK"] == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, *arguments)

ddl.jax.Model.loss_and_gradients = dying
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def result(folder, *words, launcher=()):
    path = os.pathsep.join([str(EXAMPLES.parents[1]), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [*launcher, sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=150, check=False)
    found = re.search(r"(.*) ranks, accuracy (\S+), loss (\S+), first guesses (.*)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    return found[1], found[2], float(found[3]), found[4]


@pytest.mark.parametrize(("script", "victim"), [("jax_mlp.py", 0), ("flax_cnn.py", 2)])
def test_a_rank_that_dies_changes_nothing_in_the_result(script, victim, tmp_path):
    if script.startswith("flax"):
        pytest.importorskip("flax", reason="Flax is not installed")
    for name in ("alone", "struck"):
        (tmp_path / name).mkdir()
    (tmp_path / "struck.py").write_text(STRUCK)
    launcher = [find_mpirun(), "--with-ft", "ulfm", "--map-by", ":oversubscribe", "-n", "3"]
    ranks, accuracy, loss, guesses = result(tmp_path / "alone", EXAMPLES / script)
    assert ranks == "1 of 1"
    words = [tmp_path / "struck.py", EXAMPLES / script, victim]
    struck = result(tmp_path / "struck", *words, launcher=launcher)
    assert struck[:2] == ("2 of 3", accuracy) and abs(struck[2] - loss) < 1e-4 and struck[3] == guesses
