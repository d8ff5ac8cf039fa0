"""The hub: passes each event to every sink, and continues without a sink that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from ddl.metrics.events import Event


class Sink(Protocol):
    """Receives events."""

    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


class Hub:
    """Passes events to several sinks. A sink that raises OSError is closed and dropped, with one warning to ``say``.

    Any thread may emit, and nothing is written after ``close``: no sink is closed while it writes. ``say`` may emit its
    warning as an event. ``lock`` is held while a sink writes."""

    def __init__(self, sinks: Sequence[Sink] = (), say: Callable[[str], None] = lambda message: None):
        self.sinks, self.say = list(sinks), say
        self.lock = threading.RLock()

    def emit(self, event: Event) -> None:
        with self.lock:
            for sink in list(self.sinks):
                if sink not in self.sinks:  # already dropped, while a warning about another sink was emitted
                    continue
                try:
                    sink.write(event)
                except OSError as error:
                    self.sinks.remove(sink)
                    with suppress(OSError):
                        sink.close()
                    self.say(f"{type(sink).__name__} writes no more: {error}")

    def close(self) -> None:
        """Close every sink, even if another fails; ``say`` gets a warning for each failure."""
        with self.lock:
            while self.sinks:  # in reverse, so that the console can still show the others' last warnings
                sink = self.sinks.pop()
                try:
                    sink.close()
                except OSError as error:
                    self.say(f"{type(sink).__name__} could not be closed: {error}")

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
