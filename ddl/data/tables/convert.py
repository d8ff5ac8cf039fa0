"""Convert the files of a table, once, into rows of numbers and their schema; all problems of all files are one error.

Which columns are asked for is decided in roles.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ddl.data.tables.cells import MISSING
from ddl.data.tables.columns import Cells, TableColumn
from ddl.data.tables.records import Block, Reader
from ddl.data.tables.store import RowStore, make
from ddl.errors import DataError
from ddl.wording import counted

MOST_SHOWN = 10  # problems that an error names
MOST_KEPT = 10_000
NO_TARGET = "no target"
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
    work = _Conversion(readers, places, columns, marks, skips, problems or Problems())
    asked = [(c.name, c.kind, c.order, c.is_target, sorted(c.allowed or ())) for c in columns]
    how = [(reader.decimal, reader.names) for reader in readers]
    return make([reader.path for reader in readers], {**key, "columns": asked, "how": how, "marks": sorted(marks),
                  "skips": skips}, work.run)  # fmt: skip


@dataclass
class _Conversion:
    readers: Sequence[Reader]
    places: Sequence[Sequence[int]]
    columns: Sequence[TableColumn]
    missing: frozenset[str]
    skips: bool
    problems: Problems

    def run(self, file: IO[bytes]) -> dict[str, Any]:
        columns = [column.fresh() for column in self.columns]
        before, early = self.problems, Problems(list(self.problems.found), self.problems.count)
        for _ in range(MOST_PASSES):
            self.problems = Problems(list(early.found), early.count)
            file.seek(0)
            file.truncate()
            skipped = self._pass(file, columns)
            revised = [
                None if wanted.kind else column.revised() for wanted, column in zip(self.columns, columns, strict=True)
            ]
            if not any(revised):
                break
            columns = [new or old.fresh() for new, old in zip(revised, columns, strict=True)]
        before.found, before.count = self.problems.found, self.problems.count
        for reader in self.readers:
            for number, what in reader.problems:
                before.add(reader, number, what)
        before.check()
        if not columns[0].rows - skipped:
            raise DataError("no samples in the file", self.readers[0].path, 1 + self.readers[0].is_named, "line")
        notes = [note for reader in self.readers for note in reader.notes]
        if skipped:
            notes.append(f"{counted(skipped, 'row')} without a target left out")
        return {"width": len(columns), "columns": [column.to_json() for column in columns], "notes": notes}

    def _pass(self, file: IO[bytes], columns: Sequence[TableColumn]) -> int:
        """Write the rows of all files; returns how many were left out because they have no target."""
        skipped = 0
        for reader, places in zip(self.readers, self.places, strict=True):
            reader.problems, notes = [], list(reader.notes)
            for block in reader.blocks():
                skipped += self._block(file, reader, [block.columns[place] for place in places], columns, block)
            reader.notes = list(dict.fromkeys((*notes, *reader.notes)))
        return skipped

    def _block(
        self, file: IO[bytes], reader: Reader, cells: Sequence[Cells], columns: Sequence[TableColumn], block: Block
    ) -> int:
        values = np.empty((len(block.numbers), len(columns)))
        for at, (column, own) in enumerate(zip(columns, cells, strict=True)):
            column.decimal = reader.decimal
            column.decide(own)
            values[:, at], wrong = column.values(own, self.missing)
            for row, what in wrong:
                cell = own[row].strip() if isinstance(own[row], str) else float(own[row])
                self.problems.add(reader, block.numbers[row], f"{cell!r} in column {column.name!r} {what}")
                values[row, at] = 0
            for row in np.flatnonzero(np.isnan(values[:, at])).tolist() if column.is_target and not self.skips else ():
                self.problems.add(reader, block.numbers[row], f"{NO_TARGET} in column {column.name!r}")
        kept = values if not self.skips else values[~np.isnan(values[:, [c.is_target for c in columns]]).any(axis=1)]
        file.write(np.ascontiguousarray(kept).data)
        return len(values) - len(kept)
