"""What signals and clocks ask of the next step: to end, to save.

Handlers set flags and nothing else, so no step is ever torn by one; the ranks agree on what to do in the step's sum."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from ddl.train import early_signals


@dataclass
class Wishes:
    """What signals and clocks ask of the next step; a signal handler may set them at any time."""

    stop: bool = False
    checkpoint_every_s: float = 0.0
    checkpoint_every_steps: int = 0
    checkpoint_every_epochs: int = 0
    replica: bool = False  # the first rank of each node keeps a copy in its memory
    keep_best: bool = False  # a checkpoint whenever the validation loss is the best so far
    last_checkpoint: float = field(default_factory=time.monotonic)

    def checkpoint_due(self) -> bool:
        return bool(self.checkpoint_every_s) and time.monotonic() - self.last_checkpoint >= self.checkpoint_every_s


class Signals:
    """While inside: USR1, USR2, TERM, HUP and INT ask for a checkpoint and a good end; a second TERM or INT ends at
    once. What arrived since the program began counts as well. HUP stays ignored where it was (nohup).

    Handlers set a flag and nothing else, so no step is ever torn by one."""

    def __init__(self, wishes: Wishes):
        self.wishes = wishes
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (*early_signals.STOP_SIGNALS, signal.SIGINT):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._wish)
            self.wishes.stop |= bool(early_signals.received)
        return self

    def _wish(self, number: int, frame: Any) -> None:
        if self.wishes.stop and number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.wishes.stop = True

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
