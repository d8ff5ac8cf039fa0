"""Real processes under a real launcher: however a rank ends, its peers detect it, shrink, and sum correctly."""

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

PROGRAM = """
import ctypes, os, signal, sys
import numpy as np
from ddl.arrays import Layout
from ddl.comm import mpi
from ddl.errors import JobEnded, PeerLost
from ddl.parallel import GradientSum

folder, how, victims = sys.argv[1], sys.argv[2], [int(v) for v in sys.argv[3].split(",")]
group = mpi.start(tolerant="on")
passed = step = 0

def end():
    if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if how == "segfault": ctypes.string_at(0)
    if how == "exit": os._exit(3)
    if how == "sys.exit": sys.exit(4)
    if how == "raise": raise ValueError("bad value")
    if how == "fail": mpi.fail(group, 7)

def probe(point):
    global passed
    passed += 1
    if group.me.identity in victims and passed == 30 + 17 * group.me.identity: end()

group.probe = probe
layout = Layout.of({"w": (50_000,)})
try:
    while True:
        try:
            reducer = GradientSum(group, layout, 1)
            while step < 40:
                reducer.local.flat[:] = reducer.header[:] = group.me.identity + 1
                total = reducer.finish()
                expected = sum(member.identity + 1 for member in group.members)
                assert (total.gradient == expected).all() and (total.header == expected).all()
                step += 1
            if group.agree(1): break
        except PeerLost:
            pass
        while True:
            group.revoke()
            group = group.shrink()
            try:
                step = max(group.gather_objects(step))
                good = 1
            except PeerLost:
                group.revoke()
                good = 0
            if group.agree(good): break
except JobEnded as ended:
    mpi.fail(group, ended.exit_status)
open(f"{folder}/{group.me.identity}", "w").write(f"{group.size} {step}")
mpi.finish(group, 0)
"""

WAYS = {
    "with-ft": (["--with-ft", "ulfm"], {}),
    "environment": ([], {"PRTE_MCA_state_base_recoverable": "1", "PRTE_MCA_state_base_notify_errors": "1"}),
}


def launch(folder, ranks, way, how, victims):
    flags, variables = WAYS[way]
    (folder / "program.py").write_text(PROGRAM)
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": str(ROOT),
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    results = folder / "results"
    results.mkdir()
    program = [sys.executable, str(folder / "program.py"), str(results), how, ",".join(map(str, victims))]
    command = ["timeout", "-k", "2", "60", "mpirun", *flags, "-n", str(ranks), *program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    return done, {int(path.name): path.read_text() for path in results.iterdir()}


@pytest.mark.parametrize("way", ["with-ft", "environment"])
@pytest.mark.parametrize("how", ["kill", "segfault", "exit", "sys.exit", "raise"])
def test_survivors_keep_working_however_a_rank_ends(tmp_path, way, how):
    done, results = launch(tmp_path, 3, way, how, [0])
    assert results == {1: "2 40", 2: "2 40"}, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("way", ["with-ft", "environment"])
def test_down_to_one(tmp_path, way):
    done, results = launch(tmp_path, 4, way, "kill", [0, 1, 3])
    assert results == {2: "1 40"}, done.stderr


@pytest.mark.parametrize("way", ["with-ft", "environment"])
def test_one_rank_ends_the_job_with_its_status(tmp_path, way):
    done, results = launch(tmp_path, 3, way, "fail", [1])
    assert done.returncode == 7 and not results, done.stderr


BEFORE = """
import os, signal, sys
from ddl.comm import checked
gather, met = checked.gather, []

def struck(*words):
    met.append(1)
    if os.environ["OMPI_COMM_WORLD_RANK"] == "1" and len(met) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return gather(*words)

checked.gather = struck
from ddl.comm import mpi
group = mpi.start(tolerant="on")
print("members", [member.identity for member in group.members], sum(group.gather_objects(1)), flush=True)
mpi.finish(group, 0)
"""


@pytest.mark.parametrize("meeting", [1, 2])
def test_a_death_before_there_is_a_group_is_survived(tmp_path, meeting):
    (tmp_path / "program.py").write_text(BEFORE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    program = [sys.executable, str(tmp_path / "program.py"), str(meeting)]
    command = ["timeout", "-k", "2", "60", "mpirun", "--with-ft", "ulfm", "-n", "4", *program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    assert done.stdout.splitlines() == ["members [0, 2, 3] 3"] * 3, done.stderr
    assert done.returncode == 0


CRASH = """
import ctypes, os, signal, sys
from ddl.comm import checked, mpi
from ddl.errors import PeerLost
group = mpi.start(tolerant="on")
gather, crashing = checked.gather, sys.argv[1].split(",")

def crash(*words):
    if str(group.me.identity) in crashing:
        ctypes.string_at(0)
    return gather(*words)

if group.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    while True:
        group.barrier()
except PeerLost:
    group.revoke()
checked.gather = crash  # all others are in the call that forms the next group
group = group.shrink()
print("members", [member.identity for member in group.members], flush=True)
mpi.finish(group, 0)
"""


@pytest.mark.parametrize(
    ("crashing", "status", "said"), [("0,2", 75, ""), ("0", 0, "members [2]\n"), ("2", 0, "members [0]\n")]
)
def test_a_crash_of_all_ranks_that_form_a_new_group_has_a_status(tmp_path, crashing, status, said):
    (tmp_path / "program.py").write_text(CRASH)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    program = [sys.executable, str(tmp_path / "program.py"), crashing]
    command = ["timeout", "-k", "2", "60", "mpirun", "--with-ft", "ulfm", "-n", "3", *program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    assert (done.returncode, done.stdout) == (status, said), done.stderr
    assert ("MPI crashed on every rank" in done.stderr) == bool(status)
