"""Lines of a text file by number, without keeping the file: one pass notes where every 64th begins.

delimited.py and labelled_text.py parse the lines."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ddl.data.formats.npy import first_bytes
from ddl.errors import DataError

STRIDE = 64
BOM = b"\xef\xbb\xbf"


class LineIndex:
    """The lines of a file without the first ``skip``; blank lines are not samples.

    blank_lines: how many were skipped, not counting blank lines at the end of the file.

    check: called with (line number in the file from 1, line) for every line, in the one pass that builds the index."""

    def __init__(self, path: Path, skip: int = 0, check: Callable[[int, bytes], None] = lambda number, line: None):
        first_bytes(path)
        self.path, self.skip = path, skip
        self._offsets: list[int] = []
        self._blanks: list[int] = []  # for each blank line the row that follows it
        count = offset = pending = 0
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                line = clean(raw, number)
                if number > skip:
                    if not line.strip():
                        pending += 1
                    else:
                        self._blanks += [count] * pending
                        pending = 0
                        if b"\0" in line:
                            raise DataError("a zero byte: not a text file", path, number, "line")
                        check(number, line)
                        if count % STRIDE == 0:
                            self._offsets.append(offset)
                        count += 1
                offset += len(raw)
        if not count:
            raise DataError("no samples in the file", path, skip + 1, "line")
        self._count, self.blank_lines = count, len(self._blanks)

    def __len__(self) -> int:
        return self._count

    def line_number(self, row: int) -> int:
        """The number in the file, from 1, of a line by its number from 0 after the head."""
        return row + 1 + self.skip + bisect_right(self._blanks, row)

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """These lines (ascending numbers), without their ends."""
        with open(self.path, "rb") as file:
            at = -1
            for row in rows.tolist():
                block = row // STRIDE
                if at < 0 or block * STRIDE > at:
                    file.seek(self._offsets[block])
                    at = block * STRIDE
                raw = b""
                while at <= row:
                    raw = file.readline()
                    at += 1 if raw.strip() or not raw else 0
                if not raw:
                    raise DataError("became shorter while it was used", self.path, self.line_number(row), "line")
                yield clean(raw, self.line_number(row))


def clean(raw: bytes, number: int) -> bytes:
    """A line without its end, and the first without a byte-order mark."""
    line = raw.rstrip(b"\r\n")
    return line.removeprefix(BOM) if number == 1 else line


def blank_note(lines: LineIndex) -> list[str]:
    """The line for the banner, if there is anything to say."""
    count = lines.blank_lines
    return [f"{lines.path.name}: {count} blank line{'' if count == 1 else 's'} skipped"] if count else []
