"""ddl: fault-tolerant data-parallel training over MPI.

Submodules and names are imported on first use, so ``python -m ddl.train --help`` loads neither NumPy nor MPI."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddl.launcher.cores import choose_kernels, share_cores
from ddl.version import __version__ as __version__

_ROOMS = (
    "arrays",
    "data",
    "nn",
    "models",
    "optim",
    "comm",
    "collectives",
    "parallel",
    "checkpoint",
    "metrics",
    "errors",
    "elastic",
    "torch",
)
_NAMES = {
    "Trainer": "ddl.run.trainer",
    "load": "ddl.run.loaded",
    "Callback": "ddl.train.task",
    "Sweep": "ddl.sweep",
    "init": "ddl.world",
    "rank": "ddl.world",
    "size": "ddl.world",
    "local_rank": "ddl.world",
    "allreduce": "ddl.world",
    "broadcast": "ddl.world",
    "join": "ddl.world",
    "DistributedOptimizer": "ddl.world",
}

# Before any import that may load NumPy: its threads read these variables once.
choose_kernels()
share_cores()

if TYPE_CHECKING:
    from ddl import arrays as arrays
    from ddl import collectives as collectives
    from ddl import comm as comm
    from ddl import data as data
    from ddl import errors as errors
    from ddl import metrics as metrics
    from ddl import models as models
    from ddl import nn as nn
    from ddl import optim as optim
    from ddl import parallel as parallel
    from ddl.run.loaded import load as load
    from ddl.run.trainer import Trainer as Trainer
    from ddl.sweep import Sweep as Sweep
    from ddl.train.task import Callback as Callback


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"ddl.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'ddl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS, *_NAMES])
