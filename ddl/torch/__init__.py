"""PyTorch modules, datasets and optimizers in ddl, and the backend "ddl" of torch.distributed.

The rest of ddl does not need PyTorch, and imports none of this."""

try:
    import torch as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('ddl.torch needs PyTorch: pip install "ddl-mpi[torch]"', name="torch") from error

from ddl.torch.backend import register
from ddl.torch.data import Dataset
from ddl.torch.horovod import DistributedOptimizer, broadcast_optimizer_state, broadcast_parameters
from ddl.torch.model import Model
from ddl.torch.optimizers import Factors, translated
from ddl.torch.state import State

__all__ = [
    "Dataset",
    "DistributedOptimizer",
    "Factors",
    "Model",
    "State",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "translated",
]

register()
