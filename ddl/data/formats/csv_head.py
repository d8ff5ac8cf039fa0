"""Detect how a CSV file is written: its delimiter, its decimal mark, and whether the first line names the columns.

Decided from the first lines; an ambiguous file is rejected with both readings. delimited.py reads the rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path

from ddl.data.formats.npy import first_bytes
from ddl.data.formats.text_lines import clean
from ddl.errors import DataError
from ddl.wording import numbered

DELIMITERS = ",;\t|"
LOOKED_AT = 20  # lines after the first
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
ROW_NUMBERS = re.compile(r"|Unnamed: \d+|(row_?)?(id|index|idx)|row_?names?", re.IGNORECASE)  # names, "" among them
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


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
            lines.append(f"{numbered('column', places)} (from 0) are called {name!r}: told apart by their place")
        return lines


def decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text ({error.reason})", path, number, "line") from error


def split_cells(line: str, delimiter: str, path: Path, number: int) -> list[str]:
    if '"' not in line:
        return [cell.strip() for cell in line.split(delimiter)]
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, strict=True))]
    except csv.Error as error:
        raise DataError(f"a quoted cell does not end in its line: {error}", path, number, "line") from error


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def is_integer(text: str | int) -> bool:
    stripped = str(text).strip()
    return stripped[stripped.startswith(("-", "+")) :].isdecimal()


@lru_cache(maxsize=2**12)
def canonical(text: str) -> str:
    """The name of a class: "+1", "01" and "1.0" are the class "1"; other texts are themselves."""
    if is_integer(text):
        return str(int(text))
    if is_number(text) and float(text).is_integer():
        return str(int(float(text)))
    return text


def width_problem(line: bytes, width: int, head: Head) -> str:
    """Why a line has ``width`` cells where the first line has another number."""
    if line.lstrip().startswith(b"#"):
        return f"{_shown(line.decode(errors='replace'))} is a comment, which a CSV file cannot have: delete the line"
    if head.columns[0].startswith("#"):
        return f"{width} columns, but line 1, {_shown(head.columns[0])}, is a comment: delete that line"
    ending = f": it ends with {head.delimiter!r}" if line.rstrip().endswith(head.delimiter.encode()) else ""
    return f"{width} columns where there are {len(head.columns)}{ending}"


def _shown(text: str) -> str:
    return repr(text.strip()[:40])


def _check_first(first: str, rest: Sequence[str], delimiter: str, path: Path) -> None:
    """Raises DataError if the first line is a comment, or if the lines end with the delimiter."""
    samples = [line for line in rest if not line.lstrip().startswith("#")]
    if first.lstrip().startswith("#") and samples:
        likely = _delimiter(samples[0], samples[1:])
        if len(_try_split(first, likely)) != len(_try_split(samples[0], likely)) > 1:
            message = f"{_shown(first)} is a comment, which a CSV file cannot have: delete the line"
            raise DataError(message, path, 1, "line")
    if delimiter.strip() and samples and all(line.rstrip().endswith(delimiter) for line in (first, *samples)):
        message = f"each line ends with {delimiter!r}, which makes a last column without a value: remove these"
        raise DataError(message, path, 1, "line")


def read_head(path: Path, header: bool | None = None, delimiter: str | None = None, decimal: str | None = None) -> Head:
    """How the file is written. header, delimiter, decimal: settings; None decides from the file.

    Raises DataError if its first line can be names and a sample alike."""
    first_bytes(path)
    with open(path, "rb") as file:
        lines = (decoded(clean(raw, number), path, number) for number, raw in enumerate(file, 1))
        first = next(lines)
        # Errors in later lines are reported when these are read, with their numbers.
        rest = (
            [line for line in islice(lines, LOOKED_AT) if line.strip()] if header is not True or not delimiter else []
        )
    delimiter = delimiter or _delimiter(first, rest)
    _check_first(first, rest, delimiter, path)
    cells = split_cells(first, delimiter, path, 1)
    rows = [row for row in (_try_split(line, delimiter) for line in rest) if len(row) == len(cells)]
    if decimal is None:
        decimal = _decimal([cells, *rows], delimiter, path)
    if decimal == ",":
        cells_read, rows = _with_points(cells), [_with_points(row) for row in rows]
    else:
        cells_read = cells
    has_header = _names_columns(first, cells_read, rows, rest, path) if header is None else header
    columns = cells if has_header else [str(number) for number in range(len(cells))]
    looked_at = rows if has_header else [cells, *rows]
    named = enumerate(cells) if has_header else [(0, None)]
    numbering = tuple(at for at, name in named if _numbers_rows(name, [row[at] for row in looked_at]))
    return Head(columns, has_header, delimiter, decimal, numbering)


def _numbers_rows(name: str | None, values: Sequence[str]) -> bool:
    """Whether a column of this name (None: the file has no names) only numbers the rows."""
    if name is None:
        return len(values) >= 10 and any(list(values) == list(map(str, range(k, k + len(values)))) for k in (0, 1))
    if len(values) < 2 or len(set(values)) < len(values) or not ROW_NUMBERS.fullmatch(name):
        return False
    return all(map(str.isdecimal, values)) or not any(map(is_number, values))


def _decimal(rows: Sequence[Sequence[str]], delimiter: str, path: Path) -> str:
    found = [cell for row in rows for cell in row if DECIMAL_COMMA.fullmatch(cell)]
    if delimiter == "," or not found:
        return "."
    if all(THOUSANDS.fullmatch(cell) for cell in found):
        raise DataError(
            f"{found[0]!r} can be a number with a decimal comma or with thousands set apart: "
            'set data.options.decimal to "," or write it without a comma',
            path,
        )
    return ","


def _with_points(cells: Sequence[str]) -> list[str]:
    return [cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell) else cell for cell in cells]


def _try_split(line: str, delimiter: str) -> list[str]:
    try:
        return split_cells(line, delimiter, Path(), 0)
    except DataError:
        return []


def _delimiter(first: str, rest: Sequence[str]) -> str:
    """The delimiter that cuts all lines into equally many cells; of several, the one with fewest others in cells."""

    def remains(delimiter: str) -> tuple[bool, int, int]:
        rows = [_try_split(line, delimiter) for line in (first, *rest)]
        width = len(rows[0])
        is_even = width > 1 and all(len(row) == width for row in rows)
        others = sum(
            any(other in cell for other in DELIMITERS) and not DECIMAL_COMMA.fullmatch(cell)
            for row in rows
            for cell in row
            if '"' not in first
        )
        return not is_even, others, -first.count(delimiter)

    return min(DELIMITERS, key=remains)


def _names_columns(
    first: str, cells: Sequence[str], rows: Sequence[Sequence[str]], rest: Sequence[str], path: Path
) -> bool:
    numbers = [is_number(cell) for cell in cells]
    if not any(numbers):  # texts that all occur below are a sample of categories
        return not rows or not all(cell in {row[at] for row in rows} for at, cell in enumerate(cells))
    if not rows:
        return False
    over_numbers = [
        at
        for at, cell in enumerate(cells)
        if cell and cell != "?" and not numbers[at] and all(is_number(r[at]) for r in rows)
    ]
    texts = [at for at in range(len(cells)) if not numbers[at]]
    recurs = any(cells[at] in (row[at] for row in rows) for at in texts)
    counted = [at for at in range(len(cells)) if numbers[at]]
    is_counting = [cells[at] for at in counted] == [str(number) for number in range(len(counted))]
    is_series = is_counting or (_is_series(cells, counted) and not any(_is_series(row, counted) for row in rows))
    enough = len(counted) >= 3 or (len(counted) == 2 and bool(texts))
    alone = not recurs and ((enough and is_series) or _is_apart(cells, rows, counted))
    quoted = first.lstrip().startswith('"') and not any(line.lstrip().startswith('"') for line in rest)
    if over_numbers or alone or quoted:
        raise DataError(
            f"its first line, {first[:60]!r}, can be the names of the columns (then the first sample is "
            f"{rest[0][:60]!r}) or a sample: set data.options.header to true or false",
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
