"""The cores of a node, shared among its ranks: each rank's BLAS would take them all.

How many ranks there are is launched.py's; a choice of the user's stands."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, MutableMapping

from ddl.launched import ranks_on_node

VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
SETTERS = (  # of OpenBLAS, as wheels of NumPy and as systems name it
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give this rank's BLAS its share of the cores, where it has neighbours and the user has said nothing.

    Before NumPy is imported its variables are enough; afterwards OpenBLAS is told. Another BLAS stays as it is."""
    threads = share(environment)
    if threads is None:
        return
    environment.update(dict.fromkeys(VARIABLES, str(threads)))
    if "numpy" in sys.modules:
        _tell_openblas(threads)


def share(environment: Mapping[str, str]) -> int | None:
    """How many cores are this rank's; None where it has the node for itself, or the user has said how many."""
    ranks = ranks_on_node(environment)
    if ranks < 2 or any(name in environment for name in VARIABLES):
        return None
    return max(len(os.sched_getaffinity(0)) // ranks, 1)


def _tell_openblas(threads: int) -> None:
    try:
        with open("/proc/self/maps") as file:
            paths = {line.split()[-1] for line in file if "openblas" in line and ".so" in line}
        libraries = [ctypes.CDLL(path) for path in sorted(paths)]
    except OSError:  # no /proc, or a file that was replaced meanwhile: it costs speed and nothing else
        return
    for library in libraries:
        for name in SETTERS:
            if hasattr(library, name):
                getattr(library, name)(threads)
                break
