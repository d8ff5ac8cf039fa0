"""Requests that signals and time limits make of the next step: stop, or save a checkpoint.

Handlers only set flags, so a signal never interrupts a step halfway; ranks agree on the request in the step's sum."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from ddl import early_signals

HANDLED = (*early_signals.STOP_SIGNALS, signal.SIGINT)
# A checkpoint in memory is copied while training waits, and written beside it; at most this share of the time.
COPYING = 0.01


class Due(IntEnum):
    """Which checkpoint the clock asks for: none, one in memory only, or one on disk as well."""

    NO = 0
    COPY = 1
    DISK = 2


@dataclass
class StepRequest:
    """What signals and clocks ask of the next step; a signal handler may set ``stop`` at any time, and ``interrupted``
    where the signal is one that ends programs.

    checkpoint_every_*: 0 means never. in_memory: the first rank of each node also keeps a checkpoint in memory, which
    it renews every ``copy_every_s`` seconds (0: with those on disk), or less often if ``copy_s``, the seconds that
    copying and writing the newest ones took, are more than COPYING of that time.
    keep_best: also save a checkpoint whenever the validation loss is the lowest so far. all_ranks: stop when a rank was
    lost, because the supervisor then starts all ranks again."""

    stop: bool = False
    interrupted: bool = False
    checkpoint_every_s: float = 0.0
    checkpoint_every_steps: int = 0
    checkpoint_every_epochs: int = 0
    in_memory: bool = False
    copy_every_s: float = 0.0
    keep_best: bool = False
    all_ranks: bool = False
    last_checkpoint: float = field(default_factory=time.monotonic)
    last_copy: float = field(default_factory=time.monotonic)
    copy_s: float = 0.0

    def checkpoint_due(self, is_leader: bool) -> Due:
        """What the leader asks for, by the clock; other ranks ask for none."""
        if not is_leader:
            return Due.NO
        now = time.monotonic()
        if self.checkpoint_every_s and now - self.last_checkpoint >= self.checkpoint_every_s:
            return Due.DISK
        every = max(self.copy_every_s, self.copy_s / COPYING)
        return Due.COPY if self.in_memory and self.copy_every_s and now - self.last_copy >= every else Due.NO


class Signals:
    """Within ``with``: USR1, USR2, TERM, HUP and INT request a checkpoint and the end of the job; a second TERM or INT
    ends the process at once. Signals received since the program began count as well; HUP stays ignored where it was
    (nohup). Processes that this one forks keep the handlers it had before."""

    def __init__(self, request: StepRequest):
        self.request = request
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
            self.request.stop |= bool(early_signals.received)
            self.request.interrupted |= signal.SIGTERM in early_signals.received
            _installed.append(self)
        return self

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.request.stop and number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.request.stop = True
        self.request.interrupted |= number in (signal.SIGTERM, signal.SIGINT)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self in _installed:
            _installed.remove(self)


_installed: list[Signals] = []


# A forked child must not inherit the handlers: a flag that only the parent reads would swallow ``Process.terminate``.
# The signals are blocked during the fork, so that one that comes early waits until the child has its own handlers.
_blocked: list[set[int | signal.Signals]] = []


def _before_fork() -> None:
    _blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED))


def _after_fork() -> None:
    if _blocked:
        signal.pthread_sigmask(signal.SIG_SETMASK, _blocked.pop())


def _after_fork_in_child() -> None:
    while _installed:
        _installed[-1].__exit__()
    early_signals.reset()  # what was installed before may be the handlers of the program's first lines
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
