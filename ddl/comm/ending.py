"""How a process ends where deaths are tolerated, so that its peers hear of it.

The launcher reports a process that dies by a signal, or exits with 0, as a death; one that exits with
another status it does not report, and its peers would wait for ever (measured with PRRTE 3.0). So a
rank that ends on its own accord ends by SIGKILL. An end that all have agreed on is mpi.py's."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

_real_exit = os._exit
_is_agreed = False


def agreed() -> None:
    """All members have come to the end: from now on each way out of this process is an ordinary one."""
    global _is_agreed
    _is_agreed = True


def flush() -> None:
    """Write out what was printed; a broken pipe must not stop an end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # None where the process was started with it closed
            stream.flush()


def leave(status: int) -> NoReturn:
    """End this process now, with ``status``: only for an end that all members know of."""
    flush()
    _real_exit(status)


def die() -> NoReturn:
    """End this process now, so that its peers hear of it."""
    flush()
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
    raise AssertionError("unreachable")


def report_every_exit(last_words: Callable[[], None]) -> None:
    """Make each way out of this process that is not ``leave`` a death that peers hear of, after ``last_words``."""
    owner = os.getpid()

    def exit_as_death(status: int) -> NoReturn:
        if os.getpid() == owner and not _is_agreed:  # a forked child, which is no rank, ends as it likes
            last_words()
            die()
        _real_exit(status)

    def at_exit() -> None:
        if os.getpid() == owner and not _is_agreed:
            last_words()
            die()

    os._exit = exit_as_death  # type: ignore[assignment]
    atexit.register(at_exit)
