"""Which of how many ranks this process was launched as, told by the environment: known before MPI is imported.

Only what is said before MPI starts relies on it; afterwards the group knows better."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
REGAINS_VARIABLE = "DDL_REGAINS"
"""Set by ddl.launch: how often it will still start the whole job again because a rank was lost (``fault.respawn``)."""
LINGER_S = 2.0  # how much later than others rank 0 may come to know of a mistake
_ON_NODE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank as its launcher numbered it; 0 when nothing launched it."""
    rank = _number(_RANKS, environment)
    # Under mpirun inside a Slurm allocation SLURM_PROCID is 0 everywhere, so Slurm is asked last.
    if rank is None and _is_slurm_task(environment):
        rank = _number(("SLURM_PROCID",), environment)
    return rank or 0


def launched_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks the launcher started; None when nothing launched this process, or it does not say."""
    size = _number(_SIZES, environment)
    if size is None and _is_slurm_task(environment):
        size = _number(("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), environment)
    return size


def job_size(environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks the job was started with; 1 when nothing launched this process."""
    return launched_size(environment) or 1


def ranks_on_node(environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks the launcher started on this node; 1 when nothing launched this process."""
    size = _number(_ON_NODE, environment)
    if size is None and _is_slurm_task(environment):
        first = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0].partition(",")[0]
        size = int(first) if first.isdecimal() else None
    return size or 1


def complain(program: str, message: object) -> None:
    """One line on stderr from rank 0; the other ranks stay silent."""
    if launched_rank() == 0:
        print(f"{program}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def refuse(program: str, mistake: object) -> None:
    """``complain``, where this process ends with the mistake before it has met the others."""
    complain(program, mistake)
    linger()


def linger() -> None:
    """Give rank 0 the time to tell with which mistake all ranks end.

    A launcher ends all of them as soon as one has ended with a status, and with rank 0 its line would be lost."""
    if launched_rank() != 0:
        time.sleep(LINGER_S)


def _number(names: tuple[str, ...], environment: Mapping[str, str]) -> int | None:
    return next((int(environment[n]) for n in names if environment.get(n, "").isdecimal()), None)


def _is_slurm_task(environment: Mapping[str, str]) -> bool:
    """A batch script has SLURM_PROCID and SLURM_NTASKS as well; only the tasks of a step have these beside them."""
    return any(name in environment for name in ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "PMIX_RANK"))
