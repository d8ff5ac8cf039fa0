"""A file that another process appends lines to: only its new bytes are read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

CHUNK_BYTES = 1 << 20


class Follower:
    """The lines of a file. A file that is missing has none; one that is not regular is never opened.

    lines: how many whole lines have been read."""

    def __init__(self, path: Path):
        self.path, self.lines = path, 0
        self._at, self._rest, self._inode = 0, b"", -1

    def backlog(self) -> int:
        """Bytes that have not been read yet; negative if the file was replaced or truncated, or has disappeared, and
        must be read from its beginning."""
        try:
            status = os.stat(self.path)
        except OSError:
            return -1 if self._at else 0
        if not stat.S_ISREG(status.st_mode):
            return 0
        is_other = self._inode not in (-1, status.st_ino) or status.st_size < self._at
        self._inode = status.st_ino
        return -1 if is_other else status.st_size - self._at

    def restart(self) -> None:
        self.lines, self._at, self._rest, self._inode = 0, 0, b"", -1

    def chunks(self, marker: bytes = b"") -> Iterator[list[bytes]]:
        """The new lines, without their ends, some at a time; a line that is still being written comes with the next
        call. marker: pieces of the file without it yield nothing. Raises OSError."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with open(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return
            file.seek(self._at)
            while block := file.read(CHUNK_BYTES):
                self._at += len(block)
                if marker not in block and marker not in self._rest:
                    end = block.rfind(b"\n") + 1
                    self._rest = block[end:] if end else self._rest + block
                    continue
                *whole, self._rest = (self._rest + block).split(b"\n")
                self.lines += len(whole)
                yield whole
