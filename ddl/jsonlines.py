"""A file that grows by whole lines. If the disk is full, lines wait in memory and are not lost.

metrics/jsonl.py and data/ledger.py define the lines."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

WAITING_BYTES = 16 << 20  # of lines that may wait while the disk is full
PIECE_BYTES = 64 << 10  # of them that are tried at a time
RETRY_S = 1.0
FULL = (errno.ENOSPC, errno.EDQUOT)


class Lines:
    """Appends lines; each is handed to the system as it is written, so a killed process loses none of these.

    A line that a killed writer left unfinished is closed first. While the disk is full, lines wait in memory, in order,
    and a partly written line is truncated; ``say`` gets one sentence when that begins, and one when it ends. A process
    that is killed meanwhile loses the waiting lines. Raises OSError if the file cannot be written for another reason,
    or if too many lines wait."""

    def __init__(
        self,
        path: str | Path,
        say: Callable[[str], None] = lambda message: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.path, self._say, self._clock = Path(path), say, clock
        self._waiting = bytearray()
        self._retry_at = 0.0
        self._file, self._is_torn = -1, False
        try:
            self._open()
        except OSError as error:
            if error.errno not in FULL:
                raise

    def write(self, line: str) -> None:
        waited = bool(self._waiting)
        self._waiting += line.encode() + b"\n"
        if waited and self._clock() < self._retry_at and len(self._waiting) <= WAITING_BYTES:
            return
        full = self._flush(waited)
        if full is not None and len(self._waiting) > WAITING_BYTES:
            raise full
        if full is not None and not waited:
            self._say(f"{self.path.name} waits in memory for room on the disk: {full.strerror}")

    def catch_up(self) -> bool:
        """Try to write what waits; whether the file lacks nothing now."""
        if self._waiting:
            self._flush(waited=True)
        return not self._waiting

    def forget(self) -> None:
        """Discard the waiting lines: another launch owns the file now."""
        self._waiting.clear()

    def close(self) -> None:
        """Try once more to write waiting lines; ``say`` gets the number of missing lines. Raises nothing."""
        try:
            self.catch_up()
        except OSError as error:
            problem = error.strerror
        else:
            problem = "there is no room on the disk"
        file, self._file = self._file, -1
        if self._waiting:
            lost = self._waiting.count(b"\n")
            self._waiting.clear()
            self._say(f"{self.path.name} lacks its last {lost} line{'s' * (lost > 1)}: {problem}")
        if file >= 0:
            try:
                os.close(file)
            except OSError as error:  # some file systems find only now that there was no room
                self._say(f"{self.path.name} may lack its last lines: {error.strerror}")

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):  # a write to a FIFO without a reader would block
            raise OSError(errno.EINVAL, "it is not a regular file", str(self.path))
        size = status.st_size
        self._is_torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def _flush(self, waited: bool) -> OSError | None:
        """Write as many waiting lines as the disk has room for; returns the OSError if it is full.

        waited: lines waited before this call, and the user was warned about it."""
        try:
            if self._file < 0:
                self._open()
            while self._waiting:
                if self._is_torn:
                    self._is_torn = os.write(self._file, b"\n") == 0
                self._write_piece()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._retry_at = self._clock() + RETRY_S
            return error
        if waited:
            self._say(f"{self.path.name} is written again, and lacks nothing")
        return None

    def _write_piece(self) -> None:
        """Write some of the waiting lines. Raises OSError if not all of them fit."""
        end = self._waiting.find(b"\n", min(PIECE_BYTES, len(self._waiting)) - 1) + 1
        piece = bytes(self._waiting[:end])
        written = os.write(self._file, piece)
        whole = piece.rfind(b"\n", 0, written) + 1
        del self._waiting[:whole]
        if written < len(piece):  # the disk is full: a short write now, the error only at the next one
            self._take_back(written - whole)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _take_back(self, count: int) -> None:
        """Remove the last ``count`` bytes written, unless another launch's leader has appended after them."""
        try:
            end = os.lseek(self._file, 0, os.SEEK_CUR)  # after an append, the end of the appended bytes
            if os.fstat(self._file).st_size == end:
                os.ftruncate(self._file, end - count)
                return
        except OSError:  # some file systems need free space even to truncate
            pass
        self._is_torn = count > 0
