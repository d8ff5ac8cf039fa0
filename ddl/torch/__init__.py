"""PyTorch modules, datasets and optimizers in ddl, and the backend "ddl" of torch.distributed.

The rest of ddl does not need PyTorch, and imports none of this. Names are imported on first use: a script that only
wants the backend needs none of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('ddl.torch needs PyTorch: pip install "ddl-mpi[torch]"', name="torch") from error

from ddl.environment import openmp_threads
from ddl.torch.backend import register

_NAMES = {
    "Dataset": "data",
    "DistributedOptimizer": "horovod",
    "Factors": "optimizers",
    "Model": "model",
    "State": "state",
    "broadcast_optimizer_state": "horovod",
    "broadcast_parameters": "horovod",
    "read_weights": "weights",
    "translated": "optimizers",
}

if TYPE_CHECKING:
    from ddl.torch.data import Dataset as Dataset
    from ddl.torch.horovod import DistributedOptimizer as DistributedOptimizer
    from ddl.torch.horovod import broadcast_optimizer_state as broadcast_optimizer_state
    from ddl.torch.horovod import broadcast_parameters as broadcast_parameters
    from ddl.torch.model import Model as Model
    from ddl.torch.optimizers import Factors as Factors
    from ddl.torch.optimizers import translated as translated
    from ddl.torch.state import State as State
    from ddl.torch.weights import read_weights as read_weights


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"ddl.torch.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'ddl.torch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])


# A PyTorch that was imported before ddl has not seen this rank's share of the cores.
torch.set_num_threads(min(torch.get_num_threads(), openmp_threads() or torch.get_num_threads()))
register()
