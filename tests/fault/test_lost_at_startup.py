"""A rank lost before MPI starts does not leave the others waiting: the launch ends, and can start again."""

from __future__ import annotations

import json
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
LAUNCH = ["mpirun", "-n", "3", "--oversubscribe", "--bind-to", "none", "--with-ft", "ulfm"]
SETTINGS = ["--train.steps", "5", "--run.dir", "run", "--fault.startup_timeout_s", "5"]
LIBMPI = """python -c 'import ctypes, glob, os, sys
ctypes.CDLL(glob.glob(sys.prefix + "/lib/libmpi.so*")[0])
os.kill(os.getpid(), 9)'"""


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.mark.parametrize("end", ["exit 0", "exit 1", "exit 3", "kill -9 $$", "kill -STOP $$", f"exec {LIBMPI}"])
def test_a_launch_without_one_of_its_ranks_ends(end, tmp_path):
    program = f"if [ $OMPI_COMM_WORLD_RANK = 1 ]; then {end}; fi; exec {sys.executable} -m ddl.train "
    program += " ".join(SETTINGS)
    done = subprocess.run(
        [*LAUNCH, "bash", "-c", program], capture_output=True, text=True, timeout=90, cwd=tmp_path, env=environment()
    )
    assert f"rank 1 {'did not start within 5 s' if 'STOP' in end else 'ended while starting'}" in done.stderr
    assert done.returncode != 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"
    notes = sorted((tmp_path / "run" / "notes").glob("*/rank-*.json"))
    assert [path.name for path in notes] == ["rank-0.json", "rank-2.json"]


def test_a_supervised_job_starts_again_when_a_rank_is_lost_at_its_start(tmp_path):
    """The rank is lost as soon as its interpreter starts, by a module that Python imports first, once."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('OMPI_COMM_WORLD_RANK') == '1' and not os.path.exists('lost'):\n"
        "    open('lost', 'w').close()\n"
        "    os._exit(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "ddl.launch", "-n", "3", *SETTINGS],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 1 ended while starting" in done.stderr and "starting again on 3 ranks" in done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_a_signal_before_the_job_can_handle_it_stops_the_job_and_does_not_kill_it(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from ddl import early_signals\n"
        "early_signals.install()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "from ddl.train.__main__ import main\n"
        "sys.exit(main(['--run.dir', 'run']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, cwd=tmp_path, env=environment()
    )
    assert done.returncode == 75, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"


HANGS_ONCE = """
import os, pathlib, time
import numpy as np
import ddl

def source():
    first = os.environ["DDL_LAUNCH"].endswith("-0")
    if first and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        time.sleep(1000)
    return ddl.data.Arrays(np.eye(8), np.arange(8) % 2)
"""


def test_a_supervised_job_starts_again_when_a_rank_hangs_while_it_opens_its_data(tmp_path):
    (tmp_path / "own.py").write_text(HANGS_ONCE)
    words = ["--data.source", "own:source", "--model.name", "mlp", "--train.steps", "2", "--train.compiled", "off"]
    done = subprocess.run(
        [sys.executable, "-m", "ddl.launch", "-n", "3", *words, "--run.dir", "run", "--fault.startup_timeout_s", "3"],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("made no progress for 3 s while opening its data") == 2  # once by ddl.launch
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


JOINING = """
import os
if os.environ.get("OMPI_COMM_WORLD_RANK") == "1":
    from ddl.fault import startup
    def joining():
        while not os.path.exists(startup.announcements_folder("") + "/rank-1.json"): pass
        startup._send(startup.JOINING)
        os._exit(0)
    startup.joining = joining
"""
STARTING = """
import os
if os.environ.get("OMPI_COMM_WORLD_RANK") == "1":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    ("program", "end", "said"),
    [
        ("-c 'import ddl; ddl.init()'", JOINING, "ended while joining MPI"),
        ("-m ddl.evaluate run", JOINING, "ended while joining MPI"),
        ("-c 'import ddl; ddl.init()'", STARTING, "rank 1 ended while starting"),
    ],
)
def test_scripts_and_commands_without_one_of_their_ranks_end_too(program, end, said, tmp_path):
    """The rank ends while it starts MPI, or before it has announced itself: the others know that it is gone."""
    (tmp_path / "sitecustomize.py").write_text(end)
    done = subprocess.run(
        [*LAUNCH, "bash", "-c", f"exec {sys.executable} {program}"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert done.stderr.count(said) == 1, done.stdout + done.stderr
