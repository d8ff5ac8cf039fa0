"""The contract of a reader of tables: the names of its columns, and their cells block by block.

csv_reader.py, json_reader.py and arrow_reader.py implement it; convert.py calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddl.data.tables.columns import Cells

CELLS_AT_ONCE = 200_000
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Block:
    """Rows of a table, column by column. numbers: of the lines (or rows, from 1) where they begin."""

    columns: Sequence[Cells]
    numbers: Sequence[int]


@dataclass
class Reader:
    """One file. names: of its columns, if it ``is_named``; else their positions as text. kinds: those that the format
    declares, by position. row_numbers: columns that only number the rows. unit: "line" or "row".

    refused: columns
    whose cells are no values, and what they are. problems: (number, what is wrong), and notes, for the banner: both are
    complete after ``blocks``."""

    path: Path
    names: list[str]
    is_named: bool = True
    decimal: str = "."
    unit: str = "line"
    kinds: Mapping[int, str] = field(default_factory=dict)
    row_numbers: tuple[int, ...] = ()
    refused: dict[int, str] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def blocks(self) -> Iterator[Block]:
        """All rows in their order. Raises DataError where no further row can be read."""
        raise NotImplementedError

    def rows_at_once(self) -> int:
        return max(min(ROWS_AT_ONCE, CELLS_AT_ONCE // max(len(self.names), 1)), 64)
