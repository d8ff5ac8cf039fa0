"""Convert the files of a table, once, into rows of numbers and their schema; all problems of all files are one error.

Which columns are asked for is decided in roles.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ddl.data.tables.cells import MISSING
from ddl.data.tables.columns import TableColumn
from ddl.data.tables.records import Block, Reader
from ddl.data.tables.store import RowStore, Share, make
from ddl.errors import DataError
from ddl.wording import counted

MOST_SHOWN = 10  # problems that an error names
MOST_KEPT = 10_000
NO_TARGET = "no target"
PART_CELLS = 2**22  # that one process converts at a time
MOST_PARTS = 500  # unless the files are compressed
MOST_PASSES = 3  # over the files, until the kind of every column suits its cells


@dataclass
class Problems:
    """What is wrong with the files, to be reported at once."""

    found: list[tuple[Path, int, str, str]] = field(default_factory=list)
    count: int = 0

    def add(self, reader: Reader, number: int, what: str) -> None:
        self.count += 1
        if len(self.found) < MOST_KEPT:
            self.found.append((reader.path, number, reader.unit, what))

    def check(self) -> None:
        """Raise DataError, in one line, if there are any."""
        if not self.count:
            return
        paths = list(dict.fromkeys(path for path, *_ in self.found))
        found = sorted(self.found, key=lambda problem: (paths.index(problem[0]), problem[1]))
        path, number, unit, what = found[0]
        shown = []
        for other, at, its, problem in found[1:MOST_SHOWN]:
            shown.append(f"{'' if other == path else f'{other}, '}{its} {at}: {problem}")
        more = [f"and {self.count - MOST_SHOWN} more"] if self.count > MOST_SHOWN else []
        lacks = any(problem.startswith(NO_TARGET) for *_, problem in found)
        hint = ['data.missing_targets = "skip" leaves rows without a target out'] if lacks else []
        raise DataError("; ".join([what, *shown, *more, *hint]), path, number, unit)


def convert(
    readers: Sequence[Reader],
    places: Sequence[Sequence[int]],
    columns: Sequence[TableColumn],
    *,
    key: Mapping[str, Any],
    missing: Sequence[str] = (),
    skips: bool = False,
    problems: Problems | None = None,
) -> RowStore:
    """The rows of all files as one table: ``columns`` in their order, as float64.

    places: for each reader, where these columns are in it. columns: those with a kind keep it; others get one by their
    cells. key: what else the rows depend on. missing: further marks of a missing cell. skips: rows without a target are
    left out; else they are problems. problems: found before; they are reported with those of the cells.
    Raises DataError for all problems at once. The schema holds the "columns", and the "notes" of the readers."""
    marks = frozenset((*MISSING, *(mark.strip().lower() for mark in missing))) if missing else MISSING
    work = _Conversion(readers, places, list(columns), marks, skips, problems or Problems())
    asked = [(c.name, c.kind, c.order, c.is_target, sorted(c.allowed or ())) for c in columns]
    how = [(reader.decimal, reader.names) for reader in readers]
    return make([reader.path for reader in readers], {**key, "columns": asked, "how": how, "marks": sorted(marks),
                  "skips": skips}, work)  # fmt: skip


@dataclass
class _Conversion:
    readers: Sequence[Reader]
    places: Sequence[Sequence[int]]
    columns: list[TableColumn]
    missing: frozenset[str]
    skips: bool
    problems: Problems
    passes: int = 0

    def __post_init__(self) -> None:
        self.asked = [column.fresh() for column in self.columns]
        self.columns = [column.fresh() for column in self.columns]

    def convert(self, share: Share) -> int:
        """Go through all files, convert the parts that are this process's, and return how many parts there are.

        Where blocks begin, and what is wrong with whole rows, each process sees for itself."""
        part, cells = 0, 0
        writer: _Writer | None = None
        most = max(PART_CELLS, sum(reader.path.stat().st_size for reader in self.readers) // MOST_PARTS)
        for reader, places in zip(self.readers, self.places, strict=True):
            reader.problems, notes = [], list(reader.notes)
            for block in reader.blocks():
                self._decide(reader, block, places)
                if not cells:
                    file = share.begin(part)
                    writer = None if file is None else _Writer(self, file)
                if writer is not None:
                    writer.add(reader, block, places)
                cells += len(block.numbers) * len(places)
                if cells >= most:
                    _end(share, part, writer)
                    part, cells, writer = part + 1, 0, None
            reader.notes = list(dict.fromkeys((*notes, *reader.notes)))
        _end(share, part, writer)
        return part + (cells > 0)

    def _decide(self, reader: Reader, block: Block, places: Sequence[int]) -> None:
        """Choose the kinds that are still open by the first rows."""
        for column, place in zip(self.columns, places, strict=True):
            if not column.kind:
                column.decimal = reader.decimal
                cells = block.cells(place)
                column.decide(cells if isinstance(cells, np.ndarray) else cells.texts(slice(reader.rows_at_once())))

    def conclude(self, parts: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The schema of the parts together; None if columns have got other kinds and all are to be converted
        again. Raises DataError for all problems."""
        columns, problems = [column.fresh() for column in self.columns], copy(self.problems)
        problems.found, skipped, layout = list(problems.found), 0, []
        for part in parts:
            numbers = [column.add(own) for column, own in zip(columns, part["columns"], strict=True)]
            layout.append({str(at): own.tolist() for at, own in enumerate(numbers) if own is not None})
            skipped += part["skipped"]
            for at, number, what in part["problems"]:
                problems.add(self.readers[at], number, what)
            problems.count += part["count"] - len(part["problems"])
        self.passes += 1
        changed = [not asked.kind and column.revised() for asked, column in zip(self.asked, columns, strict=True)]
        if any(changed) and self.passes < MOST_PASSES:
            self.columns = [new or column.fresh() for new, column in zip(changed, columns, strict=True)]
            return None
        for reader in self.readers:
            for number, what in reader.problems:
                problems.add(reader, number, what)
        self.problems.found, self.problems.count = problems.found, problems.count
        problems.check()
        if not columns[0].rows - skipped:
            raise DataError("no samples in the file", self.readers[0].path, 1 + self.readers[0].is_named, "line")
        notes = [note for reader in self.readers for note in reader.notes]
        if skipped:
            notes.append(f"{counted(skipped, 'row')} without a target left out")
        described = [column.to_json() for column in columns]
        return {"width": len(columns), "columns": described, "numbers": layout, "notes": notes}


class _Writer:
    """Writes the rows of a part of the table."""

    def __init__(self, work: _Conversion, file: IO[bytes]):
        self.work, self.file, self.skipped = work, file, 0
        self.columns, self.problems = [column.fresh() for column in work.columns], Problems()

    def add(self, reader: Reader, block: Block, places: Sequence[int]) -> None:
        values = np.empty((len(block.numbers), len(places)))
        for at, (column, place) in enumerate(zip(self.columns, places, strict=True)):
            column.decimal = reader.decimal
            values[:, at], wrong = column.values(block.cells(place), self.work.missing)
            for row, cell, what in wrong:
                self.problems.add(reader, int(block.numbers[row]), f"{cell} in column {column.name!r} {what}")
                values[row, at] = 0
            if column.is_target and not self.work.skips:
                for row in np.flatnonzero(np.isnan(values[:, at])).tolist():
                    self.problems.add(reader, int(block.numbers[row]), f"{NO_TARGET} in column {column.name!r}")
        if self.work.skips:
            is_absent = np.isnan(values[:, [column.is_target for column in self.columns]]).any(axis=1)
            self.skipped += int(is_absent.sum())
            values = values[~is_absent]
        self.file.write(values.data)

    def to_json(self) -> dict[str, Any]:
        paths = [reader.path for reader in self.work.readers]
        problems = [(paths.index(path), number, what) for path, number, _, what in self.problems.found]
        columns = [column.to_json() for column in self.columns]
        return {"columns": columns, "skipped": self.skipped, "problems": problems, "count": self.problems.count}


def _end(share: Share, part: int, writer: _Writer | None) -> None:
    if writer is not None:
        share.end(part, writer.to_json())
