"""Detect how a CSV file is written: its delimiter, its decimal mark, and whether the first line names the columns.

Decided from the first records; an ambiguous file is rejected with both readings. csv_reader.py reads the rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

from ddl.data.tables.cells import DECIMAL_COMMA, is_missing, is_number, number
from ddl.data.tables.text import open_text
from ddl.errors import DataError
from ddl.wording import counted, numbered

DELIMITERS = ",;\t|"
LOOKED_AT = 20  # records after the first
HEAD_CHARACTERS = 2**20
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
ROW_NUMBERS = re.compile(r"|Unnamed: \d+|(row_?)?(id|index|idx)|row_?names?", re.IGNORECASE)  # names, "" among them


@dataclass(frozen=True)
class Head:
    """columns: names, or numbers as text if the file does not name them. row_numbers: the columns that only number the
    rows, as pandas and databases write them."""

    columns: list[str]
    has_header: bool
    delimiter: str
    decimal: str = "."
    row_numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        header = "yes" if self.has_header else "no"
        return f"header: {header}; delimiter {self.delimiter!r}; decimal {self.decimal!r}"

    def repeated(self) -> list[str]:
        """A line for each name that several columns have."""
        lines = []
        for name in sorted({name for name in self.columns if self.columns.count(name) > 1}):
            places = [at for at, other in enumerate(self.columns) if other == name]
            lines.append(f"{numbered('column', places)} (from 0) are called {name!r}: distinguished by their place")
        return lines

    def width_problem(self, row: Sequence[str]) -> str:
        """What is wrong with a row that has another number of cells."""
        if row[0].lstrip().startswith("#"):
            comment = self.delimiter.join(row).strip()[:40]
            return f"{comment!r} is a comment, which a CSV file cannot have: delete the line"
        return f"{counted(len(row), 'column')} where there are {len(self.columns)}"


def _check_first(text: str, path: Path, is_whole: bool) -> None:
    """Raises DataError if the first line is a comment."""
    first, _, rest = text.lstrip("\r\n").partition("\n")
    if not first.lstrip().startswith("#") or not rest.strip():
        return
    likely = _delimiter(rest, is_whole)
    widths = [len(_records(part, likely, is_whole)[0]) for part in (first, rest)]
    if widths[0] != widths[1] > 1:
        message = f"{first.strip()[:40]!r} is a comment, which a CSV file cannot have: delete the line"
        raise DataError(message, path, 1, "line")


def read_head(
    path: Path,
    header: bool | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
    encoding: str = "",
) -> Head:
    """How the file is written. header, delimiter, decimal: settings; None decides from the file.

    Raises DataError if its first record can be names and a sample alike."""
    with open_text(path, encoding) as file:
        text = file.read(HEAD_CHARACTERS)
        is_whole = not file.read(1)
    if not text.strip():
        raise DataError("no samples in the file", path, 1, "line")
    if "\0" in text:
        is_wide = 2 * text.count("\0", 0, LOOKED_AT) >= min(len(text), LOOKED_AT)
        hint = ', or in another encoding: set data.encoding, likely to "utf-16-le"' if is_wide else ""
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"a zero byte: not a text file{hint}", path, line, "line")
    if delimiter is not None and len(delimiter) != 1:
        raise DataError(f"data.options.delimiter = {delimiter!r} must be one character", path)
    _check_first(text, path, is_whole)
    delimiter = delimiter or _delimiter(text, is_whole)
    cells, *rest = _records(text, delimiter, is_whole)
    rows = [row for row in rest if len(row) == len(cells)]
    if decimal is None:
        decimal = _decimal([cells, *rows], delimiter, path)
    lines = [line for line in islice(text.splitlines(), LOOKED_AT) if line.strip()]
    has_header = _names_columns(lines, cells, rows, path, decimal) if header is None else header
    if has_header and len(cells) > 1 and not cells[-1] and rows and not any(row[-1] for row in rows):
        cells = cells[:-1]  # each line ends with the delimiter
    if has_header:
        cells[0] = cells[0].removeprefix("#").lstrip() or cells[0]  # numpy.savetxt writes the names as a comment
    columns = cells if has_header else [str(number) for number in range(len(cells))]
    looked_at = rows if has_header else [cells, *rows]
    named = enumerate(cells) if has_header else [(0, None)]
    numbering = tuple(at for at, name in named if _numbers_rows(name, [row[at] for row in looked_at]))
    return Head(columns, has_header, delimiter, decimal, numbering)


def _records(text: str, delimiter: str, is_whole: bool) -> list[list[str]]:
    """The first records, without blank lines; up to the first that cannot be read, which reading the rows reports."""
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True)
    found: list[list[str]] = []
    try:
        for record in islice((r for r in reader if any(cell.strip() for cell in r)), LOOKED_AT + 2):
            found.append([cell.strip() for cell in record])
    except csv.Error:
        pass
    if len(found) > 1 and not is_whole and len(found) < LOOKED_AT + 2:
        found.pop()  # it may be cut
    return found[: LOOKED_AT + 1] or [[""]]


def _numbers_rows(name: str | None, values: Sequence[str]) -> bool:
    """Whether a column of this name (None: the file has no names) only numbers the rows."""
    if name is None:
        return len(values) >= 10 and any(list(values) == list(map(str, range(k, k + len(values)))) for k in (0, 1))
    if len(values) < 2 or len(set(values)) < len(values) or not ROW_NUMBERS.fullmatch(name):
        return False
    return all(map(str.isdecimal, values)) or not any(map(is_number, values))


def _decimal(rows: Sequence[Sequence[str]], delimiter: str, path: Path) -> str:
    cells = [cell for row in rows for cell in row]
    found = [cell for cell in cells if DECIMAL_COMMA.fullmatch(cell)]
    if any(re.fullmatch(r"\d+,\d+\.\d+", cell) for cell in cells):
        return "."
    if not found:
        is_grouped = any(re.fullmatch(r"[+-]?\d{1,3}([. ']\d{3})+,\d+", cell) for cell in cells)
        return "," if is_grouped and delimiter != "," else "."
    if delimiter == "," and all(THOUSANDS.fullmatch(cell) for cell in found):
        return "."  # quoted: in a file that commas delimit, these set thousands apart
    if all(THOUSANDS.fullmatch(cell) for cell in found):
        raise DataError(
            f"{found[0]!r} can be a number with a decimal comma or with thousands set apart: "
            'set data.options.decimal to "," or write it without a comma',
            path,
        )
    return ","


def _delimiter(text: str, is_whole: bool) -> str:
    """The delimiter that cuts all records into equally many cells; of several, the one with fewest others in cells."""

    def remains(delimiter: str) -> tuple[bool, int, int]:
        rows = _records(text, delimiter, is_whole)
        width = len(rows[0])
        is_even = width > 1 and all(len(row) == width for row in rows)
        others = sum(
            any(other in cell for other in DELIMITERS) and not DECIMAL_COMMA.fullmatch(cell)
            for row in rows
            for cell in row
            if '"' not in text
        )
        return not is_even, others, -len(rows[0])

    return min(DELIMITERS, key=remains)


def _names_columns(
    lines: Sequence[str], cells: Sequence[str], rows: Sequence[Sequence[str]], path: Path, decimal: str
) -> bool:
    """lines: the first ones as they are written. cells, rows: the first record, and those below it."""

    def is_value(cell: str) -> bool:
        return number(cell, decimal) is not None

    numbers = [is_value(cell) for cell in cells]
    if not any(numbers):  # texts that all occur below are a sample of categories
        return not rows or not all(cell in {row[at] for row in rows} for at, cell in enumerate(cells))
    if not rows:
        return False
    over_numbers = [
        at
        for at, cell in enumerate(cells)
        if not is_missing(cell) and not numbers[at] and all(is_value(r[at]) for r in rows)
    ]
    texts = [at for at in range(len(cells)) if not numbers[at]]
    recurs = any(cells[at] in (row[at] for row in rows) for at in texts)
    counted = [at for at in range(len(cells)) if numbers[at]]
    is_counting = [cells[at] for at in counted] == [str(place) for place in range(len(counted))]
    is_series = is_counting or (_is_series(cells, counted) and not any(_is_series(row, counted) for row in rows))
    enough = len(counted) >= 3 or (len(counted) == 2 and bool(texts))
    alone = not recurs and ((enough and is_series) or _is_apart(cells, rows, counted))
    quoted = lines[0].lstrip().startswith('"') and not any(line.lstrip().startswith('"') for line in lines[1:])
    if over_numbers or alone or quoted:
        raise DataError(
            f"its first line, {lines[0][:60]!r}, can be the names of the columns (then the first sample is "
            f"{lines[1][:60]!r}) or a sample: set data.options.header to true or false",
            path,
            1,
            "line",
        )
    return False


def _is_series(cells: Sequence[str], places: Sequence[int]) -> bool:
    """Whether these cells are whole numbers in equal steps, such as years."""
    if not all(cells[at].isdecimal() for at in places):
        return False
    values = [int(cells[at]) for at in places]
    steps = {b - a for a, b in pairwise(values)}
    return len(steps) == 1 and 0 not in steps


def _is_apart(cells: Sequence[str], rows: Sequence[Sequence[str]], places: Sequence[int]) -> bool:
    """Whether these cells are whole numbers, each further from the numbers below it than these are spread."""
    if len(rows) < 5 or not all(cells[at].isdecimal() for at in places):
        return False
    for at in places:
        values = [float(row[at]) for row in rows if is_number(row[at])]
        low, high = min(values, default=0.0), max(values, default=0.0)
        if not values or low - (high - low) <= float(cells[at]) <= high + (high - low):
            return False
    return True
