"""The name and version of the loaded MPI library."""

from __future__ import annotations

import sys


def library_version() -> str:
    """The MPI library in its own words, such as "Open MPI v5.0.11"; "" in a job that runs without MPI."""
    if "mpi4py.MPI" not in sys.modules:
        return ""
    from mpi4py import MPI

    first = str(MPI.Get_library_version()).strip("\0 \n").splitlines()[0].partition(",")[0]
    return " ".join(first.replace("Version:", "").split())  # MPICH writes its name, a colon and a table
