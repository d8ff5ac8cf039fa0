"""Which rank this process was launched as, told by the environment: known before MPI is imported.

Only what is said before MPI starts relies on it; afterwards the group knows better."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# Under mpirun inside a Slurm allocation SLURM_PROCID is 0 everywhere, so Slurm is asked last.
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def _number(names: tuple[str, ...], environ: Mapping[str, str]) -> int | None:
    return next((int(environ[n]) for n in names if environ.get(n, "").isdecimal()), None)


def launched_rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's rank as its launcher numbered it; 0 when nothing launched it."""
    rank = _number(_RANKS, environ)
    if rank is None and "SLURM_STEP_ID" in environ:
        rank = _number(("SLURM_PROCID",), environ)
    return rank or 0


def launched_size(environ: Mapping[str, str] = os.environ) -> int:
    """How many ranks the launcher started; 1 when nothing launched this process."""
    size = _number(_SIZES, environ)
    if size is None and "SLURM_STEP_ID" in environ:
        size = _number(("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), environ)
    return size or 1


def complain(program: str, message: object) -> None:
    """One line on stderr from rank 0; the other ranks stay silent."""
    if launched_rank() == 0:
        print(f"{program}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
