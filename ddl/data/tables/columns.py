"""The columns of a table while it is converted: which kind of values each holds, and its cells as float64.

encoding.py makes inputs of these values, once it has learned from the training part how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddl.data.tables.cells import MISSING, canonical, date, date_order, is_integer, is_number, number
from ddl.data.tables.records import Cells, Texts
from ddl.errors import ConfigError
from ddl.kernels.table_cells import DECIMAL, OTHER
from ddl.wording import instead

KINDS = ("number", "category", "date", "text", "drop")
MOST_DISTINCT = 100_000  # texts; a column with more is no category
MOST_NAMED = 20  # classes that an error lists
MOST_CLASSES = 1000  # numbers of a target that are remembered

Wrong = tuple[int, str, str]  # row of a cell, the cell as an error shows it, what is wrong with it


@dataclass
class TableColumn:
    """A column of a table. kind: one of KINDS; "" until ``decide``. order: of the digits of dates, see ``date``.

    allowed: the classes that a target may have; None: any.
    texts: of a column of categories, by their numbers. distinct: the different numbers of a target, if they are few;
    are_integers: all of them are written as whole numbers. known: how many cells are not missing."""

    name: str
    kind: str = ""
    order: str = "ymd"
    is_target: bool = False
    decimal: str = "."
    allowed: frozenset[str] | None = None
    texts: dict[str, int] = field(default_factory=dict)
    distinct: set[float] = field(default_factory=set)
    are_integers: bool = True
    known: int = 0
    rows: int = 0
    wrong: int = 0

    def decide(self, cells: Cells) -> None:
        """Choose the kind by the first cells. A few errors in a column of numbers make it no column of texts."""
        if self.kind:
            return
        if isinstance(cells, np.ndarray):
            self.kind = "number"
            return
        known = [cell.strip() for cell in cells if cell.strip().lower() not in MISSING]
        if 2 * sum(number(cell, self.decimal) is not None for cell in known) >= max(len(known), 1) or not known:
            widths = {len(cell) for cell in known}
            is_code = len(widths) == 1 and max(widths) > 1 and all(map(str.isdecimal, known))
            self.kind = "category" if is_code and any(cell[0] == "0" for cell in known) else "number"
        elif order := date_order(known):
            self.kind, self.order = "date", order
        else:
            self.kind = "category"

    def fresh(self) -> TableColumn:
        """The column before its cells are read."""
        return TableColumn(self.name, self.kind, self.order, self.is_target, self.decimal, self.allowed)

    def revised(self) -> TableColumn | None:
        """A column that suits the cells better, where most of them are not of the kind that the first ones were."""
        fresh = self.fresh()
        if self.kind == "date" and self.wrong and self.order == "mdy" and not self.is_target:
            fresh.kind, fresh.order = "date", "dmy"  # a later cell has a day above 12 where months were
            return fresh
        if self.kind in ("number", "date") and 2 * self.wrong > self.known:
            fresh.kind = "category"
            return fresh
        return None

    def values(self, cells: Cells, missing: frozenset[str] = MISSING) -> tuple[np.ndarray, list[Wrong]]:
        """Float64, NaN where a cell is missing or wrong; and the wrong cells."""
        self.rows += len(cells)
        if isinstance(cells, np.ndarray) and self.kind == "category":
            different, codes = np.unique(cells, return_inverse=True)
            texts = ["" if np.isnan(v) else str(int(v)) if v.is_integer() else repr(v) for v in map(float, different)]
            cells = Texts(texts, codes)
        if isinstance(cells, np.ndarray):
            self.are_integers &= cells.dtype.kind == "i"
            values = cells.astype(np.float64, copy=False)
            wrong = [(int(at), repr(float(values[at])), "is not finite") for at in np.flatnonzero(np.isinf(values))]
        elif self.kind in ("category", "text"):
            values, wrong = self._codes(cells.texts(slice(None)), missing)
        else:
            values, wrong = self._parsed(cells, missing)
        self.known += int(np.count_nonzero(~np.isnan(values))) + len(wrong)
        self.wrong += len(wrong)
        if self.is_target and self.kind == "number" and len(self.distinct) <= MOST_CLASSES:
            self.distinct.update(np.unique(values[np.isfinite(values)]).tolist())
        return values, wrong

    def _codes(self, cells: Texts, missing: frozenset[str]) -> tuple[np.ndarray, list[Wrong]]:
        if self.kind == "text":
            return np.zeros(len(cells)), []
        numbers, strange = np.full(len(cells.different), np.nan), {}
        for at, cell in enumerate(cells.different):
            text = canonical(cell) if self.is_target else cell.strip()
            if text.lower() not in missing:
                numbers[at] = self.texts.setdefault(text, len(self.texts))
                if self.allowed is not None and text not in self.allowed:
                    known = ", ".join(sorted(self.allowed)[:MOST_NAMED])
                    strange[at] = f"is none of the training part's classes, {known}"
        if len(self.texts) > MOST_DISTINCT:
            self.kind, self.texts = "text", {}
        return numbers[cells.codes], _wrong(cells, strange)

    def _parsed(self, cells: Texts, missing: frozenset[str]) -> tuple[np.ndarray, list[Wrong]]:
        if self.kind == "number":
            values, written = cells.numbers(self.decimal)
            if missing is not MISSING:
                written[np.isin(values, [float(mark) for mark in missing if is_number(mark)])] = OTHER
        else:
            values, written = Texts.numbers(cells, self.decimal)
        others = np.flatnonzero(written == OTHER)
        rest = cells.texts(others)
        found, strange = np.full(len(rest.different), np.nan), {}
        for at, cell in enumerate(rest.different):
            if cell.strip().lower() in missing:
                continue
            value = number(cell, self.decimal) if self.kind == "number" else date(cell, self.order)
            if value is None or not np.isfinite(value):
                strange[at] = "is not finite" if value is not None else f"is no {self.kind}"
            else:
                found[at] = value
        values[others] = found[rest.codes]
        if self.is_target and self.are_integers:
            texts_are = all(is_integer(cell) or not cell for cell in rest.different)
            self.are_integers = texts_are and not (written == DECIMAL).any()
        return values, [(int(others[at]), cell, what) for at, cell, what in _wrong(rest, strange)]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "order": self.order,
            "texts": list(self.texts),
            "distinct": sorted(self.distinct)[: MOST_CLASSES + 1],
            "are_integers": self.are_integers,
            **{"known": self.known, "rows": self.rows, "wrong": self.wrong},
        }

    def add(self, part: Mapping[str, Any]) -> np.ndarray | None:
        """Add what ``to_json`` says of the rows of another part of the table. Returns the numbers that its texts have
        here; None if they are the same."""
        self.rows, self.known, self.wrong = (
            own + part[name] for own, name in ((self.rows, "rows"), (self.known, "known"), (self.wrong, "wrong"))
        )
        self.distinct.update(part["distinct"])
        self.are_integers &= part["are_integers"]
        numbers = [self.texts.setdefault(text, len(self.texts)) for text in part["texts"]]
        if part["kind"] == "text" or len(self.texts) > MOST_DISTINCT:
            self.kind, self.texts = "text", {}
        return None if numbers == list(range(len(numbers))) or self.kind == "text" else np.array(numbers, np.float64)


def _wrong(cells: Texts, strange: Mapping[int, str]) -> list[Wrong]:
    """The cells whose texts are among the ``strange`` ones."""
    if not strange:
        return []
    rows = np.flatnonzero(np.isin(cells.codes, list(strange))).tolist()
    codes = cells.codes[rows].tolist()
    shown = {code: repr(cells.different[code].strip()) for code in strange}
    return [(row, shown[code], strange[code]) for row, code in zip(rows, codes, strict=True)]


def check_types(types: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises ConfigError for a kind or column of data.types that does not exist; all of them in one line."""
    wrong = []
    for name, kind in types.items():
        word, _, order = str(kind).partition(":")
        if name not in names:
            wrong.append(f"data.types: no column {name!r}; {instead(name, names, 'there are')}")
        if word not in KINDS or (order and (word != "date" or order not in ("dmy", "mdy", "ymd"))):
            known = (*KINDS, "date:dmy", "date:mdy")
            wrong.append(f"data.types: {name} = {kind!r}; {instead(str(kind), known, 'a type is one of')}")
    if wrong:
        raise ConfigError("; ".join(wrong))
