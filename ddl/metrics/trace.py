"""A timeline of all ranks for Chrome's tracing page or Perfetto: a row of spans for each rank.

Each rank appends to a separate file; the leader merges them at the end. ddl/train chooses the spans."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ddl.metrics.jsonl import read_lines


class Trace:
    """Spans of one rank. ``with trace.span("forward"):`` records where the time went.

    identity: the rank at launch, which never changes. Times are this host's clock, in microseconds."""

    def __init__(self, path: str | Path, identity: int, host: str = "", clock: Callable[[], float] = time.time):
        self.path, self.identity, self.clock = part_of(path, identity), identity, clock
        self._file = open(self.path, "w", encoding="utf-8", buffering=1 << 16)  # noqa: SIM115 - closed by close()
        self._lock = threading.Lock()
        self._depth, self._waits_since = 0, 0.0
        name = f"rank {identity}" + (f" on {host}" if host else "")
        self._put({"name": "process_name", "ph": "M", "pid": identity, "tid": 0, "args": {"name": name}})

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        began = self.clock()
        try:
            yield
        finally:
            self.add(name, began, self.clock())

    def add(self, name: str, began: float, ended: float) -> None:
        """Add a span with times taken from ``clock``. Any thread may call."""
        thread = threading.get_native_id()
        row = 0 if threading.current_thread() is threading.main_thread() else thread
        microseconds = {"ts": round(began * 1e6, 1), "dur": round((ended - began) * 1e6, 1)}
        self._put({"name": name, "ph": "X", "pid": self.identity, "tid": row, **microseconds})

    def waits(self, waiting: bool) -> None:
        """Called before (True) and after (False) a call that waits for ranks (comm.Group.waits); may be nested."""
        self._depth += 1 if waiting else -1
        if waiting and self._depth == 1:
            self._waits_since = self.clock()
        elif not waiting and self._depth == 0:
            self.add("wait", self._waits_since, self.clock())

    def mark(self, name: str) -> None:
        """Add an instant event, such as a failure or a checkpoint."""
        at = round(self.clock() * 1e6, 1)
        self._put({"name": name, "ph": "i", "s": "p", "pid": self.identity, "tid": 0, "ts": at})

    def _put(self, record: dict[str, object]) -> None:
        with self._lock:
            if not self._file.closed:
                self._file.write(json.dumps(record, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        with self._lock:
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()


def part_of(path: str | Path, identity: int) -> Path:
    """The file in which one rank collects its spans until they are merged."""
    return Path(f"{path}.rank{identity}")


def merge(path: str | Path) -> int:
    """Merge the ranks' files into ``path``, remove them, and return how many there were.

    Spans that a killed rank had not yet written are missing."""
    path = Path(path)
    parts = sorted(path.parent.glob(f"{path.name}.rank*"))
    records = [record for part in parts for record in read_lines(part)]
    path.write_text(json.dumps({"traceEvents": records, "displayTimeUnit": "ms"}), encoding="utf-8")
    for part in parts:
        part.unlink()
    return len(parts)
