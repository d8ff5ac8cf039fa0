"""Which rank was launched, as told by the launchers' environments that were seen."""

from __future__ import annotations

import pytest

from ddl.config import launched_rank, launched_size

SEEN = {
    "nothing": ({}, 0, 1),
    "Open MPI's mpirun": ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "2"}, 2, 4),
    "MPICH's mpiexec": ({"PMI_RANK": "1", "PMI_SIZE": "3"}, 1, 3),
    "mpirun inside a Slurm step": (
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"},
        3,
        4,
    ),
    "srun with pmix": ({"PMIX_RANK": "5", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}, 5, 8),
    "srun without MPI": ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, 5, 8),
    "a batch script of Slurm": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, 0, 1),
    "words that are no numbers": ({"PMI_RANK": "x", "OMPI_COMM_WORLD_SIZE": ""}, 0, 1),
}


@pytest.mark.parametrize("launcher", SEEN)
def test_rank_and_size_are_told_before_mpi_starts(launcher):
    environment, rank, size = SEEN[launcher]
    assert (launched_rank(environment), launched_size(environment)) == (rank, size)
