"""The hub: passes each event to every sink, and continues without a sink that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from ddl.metrics.events import Event


class Sink(Protocol):
    """A place for events to go."""

    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


class Hub:
    """Sinks in a row. One that raises OSError is closed and dropped, with one word to ``say``.

    Any thread may emit, and after ``close`` nothing is written: no sink is closed while it writes. What ``say`` makes
    of a word may come back as an event. ``lock`` is held while a sink writes."""

    def __init__(self, sinks: Sequence[Sink] = (), say: Callable[[str], None] = lambda message: None):
        self.sinks, self.say = list(sinks), say
        self.lock = threading.RLock()

    def emit(self, event: Event) -> None:
        with self.lock:
            for sink in list(self.sinks):
                if sink not in self.sinks:  # dropped since, by an event that a word on another one has become
                    continue
                try:
                    sink.write(event)
                except OSError as error:
                    self.sinks.remove(sink)
                    with suppress(OSError):
                        sink.close()
                    self.say(f"{type(sink).__name__} writes no more: {error}")

    def close(self) -> None:
        """Every sink, whatever becomes of the others; ``say`` hears of what could not be closed."""
        with self.lock:
            while self.sinks:  # the last first: what it has to say as it closes, the console before it still hears
                sink = self.sinks.pop()
                try:
                    sink.close()
                except OSError as error:
                    self.say(f"{type(sink).__name__} could not be closed: {error}")

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
