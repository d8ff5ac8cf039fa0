"""Settings: frozen sections, read from TOML and the command line, checked before MPI starts.

What becomes of them is train's; nobody else reads them or the environment."""

from ddl.config.check import check
from ddl.config.launched import complain, launched_rank, launched_size
from ddl.config.load import load, load_or_exit, read, to_toml, write
from ddl.config.sections import (
    Checkpoint,
    Comm,
    Data,
    Fault,
    Job,
    Metrics,
    Model,
    Optim,
    Run,
    Train,
)

__all__ = [
    "Checkpoint",
    "Comm",
    "Data",
    "Fault",
    "Job",
    "Metrics",
    "Model",
    "Optim",
    "Run",
    "Train",
    "check",
    "complain",
    "launched_rank",
    "launched_size",
    "load",
    "load_or_exit",
    "read",
    "to_toml",
    "write",
]
