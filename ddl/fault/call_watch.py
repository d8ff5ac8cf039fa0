"""Watches the calls of a script without fault tolerance: a rank that waits too long for the others ends all of them.

Each rank enters its calls in memory that the ranks of its node share, so that the line can say where the others are.
``ddl.collectives`` notices calls that differ by itself, and companion.py watches ranks that survive failures."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np

from ddl.comm import Group, ending
from ddl.wording import counted, numbered

SLOT_BYTES = 512  # of each rank: two numbers, then the text of its newest call
NUMBER, WAITS, TEXT_BYTES, TEXT_AT = 0, 1, 2, 24
TICK_S = 0.5
SETTLE_S = 1.0  # between the line and the end of the ranks that did not print it, so that mpirun has the first status


class CallWatch:
    """The newest call of this rank and of the others on its node."""

    def __init__(self, group: Group, timeout_s: float):
        """Called by all ranks together. timeout_s: the longest that a rank may wait."""
        self.group, self.timeout_s = group, timeout_s
        memory = group.share(SLOT_BYTES, 0)
        self._slots = np.zeros((len(group.local_ranks), SLOT_BYTES), np.uint8) if memory is None else memory.slots
        self._own = self._slots[group.local_ranks.index(group.rank)]
        self._is_waiting = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="ddl-call-watch").start()

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Around the time in which this rank waits for the others to make its next call as well."""
        numbers, encoded = self._numbers(self._own), text.encode()[: SLOT_BYTES - TEXT_AT]
        self._own[TEXT_AT : TEXT_AT + len(encoded)] = np.frombuffer(encoded, np.uint8)
        numbers[TEXT_BYTES] = len(encoded)
        numbers[NUMBER] += 1
        numbers[WAITS] = 1
        self._is_waiting.set()
        try:
            yield
        finally:
            self._is_waiting.clear()
            numbers[WAITS] = 0

    @staticmethod
    def _numbers(slot: np.ndarray) -> np.ndarray:
        return slot[:TEXT_AT].view(np.int64)

    def _watch(self) -> None:
        waited_s, seen, before = 0.0, -1, time.monotonic()
        while True:
            self._is_waiting.wait()
            time.sleep(min(TICK_S, self.timeout_s / 4))
            now, number = time.monotonic(), int(self._numbers(self._own)[NUMBER])
            passed_s, before = min(now - before, 2 * TICK_S), now  # a job that was suspended does not count that time
            waited_s = waited_s + passed_s if self._is_waiting.is_set() and number == seen else 0.0
            seen = number
            if waited_s > self.timeout_s:
                self._end(waited_s)

    def _end(self, waited_s: float) -> None:
        """Print where the ranks of this node are, and end the ranks that wait and the ranks that are late."""
        mine = self._numbers(self._own)[NUMBER]
        waiting: list[int] = []
        late: list[int] = []
        for rank, slot in zip(self.group.local_ranks, self._slots, strict=True):
            number, waits, _ = self._numbers(slot)
            (waiting if waits and number == mine else late).append(rank)
        if self.group.rank == waiting[0]:
            print(f"ddl: {self.line(waited_s)}", file=sys.stderr, flush=True)
            for rank in late:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self.group.members[rank].pid, signal.SIGKILL)
            ending.leave(1)
        time.sleep(SETTLE_S)
        ending.leave(1)

    def line(self, waited_s: float) -> str:
        """Which ranks of this node wait for how long in which call, and where the others are."""
        places: dict[tuple[bool, str], list[int]] = {}
        for rank, slot in zip(self.group.local_ranks, self._slots, strict=True):
            number, waits, length = self._numbers(slot)
            text = bytes(slot[TEXT_AT : TEXT_AT + length]).decode(errors="replace")
            call = f"call {number}, {text}" if number else "the start"
            places.setdefault((bool(waits), call), []).append(rank)
        lines = []
        for (waits, call), ranks in places.items():
            one = len(ranks) == 1
            does = f"wait{'s' * one} in" if waits else f"{'is in its' if one else 'are in their'} own code after"
            lines.append(f"{numbered('rank', ranks)} {does} {call}")
        elsewhere = self.group.size - len(self.group.local_ranks)
        if elsewhere:
            lines.append(f"{counted(elsewhere, 'rank')} on other nodes")
        return f"the ranks have waited {waited_s:.0f} s for each other: {'; '.join(lines)}"
