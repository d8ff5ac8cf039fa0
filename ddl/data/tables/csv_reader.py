"""CSV files as blocks of cells. csv_head.py detects how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np

from ddl.data.tables.csv_head import Head, read_head
from ddl.data.tables.records import Block, Reader, Texts
from ddl.data.tables.text import utf8_pieces
from ddl.errors import DataError
from ddl.kernels.table_cells import (
    AFTER_QUOTE,
    MOST_CHARACTERS,
    TOO_LONG,
    UNENDED,
    ZERO,
    different_cells,
    parse_numbers,
    powers_of_five,
    split_cells,
)
from ddl.wording import counted

UNREADABLE = {
    AFTER_QUOTE: "a quoted cell does not end as it should: a text follows its quote",
    UNENDED: "a quoted cell does not end as it should: the file ends within it",
    TOO_LONG: f"a cell of over {MOST_CHARACTERS} characters: likely a quoted cell does not end",
    ZERO: "a zero byte: not a text file",
}


@dataclass(frozen=True)
class CsvCells(Texts):
    """The cells of one column within ``content``; starts, ends: see ddl/kernels/table_cells.py."""

    content: bytes
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def at(cls, content: bytes, starts: np.ndarray, ends: np.ndarray) -> CsvCells:
        return cls((), starts, content, starts, ends)

    def numbers(self, decimal: str) -> tuple[np.ndarray, np.ndarray]:
        values, written = np.empty(len(self)), np.empty(len(self), np.uint8)
        parse_numbers(values, written, _bytes(self.content), self.starts, self.ends, ord(decimal), _powers())
        return values, written

    def texts(self, rows: np.ndarray | slice) -> Texts:
        starts, ends = (np.ascontiguousarray(each[rows]) for each in (self.starts, self.ends))
        codes, where = np.empty(len(starts), np.int32), np.empty(len(starts), np.int32)
        count = different_cells(_bytes(self.content), starts, ends, codes, where)
        found = zip(starts[where[:count]].tolist(), ends[where[:count]].tolist(), strict=True)
        return Texts([_text(self.content, start, end) for start, end in found], codes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts(slice(None)))


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


@cache
def _powers() -> np.ndarray:
    return powers_of_five()


def _text(content: bytes, start: int, end: int) -> str:
    return content[start:end].decode() if end >= 0 else content[start : -1 - end].decode().replace('""', '"')


@dataclass
class CsvReader(Reader):
    """A CSV file. Quoted cells may hold delimiters and line breaks; blank lines are skipped, and so are empty cells
    after the last column."""

    head: Head = field(default_factory=lambda: Head([], True, ","))
    encoding: str = ""

    def blocks(self) -> Iterator[Block]:
        delimiter = np.frombuffer(self.head.delimiter.encode(), np.uint8)
        blank, pending, is_header, line = 0, 0, self.is_named, 1
        rest, wanted = b"", 0
        for piece, is_end in utf8_pieces(self.path, self.encoding):
            rest += piece
            if len(rest) < wanted and not is_end:
                continue
            starts, ends, first, lines = (np.empty(len(rest) + 2, np.int32) for _ in range(4))
            count, used, passed, how = split_cells(_bytes(rest), is_end, delimiter, starts, ends, first, lines)
            rows = _Rows(rest, starts, ends, first[: count + 1])
            begin = 0
            if is_header:
                begin = next((at + 1 for at in range(count) if not rows.is_blank(at)), count)
                is_header = begin == count and (not count or rows.is_blank(count - 1))
            kept, blanks = np.arange(count) >= begin, np.zeros(count, bool)
            for at in rows.irregular(len(self.names)):
                if at >= begin:
                    kept[at], blanks[at], what = self._judge(rows, at)
                    if what:
                        self.problems.append((line + int(lines[at]), what))
            others = np.flatnonzero(~blanks[begin:])
            if len(others):  # blank lines at the end of the file are not worth a note
                blank, pending = blank + pending + int(blanks[begin:][: others[-1]].sum()), 0
            pending += int(blanks[begin:][others[-1] if len(others) else 0 :].sum())
            if kept.any():
                yield Block(line + lines[:count][kept], partial(rows.cells, first[:count][kept]))
            line, rest = line + passed, rest[used:]
            if how in UNREADABLE:
                raise DataError(UNREADABLE[how], self.path, line, "line")
            wanted = 0 if used else 2 * len(rest)  # for a record that is longer
        if blank:
            self.notes.append(f"{self.path.name}: {counted(blank, 'blank line')} skipped")

    def _judge(self, rows: _Rows, at: int) -> tuple[bool, bool, str]:
        """(whether a row of another width is a sample, whether it is a blank line, what else is wrong with it)."""
        width, cells = len(self.names), rows.texts(at)
        if not any(map(str.strip, cells)) and (len(cells) < 2 or width < 2):
            return False, True, ""
        if len(cells) == width or (len(cells) > width and not any(map(str.strip, cells[width:]))):
            return True, False, ""
        return False, False, self.head.width_problem(cells)


@dataclass(frozen=True)
class _Rows:
    """Rows of ``content``, as ``split_cells`` gives them."""

    content: bytes
    starts: np.ndarray
    ends: np.ndarray
    first: np.ndarray

    def texts(self, at: int) -> list[str]:
        return [_text(self.content, self.starts[cell], self.ends[cell]) for cell in range(*self.first[at : at + 2])]

    def is_blank(self, at: int) -> bool:
        return not any(map(str.strip, self.texts(at)))

    def irregular(self, width: int) -> list[int]:
        """The rows that have not ``width`` cells and perhaps an empty one behind them, and rows that may be blank."""
        counts, last = np.diff(self.first), self.first[1:] - 1
        is_odd = counts != width
        if width == 1:
            cells = np.minimum(self.first[:-1], max(self.first[-1] - 1, 0))
            starts = self.starts[cells]
            begins = _bytes(self.content)[np.minimum(starts, len(self.content) - 1)]
            is_odd |= (starts == self.ends[cells]) | (begins <= 32) | (begins >= 128)
        else:
            is_odd &= (counts != width + 1) | (self.starts[last] != self.ends[last])
        return np.flatnonzero(is_odd).tolist()

    def cells(self, first: np.ndarray, place: int) -> CsvCells:
        """The cells at ``place`` of the rows whose first cells these are."""
        return CsvCells.at(self.content, self.starts[first + place], self.ends[first + place])


def open_csv(
    path: Path,
    *,
    header: bool | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
    encoding: str = "",
) -> CsvReader:
    """header: whether the first line names the columns; delimiter, decimal: how cells are written. None decides by the
    first records. encoding: of the text, "" for UTF-8."""
    head = read_head(path, header, delimiter, decimal, encoding)
    return CsvReader(
        path,
        head.columns,
        is_named=head.has_header,
        decimal=head.decimal,
        row_numbers=head.row_numbers,
        notes=[str(head), *head.repeated()],
        head=head,
        encoding=encoding,
    )
