"""Signals that arrive before the job can handle them: recorded from the program's first lines on.

Imports no numpy and no MPI. train/signals.py takes over when training starts, and acts on what was recorded."""

from __future__ import annotations

import os
import signal
from typing import Any

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP)
received: set[int] = set()


def install() -> None:
    """Record the signals that ask a job to stop. SIGHUP stays ignored where it is (nohup). Ctrl-C ends the program
    without a traceback until training handles it."""
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _record)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A flag that only this process reads must not swallow the signals sent to a child that it forks.
    os.register_at_fork(after_in_child=reset)


def _record(number: int, frame: Any) -> None:
    if number == signal.SIGTERM and number in received:  # the sender insists
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    received.add(number)


def reset() -> None:
    """Give the handlers installed here back to the system."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is _record:
            signal.signal(number, signal.SIG_DFL)
