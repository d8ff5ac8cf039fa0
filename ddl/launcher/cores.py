"""Share a node's cores among its ranks, since each rank's BLAS would use them all; and choose matching kernels.

environment.py gives the number of ranks. The user's own settings are kept."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Mapping, MutableMapping

from ddl.environment import ranks_on_node

VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
SETTERS = (  # of OpenBLAS, as wheels of NumPy and as systems name it
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give this rank's BLAS its share of the cores, unless it is alone on the node or the user has set the number.

    Before NumPy is imported, environment variables suffice; later OpenBLAS is called. Another BLAS is unchanged."""
    threads = share(environment)
    if threads is None:
        return
    environment.update(dict.fromkeys(VARIABLES, str(threads)))
    if "numpy" in sys.modules:
        _tell_openblas(threads)


def share(environment: Mapping[str, str]) -> int | None:
    """How many cores this rank may use; None if it is alone on the node, or if the user has set the number."""
    ranks = ranks_on_node(environment)
    if ranks < 2 or any(name in environment for name in VARIABLES):
        return None
    return max(len(os.sched_getaffinity(0)) // ranks, 1)


def choose_kernels(environment: MutableMapping[str, str] = os.environ, cpuinfo: str = "/proc/cpuinfo") -> None:
    """Make OpenBLAS use its 256-bit kernels on a Zen 4, which computes 512-bit vectors in two halves: large products
    took 5 % less time than with the kernels that OpenBLAS chooses. Has an effect only before NumPy is imported."""
    try:
        with open(cpuinfo) as file:
            lines = [line.split(":", 1) for line in itertools.takewhile(str.strip, file)]
    except OSError:
        return
    facts = {name.strip(): value.split() for name, value in (line for line in lines if len(line) == 2)}
    is_amd = facts.get("vendor_id") == ["AuthenticAMD"] and facts.get("cpu family") == ["25"]
    if is_amd and "avx512f" in facts.get("flags", ()):  # Zen 3, of the same family, has none
        environment.setdefault("OPENBLAS_CORETYPE", "Zen")


def _tell_openblas(threads: int) -> None:
    try:
        with open("/proc/self/maps") as file:
            paths = {line.split()[-1] for line in file if "openblas" in line and ".so" in line}
        libraries = [ctypes.CDLL(path) for path in sorted(paths)]
    except OSError:  # no /proc, or a file that was replaced meanwhile: this costs only speed
        return
    for library in libraries:
        for name in SETTERS:
            if hasattr(library, name):
                getattr(library, name)(threads)
                break
