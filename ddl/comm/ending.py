"""How a process ends: the only module that replaces ``os._exit`` and ``sys.excepthook`` or ends this process.

With fault tolerance no rank may end unnoticed: PRRTE 3.0 reports a process that ends by a signal or with status 0 as
failed, but not one that exits with another status, and its peers would then wait indefinitely. A rank that ends
without agreement of the others therefore kills itself with SIGKILL. mpi.py has the ends that all ranks agree on."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

Handler = Callable[[BaseException], None]
"""Prints an uncaught exception (``show``) and ends this process, or returns to let the interpreter end it."""

_real_exit = os._exit
_is_agreed = False
_handler: Handler | None = None
_users_hook = sys.excepthook


def agreed() -> None:
    """All members have agreed on the end: from now on this process may exit normally."""
    global _is_agreed
    _is_agreed = True


def is_agreed() -> bool:
    return _is_agreed


def flush() -> None:
    """Flush stdout and stderr; a closed pipe does not prevent the end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # None if the process was started with it closed
            stream.flush()


def leave(status: int) -> NoReturn:
    """End this process now with ``status``; only after all members have agreed on the end, or when none is left."""
    flush()
    _real_exit(status)


def die() -> NoReturn:
    """End this process now, so that its peers notice."""
    flush()
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
    raise AssertionError("unreachable")


@contextlib.contextmanager
def crash_as_last(is_last: Callable[[], bool], message: str, status: int) -> Iterator[None]:
    """If native code crashes in this block and ``is_last()``, end this process with ``status``, not by the signal.

    mpirun's status is 0 where signals ended all ranks. But it reports no rank that exits with a status to the
    others, so a rank that is not the last must die of the signal."""
    library, before = ctypes.CDLL(None), ctypes.create_string_buffer(256)  # as large as any struct sigaction
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.sigaction.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

    def restore() -> None:
        library.sigaction(signal.SIGSEGV, before, None)

    def crashed(number: int) -> None:
        restore()
        if is_last():
            print(message, file=sys.stderr)
            leave(status)
        os.kill(os.getpid(), number)  # takes effect when this returns

    # Python's own handlers would run after the call of native code has returned, which it never does.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(crashed)
    library.sigaction(signal.SIGSEGV, None, before)
    library.signal(signal.SIGSEGV, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        restore()


def report_every_exit(last_words: Callable[[], None]) -> None:
    """Turn every way out of this process except ``leave`` into a death that peers notice, after ``last_words``."""
    owner = os.getpid()

    def die_unless_agreed() -> None:
        if os.getpid() == owner and not _is_agreed:  # a forked child is not a rank and ends normally
            last_words()
            die()

    def exit_as_death(status: int) -> NoReturn:
        die_unless_agreed()
        _real_exit(status)

    os._exit = exit_as_death  # type: ignore[assignment]
    atexit.register(die_unless_agreed)


def on_uncaught(handler: Handler) -> Handler:
    """Call ``handler`` for an exception that nothing catches; returns the handler that it replaces.

    The first call installs the only ``sys.excepthook`` of this package."""
    global _handler, _users_hook
    if _handler is None:
        _users_hook, sys.excepthook = sys.excepthook, _hook
    replaced, _handler = _handler or _only_show, handler
    return replaced


def show(error: BaseException) -> None:
    """Print an exception as the interpreter, or the user's own hook, would have."""
    _users_hook(type(error), error, error.__traceback__)


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    assert _handler is not None
    _handler(error.with_traceback(trace))


def _only_show(error: BaseException) -> None:
    show(error)
