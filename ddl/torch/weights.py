"""Weights that PyTorch saved, for ``model.from``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddl.errors import ConfigError
from ddl.torch.objective import array_of
from ddl.wording import listed


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state_dict by name. Only tensors are read, no code of the file is run.

    Raises ConfigError for a file that holds anything else."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"model.from = {str(path)!r} cannot be read: {first}") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        values = found.values() if isinstance(found, Mapping) else [found]
        kinds = listed(sorted({type(value).__name__ for value in values}), "and")
        raise ConfigError(f"model.from = {str(path)!r} is no state_dict, which maps names to tensors: it has {kinds}")
    return {name: array_of(value) for name, value in found.items()}
