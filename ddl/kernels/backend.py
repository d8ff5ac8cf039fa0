"""The choice among the NumPy, Numba and CuPy implementations of a kernel.

A NumPy function ``f`` of ``ddl.kernels.X`` that is decorated with ``@kernel`` has a Numba implementation ``f`` in
``ddl.kernels.X_numba`` and may have one for arrays on a GPU in ``ddl.kernels.X_cupy``. Tests compare them; only X
documents what they compute."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial, wraps
from typing import Any

import numpy as np

from ddl.arrays.namespace import Array, namespace_of
from ddl.errors import ConfigError
from ddl.kernels import compile_cache

LINE = 64  # bytes of a cache line, and of the vectors that compiled loops are written for

_wanted = "auto"
_available: bool | None = None
_notify: Callable[[], None] | None = None  # of ``on_compilation``
_progress: Callable[[], None] | None = None  # of ``on_compilation_progress``
_listens = False


def use_compiled(mode: str) -> None:
    """Choose for this process: "auto" (compiled where Numba is installed), "on" or "off".

    Raises ConfigError for "on" without Numba and for any other value."""
    global _wanted
    if mode not in ("auto", "on", "off"):
        raise ConfigError(f"compiled = {mode!r} is unknown; known are auto, on, off")
    if mode == "on" and not _numba_is_there():
        raise ConfigError("compiled = 'on' needs Numba (pip install 'ddl-mpi[fast]') and NUMBA_DISABLE_JIT unset")
    _wanted = mode


def is_compiled() -> bool:
    """Whether kernels of NumPy arrays run compiled."""
    return _wanted != "off" and _numba_is_there()


def on_compilation(notify: Callable[[], None]) -> None:
    """Call ``notify`` once, from any thread, when Numba begins to compile a kernel that its cache lacks. It replaces
    the one of an earlier call."""
    global _notify
    _notify = notify
    _listen()


def on_compilation_progress(progress: Callable[[], None]) -> None:
    """Call ``progress``, from any thread, whenever Numba begins or ends to compile a kernel: on a slow machine all of
    them take minutes. It replaces the one of an earlier call."""
    global _progress
    _progress = progress
    _listen()


def _listen() -> None:
    global _listens
    if _listens or not is_compiled():
        return
    event = importlib.import_module("numba.core.event")

    class Listener(event.Listener):  # type: ignore[name-defined, misc]
        def on_start(self, _: Any) -> None:
            global _notify
            once, _notify = _notify, None
            if once is not None:
                once()
            self.on_end(_)

        def on_end(self, _: Any) -> None:
            if _progress is not None:
                _progress()

    event.register("numba:compile", Listener())
    _listens = True


def runs_compiled(x: Any) -> bool:
    """Whether kernels run compiled for arrays like ``x``."""
    return type(x) is np.ndarray and x.dtype.char in "fd" and is_compiled()


def _numba_is_there() -> bool:
    global _available
    if _available is None:
        # Numba's coloured errors would replace sys.stdout by colorama's, which prints an escape sequence at the end.
        os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
        try:
            numba = importlib.import_module("numba")
            _available = not numba.config.DISABLE_JIT and compile_cache.prepare(numba)
        except ImportError:
            _available = False
    return _available


def kernel(plain: Callable[..., Any] | None = None, *, writes: str = "") -> Callable[..., Any]:
    """Run the Numba implementation of ``plain`` where the first argument is a NumPy array of float32 or float64, and
    the CuPy one, if there is one, where it lies on a GPU.

    writes: names of the arguments (arrays, or tuples of arrays) that a kernel changes. With them, float16 arrays are
    computed in float32 and the changed ones rounded once: float16 is only storage. The other arguments are never
    written, not even with their own values: they may be memory that other ranks share."""
    if plain is None:
        return partial(kernel, writes=writes)
    names = list(inspect.signature(plain).parameters)
    written = {names.index(name) for name in writes.split()}

    @cache
    def implementation(suffix: str) -> Callable[..., Any]:
        name = plain.__module__ + suffix
        module = importlib.import_module(name) if importlib.util.find_spec(name) else None
        return getattr(module, plain.__name__, plain)

    @wraps(plain)
    def call(*arguments: Any) -> Any:
        first = arguments[0]
        if written and first.dtype.char == "e":
            return _in_float32(call, arguments, written)
        if namespace_of(first) is not np:
            return implementation("_cupy")(*arguments)
        return (implementation("_numba") if runs_compiled(first) else plain)(*arguments)

    call.plain = plain  # type: ignore[attr-defined]
    call.implementation = implementation  # type: ignore[attr-defined]
    return call


def _in_float32(call: Callable[..., Any], arguments: Sequence[Any], written: Collection[int]) -> Any:
    """Call with float32 copies of the float16 arrays and round those at the positions ``written`` back."""
    copies: dict[int, Array] = {}  # by id: an array that is passed twice stays one array

    def widened(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(widened, x))
        if not isinstance(x, (np.ndarray, type(arguments[0]))) or x.dtype != np.float16:
            return x
        return copies.setdefault(id(x), x.astype(np.float32))

    result = call(*map(widened, arguments))
    for position in written:
        x = arguments[position]
        for half in x if isinstance(x, tuple) else (x,):
            if id(half) in copies:
                with np.errstate(over="ignore"):  # values beyond float16 become infinite, which training reports
                    half[...] = copies[id(half)]
    return result
