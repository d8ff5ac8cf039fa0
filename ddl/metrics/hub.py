"""The hub: hands each event to every sink, and goes on when one of them fails.

What a sink makes of an event is its own affair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ddl.metrics.events import Event


class Sink(Protocol):
    """A place for events to go."""

    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


class Hub:
    """Sinks in a row. One that raises OSError (a full disk) is dropped with one word to ``say``."""

    def __init__(self, sinks: Sequence[Sink] = (), say: Callable[[str], None] = lambda message: None):
        self.sinks, self.say = list(sinks), say

    def emit(self, event: Event) -> None:
        for sink in list(self.sinks):
            try:
                sink.write(event)
            except OSError as error:
                self.sinks.remove(sink)
                self.say(f"{type(sink).__name__} writes no more: {error}")

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
        self.sinks = []

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
