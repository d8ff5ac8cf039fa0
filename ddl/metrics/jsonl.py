"""metrics.jsonl: one event per line, written at once, so that a kill loses no event unless the disk is full.

events.py defines the fields."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddl.jsonlines import Lines
from ddl.metrics.events import Event
from ddl.reading import parse_object, read_regular

_STEP = b'{"event":"step",'
_AS_THEY_ARE = (int, str, bool)


def plain(value: Any) -> Any:
    """``value`` as plain JSON values: arrays as lists, NaN and infinities as null, keys as strings."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(k): v if type(v) in _AS_THEY_ARE else plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (Sequence, set, frozenset)):
        return [plain(v) for v in value]
    return str(value)


_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make one a line


class JsonLines:
    """Appends events to a file as ``{"event": ..., "time": ..., ...}``, time in seconds since 1970.

    say: called with a warning when a full disk makes lines wait, and again when they have been written."""

    def __init__(
        self,
        path: str | Path,
        clock: Callable[[], float] = time.time,
        say: Callable[[str], None] = lambda message: None,
    ):
        self._lines, self.clock = Lines(path, say), clock

    def write(self, event: Event) -> None:
        line = {"event": event.kind, "time": round(self.clock(), 6), **plain(event.values())}
        self._lines.write(_encode(line))

    def forget(self) -> None:
        """Discard waiting lines: another launch owns the file now."""
        self._lines.forget()

    def close(self) -> None:
        self._lines.close()


def read_lines(path: str | Path, tail_bytes: int | None = None, most_steps: int = 0) -> list[dict[str, Any]]:
    """The events of a file; incomplete lines, left by a kill, are skipped. tail_bytes: read only its end. most_steps:
    of more steps than that, only every n-th is read, for a picture; 0: all.

    Raises OSError."""
    found = []
    lines = read_regular(path, tail_bytes).split(b"\n")
    every = -(-len(lines) // most_steps) if most_steps else 1
    for number, line in enumerate(lines):
        if every > 1 and number % every and line.startswith(_STEP):
            continue
        with suppress(ValueError):
            found.append(parse_object(line.decode()))
    return found
