"""The choice between a kernel compiled by Numba, one of CuPy's and their plain twin.

A plain function ``f`` of ``ddl.kernels.X``, marked by ``@kernel``, has a compiled twin ``f`` in
``ddl.kernels.X_numba``, and may have one for arrays on a GPU in ``ddl.kernels.X_cupy``; all are
tested equal. What they compute is said in X alone."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from ddl.arrays.namespace import namespace_of
from ddl.errors import ConfigError

LINE = 64  # bytes of a cache line, and of the vectors that compiled loops are written for

_wanted = "auto"
_available: bool | None = None


def use_compiled(mode: str) -> None:
    """Choose for this process: "auto" (compiled where Numba is installed), "on" or "off".

    Raises ConfigError for "on" without Numba, and for any other word."""
    global _wanted
    if mode not in ("auto", "on", "off"):
        raise ConfigError(f"compiled = {mode!r} is unknown; known are auto, on, off")
    if mode == "on" and not _numba_is_there():
        raise ConfigError("compiled = 'on' needs Numba: pip install 'ddl-mpi[fast]'")
    _wanted = mode


def is_compiled() -> bool:
    """Whether kernels of NumPy arrays run compiled."""
    return _wanted != "off" and _numba_is_there()


def runs_compiled(x: Any) -> bool:
    """Whether kernels run compiled for arrays like ``x``."""
    return type(x) is np.ndarray and x.dtype.char in "fd" and is_compiled()


def _numba_is_there() -> bool:
    global _available
    if _available is None:
        try:
            importlib.import_module("numba")
            _available = True
        except ImportError:
            _available = False
    return _available


def kernel(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Run the compiled twin of ``plain`` where the first argument is a NumPy array of float32 or float64, and the fused
    one, if there is one, where it lies on a GPU."""
    twin: Callable[..., Any] | None = None
    fused: Callable[..., Any] | None = None

    @wraps(plain)
    def call(*arguments: Any) -> Any:
        nonlocal twin, fused
        first = arguments[0]
        if runs_compiled(first):
            if twin is None:
                twin = getattr(importlib.import_module(plain.__module__ + "_numba"), plain.__name__)
            return twin(*arguments)
        if namespace_of(first) is np:
            return plain(*arguments)
        if fused is None:
            fused = _fused(plain)
        return fused(*arguments)

    call.plain = plain  # type: ignore[attr-defined]
    return call


def _fused(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Its twin for a GPU, or itself."""
    name = plain.__module__ + "_cupy"
    found = importlib.import_module(name) if importlib.util.find_spec(name) else None
    return getattr(found, plain.__name__, plain)
