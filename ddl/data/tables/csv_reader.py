"""CSV files as blocks of cells. csv_head.py detects how they are written."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ddl.data.tables.csv_head import Head, read_head
from ddl.data.tables.records import Block, Reader
from ddl.data.tables.text import open_text
from ddl.errors import DataError
from ddl.wording import counted


@dataclass
class CsvReader(Reader):
    """A CSV file. Quoted cells may hold delimiters and line breaks; blank lines are skipped, and so are empty cells
    after the last column."""

    head: Head = field(default_factory=lambda: Head([], True, ","))
    encoding: str = ""

    def blocks(self) -> Iterator[Block]:
        width, blank, pending = len(self.names), 0, 0
        with open_text(self.path, self.encoding) as file:
            reader = csv.reader(file, delimiter=self.head.delimiter, skipinitialspace=True, strict=True)
            while True:
                begin = reader.line_num
                rows: list[list[str]] = []
                try:
                    rows.extend(islice(reader, self.rows_at_once()))
                except csv.Error as error:
                    raise self._unreadable(begin, error) from error
                if not rows:
                    break
                numbers: list[int] | range = range(begin + 1, begin + 1 + len(rows))
                if reader.line_num - begin != len(rows):
                    numbers = _numbers(rows, begin + 1)
                if self.is_named and begin == 0:
                    skip = next((at for at, row in enumerate(rows) if any(map(str.strip, row))), len(rows) - 1) + 1
                    rows, numbers = rows[skip:], numbers[skip:]
                if set(map(len, rows)) != {width} or (width == 1 and ["" in row for row in rows]):
                    kept = []
                    for row, number in zip(rows, numbers, strict=True):
                        if not row or (not any(map(str.strip, row)) and (len(row) < 2 or width < 2)):
                            pending += 1
                            continue
                        blank, pending = blank + pending, 0
                        if len(row) > width and not any(map(str.strip, row[width:])):
                            row = row[:width]
                        if len(row) != width:
                            self.problems.append((number, self.head.width_problem(row)))
                        else:
                            kept.append((row, number))
                    rows, numbers = [row for row, _ in kept], [number for _, number in kept]
                elif rows:
                    blank, pending = blank + pending, 0
                if rows:
                    yield Block(list(zip(*rows, strict=True)), numbers)
        if blank:
            self.notes.append(f"{self.path.name}: {counted(blank, 'blank line')} skipped")

    def _unreadable(self, begin: int, error: csv.Error) -> DataError:
        """Read again, row by row, to find where the record begins."""
        with open_text(self.path, self.encoding) as file:
            reader = csv.reader(file, delimiter=self.head.delimiter, skipinitialspace=True, strict=True)
            start = 1
            try:
                for _ in reader:
                    start = reader.line_num + 1
            except csv.Error:
                pass
        what = "NUL" in str(error) and "a zero byte: not a text file"
        return DataError(what or f"a quoted cell does not end as it should: {error}", self.path, start, "line")


def _numbers(rows: list[list[str]], first: int) -> list[int]:
    """The line where each row begins."""
    numbers = []
    for row in rows:
        numbers.append(first)
        first += 1 + sum(cell.count("\n") or cell.count("\r") for cell in row)
    return numbers


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
