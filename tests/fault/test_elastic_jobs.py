"""ddl.elastic on real processes: deaths are survived, user errors end the job once, a script keeps its exit status."""

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
ROOT = Path(__file__).parents[2]
TOLERANT = ["mpirun", "--with-ft", "ulfm", "-n", "3"]
SCRIPT = """
import os, signal, sys
import numpy as np, ddl
sys.path.insert(0, {examples!r})
from survive import points
me = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))

def strike(state, world):
    pass

def train(state, world):
    while state.step < 40:
        gradient = np.zeros(3)
        for shard in world.shards:
            x, y = points(shard)
            error = state.line[0] * x + state.line[1] - y
            gradient += [2 * (error * x).sum(), 2 * error.sum(), len(x)]
        strike(state, world)
        total = world.allreduce(gradient)
        state.line -= 0.1 * total[:2] / total[2]
        state.step += 1
        state.commit()
    return world.size

def run(**settings):
    state = ddl.elastic.State(line=np.zeros(2), step=0)
    ranks = ddl.elastic.run(train, state, shards=12, **settings)
    assert abs(state.line[0] - 3) < 0.1 and abs(state.line[1] - 2) < 0.1, state.line
    return ranks
"""


def start(code, folder, launcher=TOLERANT, limit_s=100):
    """(mpirun's status, stdout, stderr); a shell around each rank prints the rank's status and exits with it.

    Once a shell exits with a nonzero status, mpirun ends the others."""
    (folder / "script.py").write_text(SCRIPT.format(examples=str(ROOT / "launch" / "examples")) + code)
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    shell = '"$0" script.py; s=$?; echo "status $s"; [ $s -lt 128 ] && exit $s; kill -KILL $$'
    command = [*launcher, "bash", "-c", shell, sys.executable]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=limit_s)
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_survived(rank, tmp_path):
    code = f"""
def strike(state, world):
    if me == {rank} and state.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
print("ranks", run(on_failure=lambda report: print("lost", [death.identity for death in report.deaths])))
print("again", run())
"""
    status, said, err = start(code, tmp_path)
    assert status == 0, err
    assert said.count("ranks 2") == said.count("again 2") == said.count(f"lost [{rank}]") == 2, (said, err)
    assert said.count("status 0") == 2 and said.count("status 137") == 1
    printed = " ".join(err.split())
    assert printed.count(f"lost rank {rank} on ") == printed.count("2 ranks continue after step 7; shards ") == 1


def test_an_exception_on_every_rank_ends_the_job(tmp_path):
    code = """
def strike(state, world):
    if state.step == 5:
        raise ValueError("mine")
run()
"""
    status, said, err = start(code, tmp_path)
    assert status == 1 and "status 1" in said, (said, err)
    # A rank that is still in the previous call learns of the first exception there, and raises only afterwards.
    assert 1 <= err.count("Traceback") <= 2 and err.count("raised ValueError: mine") == 1, err


def test_an_exception_on_one_rank_costs_that_rank(tmp_path):
    code = """
def strike(state, world):
    if me == 1 and state.step == 5:
        raise ValueError("mine")
print("ranks", run())
"""
    _, said, err = start(code, tmp_path)
    assert said.count("ranks 2") == said.count("status 0") == 2, (said, err)
    assert err.count("Traceback") == 1
    assert " ".join(err.split()).count("(exception): ValueError: mine at script.py") == 1


def test_too_few_ranks_end_the_job_for_a_restart(tmp_path):
    code = """
def strike(state, world):
    if me == 2 and state.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
run(min_ranks=3)
"""
    status, said, err = start(code, tmp_path)
    assert status == 75 and "status 75" in said, (said, err)
    assert err.count("2 ranks are left") == 1 and "Traceback" not in err, err


@pytest.mark.parametrize("launcher", [TOLERANT, ["mpirun", "-n", "3"], []], ids=["tolerant", "mpirun", "alone"])
def test_a_script_ends_with_the_status_it_chooses(launcher, tmp_path):
    status, said, err = start("run()\nsys.exit(3)\n", tmp_path, launcher)
    assert status == 3 and set(said) == {"status 3"}, (said, err)
    assert "Traceback" not in err


def test_sys_exit_in_the_function_ends_all_ranks(tmp_path):
    code = """
def strike(state, world):
    if me == 1 and state.step == 5:
        sys.exit(3)
run()
"""
    status, said, err = start(code, tmp_path)
    assert status == 3 and set(said) == {"status 3"}, (said, err)


def test_an_exception_after_the_run_is_that_ranks_own_end(tmp_path):
    status, said, err = start("run()\nif me == 0:\n    raise ValueError('mine')\n", tmp_path)
    assert status == 1 and said.count("status 1") == 1, (said, err)
    assert err.count("ValueError: mine") == 1


def test_code_after_the_run_may_take_longer_than_the_hang_timeout(tmp_path):
    code = """
print("ranks", run(hang_timeout_s=1.0))
if me == 0:
    until = __import__("time").monotonic() + 4
    while __import__("time").monotonic() < until:
        pass
print("good")
"""
    status, said, err = start(code, tmp_path)
    assert status == 0 and said.count("good") == said.count("status 0") == 3, (said, err)


def test_a_trainer_and_a_loop_share_ranks_and_end(tmp_path):
    code = """
def strike(state, world):
    if me == 1 and state.step == 7 and not world.generation:
        os.kill(os.getpid(), signal.SIGKILL)
x = np.random.default_rng(0).normal(size=(120, 4)); y = (x[:, 0] > 0).astype("int64")
def fit(name):
    run = ddl.Trainer(model=ddl.models.MLP([4, 8, 2]), data=(x, y), global_batch=16,
                      settings={"run.dir": name, "metrics.console_every_s": 0})
    run.fit(steps=5)
    return run.group.size
print("sizes", fit("one"), run(), fit("two"), run())
"""
    status, said, err = start(code, tmp_path)
    assert status == 0, err
    assert said.count("sizes 3 2 2 2") == said.count("status 0") == 2, (said, err)
