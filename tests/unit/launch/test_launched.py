"""Rank and sizes are read from the launch environments of the launchers that we have seen."""

from __future__ import annotations

import pytest

from ddl.environment import launched_rank, launched_size, ranks_on_node

# launcher: (environment, rank, ranks, ranks on this node)
SEEN = {
    "nothing": ({}, 0, None, 1),
    "Open MPI's mpirun": (
        {
            "OMPI_COMM_WORLD_RANK": "2",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            "PMIX_RANK": "2",
        },
        2,
        4,
        2,
    ),
    "MPICH's mpiexec": ({"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALNRANKS": "3"}, 1, 3, 3),
    "mpirun inside a Slurm step": (
        {
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_SIZE": "4",
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": "0",
            "SLURM_STEP_NUM_TASKS": "1",  # its daemon is the step's only task
        },
        3,
        4,
        1,
    ),
    "srun with pmix": (
        {"PMIX_RANK": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
        5,
        8,
        4,
    ),
    "srun with pmix, old": ({"PMIX_RANK": "1", "SLURM_NTASKS": "4"}, 1, 4, 1),
    "srun without MPI": ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, 5, 8, 1),
    "a batch script of Slurm": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, 0, None, 1),
    "words that are no numbers": ({"PMI_RANK": "x", "OMPI_COMM_WORLD_SIZE": ""}, 0, None, 1),
}


@pytest.mark.parametrize("launcher", SEEN)
def test_rank_and_sizes_are_known_before_mpi_starts(launcher):
    environment, *expected = SEEN[launcher]
    assert [launched_rank(environment), launched_size(environment), ranks_on_node(environment)] == expected
