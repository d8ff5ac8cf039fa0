"""The hub: hands each event to every sink, and goes on when one of them fails.

What a sink makes of an event is its own affair."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from ddl.metrics.events import Event


class Sink(Protocol):
    """A place for events to go."""

    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


class Hub:
    """Sinks in a row. One that raises OSError (a full disk) is dropped with one word to ``say``.

    Any thread may emit, and after ``close`` nothing is written: no sink is closed while it writes."""

    def __init__(self, sinks: Sequence[Sink] = (), say: Callable[[str], None] = lambda message: None):
        self.sinks, self.say = list(sinks), say
        self._lock = threading.RLock()

    def emit(self, event: Event) -> None:
        with self._lock:
            for sink in list(self.sinks):
                try:
                    sink.write(event)
                except OSError as error:
                    self.sinks.remove(sink)
                    self.say(f"{type(sink).__name__} writes no more: {error}")

    def close(self) -> None:
        with self._lock:
            while self.sinks:  # the last first: what it has to say as it closes, the console before it still hears
                self.sinks.pop().close()

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
