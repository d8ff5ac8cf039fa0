"""The rank and sizes of this process, read from the launch environment before MPI is imported.

Used only until MPI has started; afterwards the group is authoritative."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
REGAINS_VARIABLE = "DDL_REGAINS"
"""Set by ddl.launch: how often it will still start the whole job again because a rank was lost (``fault.respawn``)."""
LINGER_S = 2.0  # how much later than other ranks rank 0 may find an error in the settings
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK")
_ON_NODE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank, as given by its launcher; 0 without a launcher."""
    rank = _number(_RANKS, environment)
    # Under mpirun inside a Slurm allocation SLURM_PROCID is 0 on every rank, so Slurm's variable comes last.
    if rank is None and _is_slurm_task(environment):
        rank = _number(("SLURM_PROCID",), environment)
    return rank or 0


def launched_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks the launcher started; None without a launcher, or if it does not say."""
    size = _number(_SIZES, environment)
    if size is None and _is_slurm_task(environment):
        size = _number(("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), environment)
    return size


def job_size(environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks the job was started with; 1 without a launcher."""
    return launched_size(environment) or 1


def ranks_on_node(environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks the launcher started on this node; 1 without a launcher."""
    size = _number(_ON_NODE, environment)
    if size is None and _is_slurm_task(environment):
        first = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0].partition(",")[0]
        size = int(first) if first.isdecimal() else None
    return size or 1


def launched_local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """This process's number among the ranks of its node; None if the launcher does not say."""
    rank = _number(_LOCAL_RANKS, environment)
    return _number(("SLURM_LOCALID",), environment) if rank is None and _is_slurm_task(environment) else rank


def openmp_threads(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many threads OpenMP is to use; None if nothing says so. ``import ddl`` sets it to the rank's share."""
    return _number(("OMP_NUM_THREADS",), environment)


def complain(program: str, message: object) -> None:
    """One line on stderr from rank 0; the other ranks stay silent."""
    if launched_rank() == 0:
        print(f"{program}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def refuse(program: str, error: object) -> None:
    """Print an error that ends this process before the ranks have met: ``complain``, then ``linger``."""
    complain(program, error)
    linger()


def linger() -> None:
    """On ranks above 0, wait until rank 0 has had time to print the error that all ranks end with.

    A launcher ends all ranks as soon as one exits with a nonzero status; if rank 0 is ended early, its line is lost."""
    if launched_rank() != 0:
        time.sleep(LINGER_S)


def _number(names: tuple[str, ...], environment: Mapping[str, str]) -> int | None:
    return next((int(environment[n]) for n in names if environment.get(n, "").isdecimal()), None)


def _is_slurm_task(environment: Mapping[str, str]) -> bool:
    """Whether this is a task of a job step. A batch script also has SLURM_PROCID and SLURM_NTASKS, but not these."""
    return any(name in environment for name in ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "PMIX_RANK"))
