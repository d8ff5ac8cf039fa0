"""A file that grows by whole lines: readers never meet half of one, and a full disk makes lines wait, not vanish.

What a line says is its writer's affair (metrics/jsonl.py, data/ledger.py)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

WAITING_BYTES = 16 << 20  # lines that may wait in memory while the disk is full
FULL = (errno.ENOSPC, errno.EDQUOT)


def _nobody(message: str) -> None:
    """Who is told where nobody asked to be."""


class Lines:
    """Appends lines; each is handed to the system as it is written, so a killed process loses none.

    A line that a killed writer left unfinished is closed first. While the disk is full lines wait in memory, in order,
    and go out with the first one for which there is room; ``say`` hears one sentence when that begins, and one when
    it ends. Raises OSError where the file cannot be written for another reason, or too much waits."""

    def __init__(self, path: str | Path, say: Callable[[str], None] = _nobody):
        self.path, self._say = Path(path), say
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._waiting = b""
        self._is_torn = _ends_mid_line(self._file)

    @property
    def waits(self) -> bool:
        """Whether lines are in memory alone."""
        return bool(self._waiting)

    def write(self, line: str) -> None:
        began, self._waiting = not self._waiting, self._waiting + line.encode() + b"\n"
        full = self._flush()
        if full is None:
            if not began:
                self._say(f"{self.path.name} is written again, and lacks nothing")
        elif len(self._waiting) > WAITING_BYTES:
            raise full
        elif began:
            self._say(f"{self.path.name} waits in memory for room on the disk: {full.strerror}")

    def close(self) -> None:
        """Lines that still wait get one more chance; ``say`` hears how many did not fit."""
        if self._file < 0:
            return
        try:
            full = self._flush() if self._waiting else None
        finally:
            os.close(self._file)
            self._file = -1
        if full is not None:
            lost = self._waiting.count(b"\n")
            self._say(f"{self.path.name} lacks its last {lost} line(s): {full.strerror}")

    def _flush(self) -> OSError | None:
        """Write whatever waits, all of it or nothing; what is returned says that the disk is full."""
        bytes_ = b"\n" + self._waiting if self._is_torn else self._waiting
        written = 0
        try:
            while written < len(bytes_):  # the system may take a part, and refuse only the next one
                written += os.write(self._file, bytes_[written:])
        except OSError as error:
            if written:
                self._take_back(written)
            if error.errno not in FULL:
                raise
            return error
        self._waiting, self._is_torn = b"", False
        return None

    def _take_back(self, count: int) -> None:
        """Cut off what was written last, unless another launch's leader has written behind it."""
        end = os.lseek(self._file, 0, os.SEEK_CUR)  # appending leaves the place behind what was appended
        if os.fstat(self._file).st_size == end:
            os.ftruncate(self._file, end - count)
        else:
            self._is_torn = True


def _ends_mid_line(file: int) -> bool:
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"
