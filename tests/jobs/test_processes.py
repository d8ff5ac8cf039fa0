"""What only a separate process can show: its imports, its threads, and its neighbours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddl.launcher.cores import VARIABLES

CORES = len(os.sched_getaffinity(0))

COUNT = """
import ctypes
paths = {line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line and ".so" in line}
for path in paths:
    for name in ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads64_", "openblas_get_num_threads"):
        if hasattr(ctypes.CDLL(path), name):
            print("threads", getattr(ctypes.CDLL(path), name)())
"""


@pytest.mark.skipif(CORES < 2, reason="one core: nothing to share")
@pytest.mark.parametrize("imports", ["import ddl, numpy", "import numpy, ddl"])
def test_blas_has_its_share_whether_numpy_or_ddl_comes_first(imports):
    environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environ |= {"OMPI_COMM_WORLD_LOCAL_SIZE": str(CORES), "PYTHONPATH": str(Path(__file__).parents[2])}
    code = f"{imports}\n{COUNT}"
    out = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout
    if "threads" not in out:
        pytest.skip("NumPy's BLAS is not OpenBLAS")
    assert set(out.split()) == {"threads", "1"}


def test_the_supervisor_needs_neither_mpi_nor_numpy():
    code = "import sys; sys.modules['mpi4py'] = None; import ddl.launch; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_same_command_run_beside_itself_is_noticed():
    code = "import sys; from ddl.comm import unconnected; input(); print(unconnected({}))"
    words = [sys.executable, "-c", code, "ddl.train"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    alone = subprocess.run(words, input="\n", stdout=subprocess.PIPE, text=True, check=True)
    assert alone.stdout == "\n"
    both = [subprocess.Popen(words, **pipes) for _ in range(2)]
    both[0].stdin.write("\n")
    both[0].stdin.flush()
    assert "1 more of this command run beside it" in both[0].stdout.readline()
    for process in both:
        process.communicate("\n")


def test_reading_settings_imports_neither_numpy_nor_mpi():
    code = (
        "import sys; from ddl.config import load, to_toml; to_toml(load([])); "
        "print([m for m in ('numpy', 'mpi4py', 'numba', 'cupy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_asking_for_a_gpu_that_is_not_there_ends_in_one_line(tmp_path):
    words = [sys.executable, "-m", "ddl.train", "--comm.device", "gpu", "--run.dir", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode == 0:
        pytest.skip("there is a GPU")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no CUDA device" in done.stderr
