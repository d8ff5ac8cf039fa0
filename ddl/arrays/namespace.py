"""NumPy or CuPy: which one an array belongs to, and moves between host and device.

cupy is imported when a GPU is asked for, never before."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray: the array decides the backend


def namespace_of(x: Array) -> ModuleType:
    """The module, numpy or cupy, whose functions take ``x``."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def host(x: Array) -> np.ndarray:
    """``x`` as a NumPy array; copies only when it lies on a GPU."""
    return x.get() if namespace_of(x) is not np else np.asarray(x)


@dataclass(frozen=True)
class Device:
    """Where a rank computes. ``index`` is the GPU's number, None for the CPU."""

    index: int | None = None

    @property
    def xp(self) -> ModuleType:
        if self.index is None:
            return np
        import cupy

        return cupy

    @property
    def is_gpu(self) -> bool:
        return self.index is not None

    def array(self, x: Array) -> Array:
        """``x`` on this device; no copy if it is there already."""
        if self.index is None:
            return host(x)
        with self.activate():
            return self.xp.asarray(x)

    def activate(self) -> contextlib.AbstractContextManager[Any]:
        """Allocations inside ``with device.activate():`` go to this GPU; nothing happens on the CPU."""
        return contextlib.nullcontext() if self.index is None else self.xp.cuda.Device(self.index)

    def use(self) -> None:
        """Make this the thread's current GPU, on which cupy runs kernels and allocates results."""
        if self.index is not None:
            self.xp.cuda.Device(self.index).use()

    def synchronize(self) -> None:
        """Wait until the device has finished all its work."""
        if self.index is not None:
            self.xp.cuda.Device(self.index).synchronize()

    def __str__(self) -> str:
        return "cpu" if self.index is None else f"gpu {self.index}"


def limit_memory(where: Device, ranks: int, share: float) -> int:
    """Limit this process to its part of ``share`` of the GPU's memory, with ``ranks`` on it; returns the bytes.

    The pool allocates memory on demand up to the limit and keeps it; beyond it cupy raises OutOfMemoryError. On the
    CPU nothing happens, and 0 is returned."""
    if not where.is_gpu:
        return 0
    with where.activate():
        _, total = where.xp.cuda.runtime.memGetInfo()
        limit = int(total * share / ranks)
        where.xp.get_default_memory_pool().set_limit(size=limit)
    return limit


def ranks_on(where: Device, local_ranks: int) -> int:
    """How many of a node's ranks share the GPU of ``where`` when assigned by ``device``; 1 for the CPU."""
    return 1 if where.index is None else len(range(where.index, local_ranks, gpu_count()))


def gpu_count() -> int:
    """How many CUDA devices this process can use; 0 if cupy or the driver is missing."""
    try:
        import cupy
    except ImportError:
        return 0
    return int(cupy.cuda.runtime.getDeviceCount()) if cupy.cuda.is_available() else 0


def device(kind: str, local_rank: int) -> Device:
    """The device of a rank, which this thread uses from now on. ``kind`` is "cpu", "gpu" or "auto" (a GPU where there
    is one).

    Local ranks take the node's GPUs in turn, so several ranks may share one.
    Raises LookupError for "gpu" where none can be used."""
    if kind == "cpu":
        return Device()
    count = gpu_count()
    if count:
        chosen = Device(local_rank % count)
        chosen.use()
        return chosen
    if kind == "gpu":
        raise LookupError("no CUDA device can be used: is cupy-cuda12x installed, and does nvidia-smi list a GPU?")
    return Device()
