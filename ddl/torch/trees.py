"""The state of an optimizer or scheduler of PyTorch as plain values and arrays, which a checkpoint can keep.

Nothing of it is pickled: a checkpoint is read without running any code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddl.errors import ConfigError

# NumPy has no bfloat16; its bits are kept as whole numbers.
_BITS = {torch.bfloat16: torch.int16}


def packed(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """``value`` as JSON has it. Its tensors are added to ``arrays`` by their paths: not copied if they are contiguous.

    Raises ConfigError for a value that is neither a tensor nor plain."""
    if isinstance(value, Tensor):
        kind, bits = str(value.dtype).removeprefix("torch."), value.detach().cpu()
        if not value.dim() and not value.is_complex():
            return {"scalar": kind, "value": packed(bits.item(), path, arrays)}
        arrays[path] = bits.contiguous().view(_BITS.get(value.dtype, value.dtype)).numpy()
        return {"tensor": path, "dtype": kind}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else {"float": str(value)}
    if isinstance(value, (list, tuple)):
        items = [packed(one, f"{path}/{number}", arrays) for number, one in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        pairs = [[packed(key, path, {}), packed(one, f"{path}/{key}", arrays)] for key, one in value.items()]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    raise ConfigError(f"{path} is a {type(value).__name__}, which a checkpoint cannot keep")


def unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of ``packed``, with tensors in new memory.

    Raises ValueError, KeyError or TypeError for what ``packed`` does not return."""
    if isinstance(value, list):
        return [unpacked(one, arrays) for one in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"tensor": str(path), "dtype": str(kind)}:
            return torch.from_numpy(np.array(arrays[path])).view(_dtype(kind))
        case {"scalar": str(kind), "value": number}:
            return torch.tensor(unpacked(number, arrays), dtype=_dtype(kind))
        case {"float": str(text)}:
            return float(text)
        case {"tuple": list(items)}:
            return tuple(unpacked(one, arrays) for one in items)
        case {"dict": list(pairs)}:
            return {unpacked(key, arrays): unpacked(one, arrays) for key, one in pairs}
        case {"counter": list(pairs)}:
            return Counter({unpacked(key, arrays): one for key, one in pairs})
    raise ValueError(f"not a packed value: {value!r}")


def _dtype(kind: str) -> torch.dtype:
    found = getattr(torch, kind, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{kind!r} is no type of numbers")
    return found
