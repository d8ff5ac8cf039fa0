"""CSV files: one sample per line, in columns, one or more of them the target.

encoding.py turns cells into numbers, tables.py joins several files, labelled_text.py reads texts with a label. A quoted
cell may contain the delimiter, but not a line break."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import generator
from ddl.data.formats.csv_head import (
    DECIMAL_COMMA,
    canonical,
    decoded,
    is_integer,
    is_number,
    read_head,
    split_cells,
    width_problem,
)
from ddl.data.formats.encoding import Encoding, described, is_date
from ddl.data.formats.text_lines import LineIndex, blank_note
from ddl.data.held import Held
from ddl.data.source import Field, Source
from ddl.errors import DataError
from ddl.wording import instead, listed

MOST_CLASSES = 1000
PARSED_AT_ONCE = 4096  # lines
MOST_SHOWN = 5  # cells that an error names
LEARNED_FROM = 50_000  # lines of the training part


class Delimited(Source):
    """A CSV file; only held rows are parsed and kept.

    targets: columns by name or number (-1 is the last, and what None means), or [] for none. features: the columns of
    x, in this order; None: all others. header: whether the first line names the columns; None: it does when no cell of
    it is a number. delimiter, decimal: None finds them; see csv_head.py.
    target_kind: "classes", "values", "whole" (classes if every number is whole), or "auto": texts are classes, and so
    are whole numbers of which there are few.
    shape: what the features of a sample are reshaped to. like: what the training part's source ``learned``; its columns
    take the place of ``features`` and ``targets`` (but [] asks for no targets)."""

    def __init__(
        self,
        path: Path,
        *,
        targets: Sequence[str | int] | None = None,
        features: Sequence[str | int] | None = None,
        header: bool | None = None,
        delimiter: str | None = None,
        decimal: str | None = None,
        target_kind: str = "auto",
        shape: Sequence[int] | None = None,
        dtype: np.dtype | str = "float32",
        like: Mapping[str, Any] | None = None,
    ):
        if target_kind not in ("auto", "classes", "values", "whole"):
            raise DataError(f"targets are 'classes', 'values' or 'auto', not {target_kind!r}", path)
        self.path = path
        self._dtype = self._x_dtype = np.dtype(dtype)
        by_name = any(isinstance(t, str) and not is_integer(t) for t in [*(targets or ()), *(features or ())])
        head = read_head(path, True if by_name and header is None else header, delimiter, decimal)
        self._head = head
        self.has_header, self.columns, self._delimiter = head.has_header, head.columns, head.delimiter
        self._has_decimal_comma = head.decimal == ","
        if like is not None:
            self._features, self._targets = self._matched(like, is_labelled=targets != [])
        else:
            last = self.columns[-1] if self.has_header and targets is None else -1
            self._targets = [self._column(target) for target in ([last] if targets is None else targets)]
            others = [at for at in range(len(self.columns)) if at not in self._targets]
            measured = [at for at in others if at not in head.row_numbers] or others
            self._features = measured if features is None else [self._column(feature) for feature in features]
        if not self._features:
            if len(self.columns) == 1 and targets != []:
                known = "none of , ; | and tab divides its first lines: set data.options.delimiter"
                raise DataError(f"a single column, with the target: {known}", path, 1, "line")
            raise DataError("no column is left for x", path, 1, "line")
        self._wanted_shape = None if shape is None else tuple(shape)
        self._distinct: set[str] = set()
        self._ordinary = b'0123456789+-.eE \t"' + self._delimiter.encode() + b"," * self._has_decimal_comma
        self.is_plain: bool | None = None  # whether x holds numbers alone, as far as lines were checked
        self._lines = LineIndex(path, int(self.has_header), self._check)
        self._read_notes = (str(head), *head.repeated(), *self._left_out(head.row_numbers), *blank_note(self._lines))
        self.notes = self._read_notes
        # How cells become numbers: None until that is learned, and [] where all of them are numbers.
        self.encoding: list[Encoding] | None = None if like is None and not self.is_plain else []
        if like is not None:
            encoding = like.get("encoding", [])
            self.encoding = None if encoding is None else list(map(Encoding.from_json, encoding))
        self._learns = like is None and not self.is_plain
        self.number(self._classes(target_kind))

    def _left_out(self, row_numbers: Sequence[int]) -> list[str]:
        names = [repr(self.columns[at]) for at in row_numbers if at not in (*self._features, *self._targets)]
        return [f"column {', '.join(names)} only numbers the rows: left out (data.options.features)"] if names else []

    def _text(self, line: bytes, number: int) -> str:
        return decoded(line, self.path, number)

    def _cells(self, line: str, number: int) -> list[str]:
        return split_cells(line, self._delimiter, self.path, number)

    def _column(self, target: str | int) -> int:
        if isinstance(target, str) and target in self.columns and self.has_header:
            if self.columns.count(target) > 1:
                message = f"{self.columns.count(target)} columns are called {target!r}: name one by its number, from 0"
                raise DataError(message, self.path, 1, "line")
            return self.columns.index(target)
        if is_integer(target) and -len(self.columns) <= int(target) < len(self.columns):
            return int(target) % len(self.columns)
        hint = instead(str(target), self.columns, "there are")
        raise DataError(f"no column {target!r}; {hint}", self.path, 1, "line")

    def _matched(self, like: Mapping[str, Any], is_labelled: bool) -> tuple[list[int], list[int]]:
        """(features, targets) of this file: by name if both files name their columns, else by position. If a name
        occurs twice, names cannot identify columns: both files must have the same names in the same order.

        A file without targets that has as many columns as there are features holds just these."""
        columns, features = like["columns"], list(like["features"])
        targets = list(like["targets"]) if is_labelled else []
        is_named = self.has_header and not isinstance(columns, int)
        twice = sorted(name for own in (self.columns, columns) if is_named for name in set(own) if own.count(name) > 1)
        if twice and self.columns not in (columns, [columns[at] for at in features]):
            raise DataError(
                f"several columns are called {twice[0]!r}, so they cannot be matched with those of the training part, "
                f"{listed(columns, 'and')}: rename them, or bring the columns in the same order",
                self.path,
                1,
                "line",
            )
        if is_named and not twice:
            missing = [columns[at] for at in (*features, *targets) if columns[at] not in self.columns]
            if missing:
                names, own = listed(map(repr, missing)), listed(self.columns, "and")
                raise DataError(
                    f"no column {names}, which the training part has: there are {own}", self.path, 1, "line"
                )
            places = {name: at for at, name in enumerate(self.columns)}
            return [places[columns[at]] for at in features], [places[columns[at]] for at in targets]
        count = columns if isinstance(columns, int) else len(columns)
        if len(self.columns) == count:
            return features, targets
        if targets or len(self.columns) != len(features):
            needed = f"{count} of the training part" + ("" if targets else f" or its {len(features)} features")
            raise DataError(f"{len(self.columns)} columns instead of the {needed}", self.path, 1, "line")
        return list(range(len(features))), []

    def _check(self, number: int, line: bytes) -> None:
        delimiter = self._delimiter.encode()
        plain = b'"' not in line
        width = line.count(delimiter) + 1 if plain else len(self._cells(self._text(line, number), number))
        if width != len(self.columns):
            raise DataError(width_problem(line, width, self._head), self.path, number, "line")
        target = ""
        if len(self._targets) == 1 and len(self._distinct) <= MOST_CLASSES:
            target = self._target_text(line, number)
            self._distinct.add(target)
        if self.is_plain is not False:
            self.is_plain = self._has_numbers_alone(line, number, delimiter, target)

    def _has_numbers_alone(self, line: bytes, number: int, delimiter: bytes, target: str) -> bool:
        """Whether no feature of a line is empty, has a letter or, in the first line, is a date. False as well where a
        column that is neither has letters."""
        if self.is_plain is None and any(map(is_date, self._cells(self._text(line, number), number))):
            return False
        letters = line.translate(None, self._ordinary)
        if letters and target:
            letters = letters.replace(target.encode().translate(None, self._ordinary), b"", 1)
        return not letters and not (delimiter * 2 in line or line.startswith(delimiter))

    def _target_text(self, line: bytes, number: int) -> str:
        text = self._target_cell(line, number)
        return text.replace(",", ".") if self._has_decimal_comma and DECIMAL_COMMA.fullmatch(text) else text

    def _target_cell(self, line: bytes, number: int) -> str:
        place = self._targets[0]
        if b'"' in line:
            return self._cells(self._text(line, number), number)[place]
        delimiter, last = self._delimiter.encode(), place == len(self.columns) - 1
        cell = line.rsplit(delimiter, 1)[-1] if last else line.split(delimiter, place + 1)[place]
        return self._text(cell, number).strip()

    def _classes(self, kind: str) -> tuple[str, ...]:
        """The classes of the target by number; empty for values."""
        found = self._distinct
        if len(self._targets) != 1 or kind == "values":
            return ()
        if len(found) > MOST_CLASSES:
            if kind == "classes":
                raise DataError(f"the target has over {MOST_CLASSES} classes", self.path)
            return ()
        names = {canonical(text) for text in found}
        if all(is_integer(name) for name in names):
            # Under "auto" 1.0 is a value, and so are many different whole numbers.
            few = max(20.0, math.sqrt(len(self._lines)))
            is_few = all(is_integer(text) for text in found) and len(names) <= few
            return tuple(sorted(names, key=int)) if kind != "auto" or is_few else ()
        if kind != "classes" and all(is_number(text) or not text for text in found):
            return ()
        if kind != "classes" and sum(is_number(text) for text in found) > len(found) / 2:
            return ()  # a column of numbers with an error in it, which parsing reports
        if "" in found:
            raise DataError("some samples have no target", self.path)
        return tuple(sorted(names))

    def learned(self) -> dict[str, Any]:
        """The roles of the columns, and how classes are numbered, as JSON values."""
        return {
            "kind": "columns",
            "columns": self.columns if self.has_header else len(self.columns),
            "features": self._features,
            "targets": self._targets,
            "names": list(self.names),
            "encoding": None if self.encoding is None else [column.to_json() for column in self.encoding],
        }

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Apply the class numbering recorded in ``learned``."""
        names, features = tuple(learned["names"]), len(learned["features"])
        if len(self._features) != features:
            raise DataError(f"{len(self._features)} features, the training part has {features}", self.path)
        # The kind is the training part's: few different numbers in a short file do not make them classes.
        unknown = sorted({canonical(text) for text in self._distinct} - {canonical(name) for name in names})
        if names and self._targets and unknown:
            raise DataError(f"classes {unknown[:5]} do not occur in the training part", self.path)
        if learned.get("encoding") is not None:
            self.encode_by([Encoding.from_json(column) for column in learned["encoding"]])
        self.number(names)

    def fit(self, indices: np.ndarray) -> None:
        """Learn from these samples how cells become numbers, where they are none yet."""
        if self._learns:
            self.encode_by(list(map(Encoding.learn, self.training_cells(indices))))

    def training_cells(self, indices: np.ndarray) -> list[list[str]]:
        """The cells of each feature in these samples, or in some of them if there are many."""
        rows = np.unique(indices)
        if len(rows) > LEARNED_FROM:  # drawn, since evenly spaced rows could all be alike
            rows = np.sort(generator(0, "encoding").permutation(rows)[:LEARNED_FROM])
        return self._cells_of(list(self._lines.read(rows)), rows)

    def encode_by(self, encoding: list[Encoding] | None) -> None:
        self.encoding = encoding
        width = sum(column.width for column in encoding) if encoding else len(self._features)
        self._shape = (width,) if self._wanted_shape is None else self._wanted_shape
        if encoding is not None and math.prod(self._shape) != width:
            raise DataError(f"{width} features cannot be reshaped to {self._shape}", self.path)
        self.notes = (*self._read_notes, *described([self.columns[at] for at in self._features], encoding or []))
        self._kept = (Held([]), self._parse(np.zeros(0, np.int64)))

    def number(self, names: Sequence[str]) -> None:
        self.names, self._code = tuple(names), {canonical(name): number for number, name in enumerate(names)}
        self.encode_by(self.encoding)

    @property
    def fields(self) -> Mapping[str, Field]:
        fields = {"x": Field(self._shape, self._x_dtype)}
        if self.names:
            fields["y"] = Field((), np.dtype(np.int64), len(self.names))
        elif self._targets:
            fields["y"] = Field((len(self._targets),), self._dtype)
        return fields

    def __len__(self) -> int:
        return len(self._lines)

    def exact(self) -> Delimited:
        other = copy(self)
        other._x_dtype = np.dtype(np.float64)
        other.number(self.names)  # nothing is held
        return other

    def targets(self) -> np.ndarray | None:
        """Read from the file each time; None if they are classes, which are numbered already."""
        if self.names or not self._targets:
            return None
        every = np.arange(len(self))
        pieces = np.array_split(every, max(1, len(every) // PARSED_AT_ONCE))
        return np.concatenate([self._numbers(list(self._lines.read(rows)), rows, self._targets) for rows in pieces])

    def content(self) -> Sequence[Path | np.ndarray]:
        return [self.path]

    def hold(self, ranges: Sequence[range]) -> None:
        if self.encoding is None:
            self.fit(np.arange(len(self)))
        (old, had), held = self._kept, Held(ranges)
        if held.ranges == old.ranges:
            return
        numbers = held.numbers()
        known = np.isin(numbers, old.numbers(), assume_unique=True)
        fresh = self._parse(numbers[~known])
        places = old.places(numbers[known])
        kept = {}
        for name, values in fresh.items():
            both = kept[name] = np.empty((len(numbers), *values.shape[1:]), values.dtype)
            both[known], both[~known] = had[name][places], values
        self._kept = (held, kept)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        held, kept = self._kept
        places = held.places(indices)
        return {name: values[places] for name, values in kept.items()}

    def labels(self) -> np.ndarray:
        if not self.names:
            raise DataError("the target is values, not classes", self.path)
        every = np.arange(len(self))
        lines = zip(every.tolist(), self._lines.read(every), strict=True)
        texts = (self._target_text(line, self._lines.line_number(row)) for row, line in lines)
        return np.fromiter((self._code[canonical(text)] for text in texts), np.int64, len(self))

    def _parse(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        kept = {name: np.empty((len(rows), *f.shape), f.dtype) for name, f in self.fields.items()}
        lines = self._lines.read(rows)
        for start in range(0, len(rows), PARSED_AT_ONCE):
            numbers = rows[start : start + PARSED_AT_ONCE]
            part = [next(lines) for _ in numbers]
            place = slice(start, start + len(part))
            kept["x"][place] = self._encoded(part, numbers).reshape(len(part), *self._shape)
            if self.names:
                texts = [
                    self._target_text(line, self._lines.line_number(int(row)))
                    for line, row in zip(part, numbers, strict=True)
                ]
                kept["y"][place] = [self._code[canonical(text)] for text in texts]
            elif self._targets:
                kept["y"][place] = self._numbers(part, numbers, self._targets)
        return kept

    def _encoded(self, lines: list[bytes], rows: np.ndarray) -> np.ndarray:
        """(lines, width) float64: the features as numbers."""
        if not self.encoding:
            return self._numbers(lines, rows, self._features)
        parts, mistakes = [], []
        for at, column, cells in zip(self._features, self.encoding, self._cells_of(lines, rows), strict=True):
            parts.append(column.encode(cells))
            what = "date" if column.kind == "date" else "number"
            for row in np.flatnonzero(~np.isfinite(parts[-1]).all(axis=1)):
                problem = f"{cells[row]!r} in column {self.columns[at]!r} is no {what}"
                mistakes.append((self._lines.line_number(int(rows[row])), problem))
        if mistakes:
            raise self._error(mistakes)
        return np.concatenate(parts, axis=1)

    def _error(self, mistakes: list[tuple[int, str]]) -> DataError:
        """One line about cells that cannot be read. mistakes: (number of the line, problem)."""
        mistakes = sorted(mistakes)
        shown = [f"line {number}: {problem}" for number, problem in mistakes[1:MOST_SHOWN]]
        more = [f"and {len(mistakes) - MOST_SHOWN} more"] if len(mistakes) > MOST_SHOWN else []
        return DataError("; ".join([mistakes[0][1], *shown, *more]), self.path, mistakes[0][0], "line")

    def _cells_of(self, lines: list[bytes], rows: np.ndarray) -> list[list[str]]:
        """The cells of each feature, with decimal points."""
        numbers = [self._lines.line_number(int(row)) for row in rows]
        split = [self._cells(self._text(line, number), number) for line, number in zip(lines, numbers, strict=True)]
        if self._has_decimal_comma:
            split = [[c.replace(",", ".") if DECIMAL_COMMA.fullmatch(c) else c for c in cells] for cells in split]
        return [[cells[at] for cells in split] for at in self._features]

    def _numbers(self, lines: list[bytes], rows: np.ndarray, columns: list[int]) -> np.ndarray:
        """(lines, columns) float64. Raises DataError naming line and column of a cell that is not a finite number."""
        texts = [self._text(line, self._lines.line_number(int(row))) for line, row in zip(lines, rows, strict=True)]
        if self._has_decimal_comma:
            texts = [text.replace(",", ".") for text in texts]
        try:
            values = np.loadtxt(
                texts, np.float64, comments=None, delimiter=self._delimiter, usecols=columns, ndmin=2, quotechar='"'
            )
        except ValueError:
            values = None
        if values is None or len(values) != len(lines) or not np.isfinite(values).all():
            raise self._error(self._mistakes(texts, rows, columns))
        return values

    def _mistakes(self, lines: list[str], rows: np.ndarray, columns: list[int]) -> list[tuple[int, str]]:
        found = []
        for line, row in zip(lines, rows.tolist(), strict=True):
            number = self._lines.line_number(row)
            cells = self._cells(line, number)
            for column in columns:
                cell = cells[column]
                if not is_number(cell) or not math.isfinite(float(cell)):
                    what = "is no number" if not is_number(cell) else "is not finite"
                    found.append((number, f"{cell!r} in column {self.columns[column]!r} {what}"))
        return found or [(self._lines.line_number(int(rows[0])), "cannot be parsed")]
