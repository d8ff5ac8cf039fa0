"""The contract of a reader of tables: the names of its columns, and their cells block by block.

csv_reader.py, json_reader.py and arrow_reader.py implement it; convert.py calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddl.kernels.table_cells import OTHER

CELLS_AT_ONCE = 200_000
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class TextCells:
    """Cells of one column: the different texts, and which of them each cell is.

    csv_reader.py has cells of which some are read as numbers before they become texts."""

    different: Sequence[str]
    codes: np.ndarray

    @classmethod
    def of(cls, cells: Sequence[str]) -> TextCells:
        numbers: dict[str, int] = {}
        codes = [numbers.setdefault(cell, len(numbers)) for cell in cells]
        return cls(list(numbers), np.array(codes, np.int64))

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[str]:
        return map(self.different.__getitem__, self.codes.tolist())

    def numbers(self, decimal: str) -> tuple[np.ndarray, np.ndarray]:
        """(values, how each cell is written, see ddl/kernels/table_cells.py), where OTHER is a cell not read yet."""
        return np.full(len(self), np.nan), np.full(len(self), OTHER, np.uint8)

    def texts(self, rows: np.ndarray | slice) -> TextCells:
        """Some of the cells."""
        return TextCells(self.different, self.codes[rows])


Cells = TextCells | np.ndarray  # an array: whole numbers, or float64 with NaN where a cell is missing


@dataclass(frozen=True)
class Block:
    """Rows of a table. numbers: of the lines (or rows, from 1) where they begin. cells: of the column at a place."""

    numbers: Sequence[int] | np.ndarray
    cells: Callable[[int], Cells]


@dataclass
class Reader:
    """One file. names: of its columns, if it ``is_named``; else their positions as text. kinds: declared by the
    format, by position. row_numbers: columns that only number the rows. unit: "line" or "row".

    refused: columns whose cells are no values, and what they are. problems: (number, what is wrong), and notes, for the
    banner: both are complete after ``blocks``."""

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
