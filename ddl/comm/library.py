"""What the loaded MPI library reports about itself and can do. Which launcher started us is known in preflight.py."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any


def library_version() -> str:
    """The MPI library in its own words, such as "Open MPI v5.0.11"; "" in a job that runs without MPI."""
    if "mpi4py.MPI" not in sys.modules:
        return ""
    from mpi4py import MPI

    first = str(MPI.Get_library_version()).strip("\0 \n").splitlines()[0].partition(",")[0]
    return " ".join(first.replace("Version:", "").split())  # MPICH writes its name, a colon and a table


@functools.cache
def reports_deaths(mpi: Any) -> bool:
    """Whether the library of the module ``mpi`` reports the death of a rank to the others (ULFM).

    Libraries without ULFM may define some of its names and error codes, but not this one."""
    try:
        ctypes.CDLL(mpi.__file__).MPIX_Comm_is_revoked  # noqa: B018 - whether it is there
    except (OSError, AttributeError):
        return False
    return True
