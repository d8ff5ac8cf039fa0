"""Lines of a text file by number, without keeping the file: one pass notes where every 64th begins.

What stands in a line is csv's and JSONL's own matter: delimited.py, labelled_text.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ddl.data.formats.npy import first_bytes
from ddl.errors import DataError

STRIDE = 64
BOM = b"\xef\xbb\xbf"


class LineIndex:
    """The lines of a file, without ``skip`` of them at its head; empty lines may stand at its end only.

    check: called with (line number in the file from 1, line) for every line, in the one pass that builds the index."""

    def __init__(self, path: Path, skip: int = 0, check: Callable[[int, bytes], None] = lambda number, line: None):
        first_bytes(path)
        self.path, self.skip = path, skip
        self._offsets: list[int] = []
        count = offset = 0
        blank: int | None = None
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                line = clean(raw, number)
                if number > skip:
                    if not line.strip():
                        blank = number if blank is None else blank
                    else:
                        if blank is not None:
                            raise DataError("an empty line before the end", path, blank, "line")
                        if b"\0" in line:
                            raise DataError("a zero byte: not a text file", path, number, "line")
                        check(number, line)
                        if count % STRIDE == 0:
                            self._offsets.append(offset)
                        count += 1
                offset += len(raw)
        if not count:
            raise DataError("no samples in the file", path, skip + 1, "line")
        self._count = count

    def __len__(self) -> int:
        return self._count

    def line_number(self, row: int) -> int:
        """The number in the file, from 1, of a line by its number from 0 after the head."""
        return row + 1 + self.skip

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """These lines (ascending numbers), without their ends."""
        with open(self.path, "rb") as file:
            at = -1
            for row in rows.tolist():
                block = row // STRIDE
                if at < 0 or block * STRIDE > at:
                    file.seek(self._offsets[block])
                    at = block * STRIDE
                while at < row:
                    file.readline()
                    at += 1
                raw = file.readline()
                at += 1
                if not raw:
                    raise DataError("became shorter while it was used", self.path, self.line_number(row), "line")
                yield clean(raw, self.line_number(row))


def clean(raw: bytes, number: int) -> bytes:
    """A line without its end, and the first without a byte-order mark."""
    line = raw.rstrip(b"\r\n")
    return line.removeprefix(BOM) if number == 1 else line
