"""Test whether the MPI library accepts arrays in GPU memory: ask the library, then verify its answer by a trial.

A library without CUDA support takes a device address for a host address and crashes, so the trial runs in a separate
process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

TRIAL_S = 60.0

# Variables of the launch environment: with them MPI in the trial would believe that it is a rank of this job.
_OF_THE_JOB = ("PMIX_", "PMI_", "PRTE_", "OMPI_", "SLURM_")

_TRIAL = """
import sys
from mpi4py import MPI
from ddl.arrays import Device

device = Device(int(sys.argv[1]))
with device.activate():
    sent, total, received = (device.xp.full(1, value, "float32") for value in (3, 3, 0))
    device.synchronize()
    MPI.COMM_SELF.Sendrecv(sent, 0, 0, received, 0, 0)
    MPI.COMM_SELF.Allreduce(MPI.IN_PLACE, total)
    right = float(received[0]) == float(total[0]) == 3
sys.exit(0 if right else 3)
"""


@cache
def refusal(mpi: Any, index: int) -> str:
    """Why MPI cannot use memory of the GPU ``index``; "" if the trial summed one element correctly."""
    if not claims_support(mpi):
        return "this MPI library was built without CUDA"
    return trial([sys.executable, "-c", _TRIAL, str(index)])


def claims_support(mpi: Any) -> bool:
    """Whether the library says that it was built with CUDA. It may still fail if a driver or setting is missing."""
    try:
        return bool(ctypes.CDLL(mpi.__file__).MPIX_Query_cuda_support())
    except (OSError, AttributeError):
        return False  # not Open MPI, and no library with the same query function


def trial(command: list[str], environ: Mapping[str, str] = os.environ, limit_s: float = TRIAL_S) -> str:
    """Run ``command`` outside the job's launch environment; returns why it failed, or ""."""
    apart = {name: value for name, value in environ.items() if not name.startswith(_OF_THE_JOB)}
    apart["MPI4PY_RC_THREAD_LEVEL"] = "serialized"
    apart["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        done = subprocess.run(
            command, env=apart, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"MPI did not sum one element in GPU memory ({error})"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"MPI did not sum one element in GPU memory (status {done.returncode}: {last})"
    return ""
