"""A thread that writes checkpoints while training continues, from a copy taken between two steps.

store.py writes the files; ddl/train decides when to write a checkpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ddl.arrays import Array, host
from ddl.checkpoint.store import Store
from ddl.errors import CheckpointError, DdlError

TICK_S = 0.5
PATIENCE_S = 30.0  # training waits this long for the previous checkpoint, then skips one
LAST_S = 600.0  # the wait for the last one, when nothing else is left to do
Saved = Callable[[int, Path], None]


def _ignore(*arguments: Any) -> None:
    """The default of all callbacks."""


class Writer:
    """Writes to ``store`` (None on a rank that writes no checkpoints to disk) and to the node's ``memory``.

    The staging buffer is reused, so that a step allocates nothing. One write at a time.
    say: called with a line if a checkpoint could not be written. saved(step, path): called from the thread, after each.
    beat: called regularly while ``submit`` or ``wait`` waits for a file system. write_s: seconds that the thread took
    for the newest write."""

    def __init__(
        self,
        store: Store | None,
        memory: Store | None = None,
        *,
        say: Callable[[str], None] = _ignore,
        saved: Saved = _ignore,
    ):
        self.store, self.memory, self.say, self.saved = store, memory, say, saved
        self.beat: Callable[[], None] = _ignore
        self.write_s = 0.0
        self._is_overdue = False
        self._staging = np.empty(0, np.uint8)
        self._work: Callable[[], None] | None = None
        self._error: DdlError | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoint writer", daemon=True)
        self._thread.start()

    def submit(
        self,
        step: int,
        arrays: Mapping[str, Array],
        meta: Mapping[str, Any],
        score: float | None = None,
        *,
        to_disk: bool = True,
    ) -> None:
        """Copy the state and return; the thread writes the copy. Waits for an earlier write first, but not for a file
        system that hangs: then this checkpoint is skipped, with a line through ``say``. One for memory alone
        (``to_disk`` False) does not wait: it is skipped.

        Raises LeaseLost if an earlier write found that a newer generation holds the run folder. A write that failed for
        another reason (a full disk) was reported through ``say``: training continues and earlier checkpoints are
        untouched. ``meta`` is not copied and must not change afterwards."""
        if not to_disk and not self._is_idle_within(0.0):
            return
        if not self._is_idle_within(0.0 if self._is_overdue else PATIENCE_S):
            if not self._is_overdue:
                self.say(f"no checkpoint of step {step} and later: the previous one has taken {PATIENCE_S:g} s so far")
            self._is_overdue = True
            return
        self._is_overdue = False
        if self._error is not None and not isinstance(self._error, CheckpointError):
            raise self._error
        copies = self._stage(arrays)
        targets = [store for store in (self.memory, self.store if to_disk else None) if store is not None]

        def work() -> None:
            for store in targets:
                try:
                    path = store.save(step, copies, meta, score)
                except CheckpointError as error:
                    if store is self.store:
                        raise
                    self.say(f"the checkpoint in memory was not renewed: {error}")  # the disk may still have room
                    continue
                if store is self.store:
                    self.saved(step, path)

        with self._changed:
            if self._closed:
                raise CheckpointError("the checkpoint writer is closed")
            self._error, self._work = None, work
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until the last submitted checkpoint is written. Raises its error, once."""
        if self._is_overdue or not self._is_idle_within(LAST_S):
            self._is_overdue = True
            raise CheckpointError("a checkpoint is still being written: the file system seems to hang")
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Finish the write in progress and end the thread; a thread that hangs in a file system is abandoned."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(0.0 if self._is_overdue else LAST_S)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _is_idle_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._changed.wait_for(lambda: self._work is None, min(seconds, TICK_S)):
                self.beat()
                if time.monotonic() >= deadline:
                    return False
        return True

    def _stage(self, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Copies of the arrays in the staging buffer, by name."""
        starts, end = {}, 0
        for name, array in arrays.items():
            starts[name] = end
            end += -(-array.nbytes // 64) * 64
        if self._staging.nbytes < end:
            self._staging = np.empty(end, np.uint8)
        copies = {}
        for name, array in arrays.items():
            copy = self._staging[starts[name] : starts[name] + array.nbytes]
            copies[name] = copy.view(array.dtype).reshape(array.shape)
            copies[name][...] = host(array)
        return copies

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._work is not None or self._closed)
                work = self._work
            if work is None:
                return
            error: DdlError | None = None
            began = time.monotonic()
            try:
                work()
            except DdlError as failure:
                error = failure
            except Exception as failure:
                error = CheckpointError(f"a checkpoint was not written: {failure!r}")
                error.__cause__ = failure
            if error is not None:
                try:
                    self.say(str(error))
                except Exception as failure:  # ``wait`` must return in any case, with both errors
                    if isinstance(error, CheckpointError):
                        error = CheckpointError(f"{error}; and this could not be reported: {failure!r}")
            self.write_s = time.monotonic() - began
            with self._changed:
                self._error, self._work = error, None
                self._changed.notify_all()
