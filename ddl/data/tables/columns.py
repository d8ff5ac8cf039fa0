"""The columns of a table while it is converted: which kind of values each holds, and its cells as float64.

encoding.py makes inputs of these values, once it has learned from the training part how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddl.data.tables.cells import MISSING, canonical, date, date_order, is_integer, number
from ddl.errors import ConfigError
from ddl.wording import instead

KINDS = ("number", "category", "date", "text", "drop")
MOST_DISTINCT = 100_000  # texts; a column with more is no category
MOST_NAMED = 20  # classes that an error lists
MOST_CLASSES = 1000  # numbers of a target that are remembered

Cells = Sequence[str] | np.ndarray  # the cells of one column: texts, whole numbers, or float64 with NaN if missing


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

    def values(self, cells: Cells, missing: frozenset[str] = MISSING) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """(values, problems): float64, NaN where a cell is missing or wrong; (index of a wrong cell, what is wrong)."""
        self.rows += len(cells)
        if self.kind == "category":
            values = self._codes(cells, missing)
            problems = self._unknown(values)
        elif isinstance(cells, np.ndarray):
            self.are_integers &= cells.dtype.kind == "i"
            values = cells.astype(np.float64, copy=False)
            problems = [(int(i), "is not finite") for i in np.flatnonzero(np.isinf(values))]
        else:
            values, problems = self._numbers(cells, missing)
        self.known += int(np.count_nonzero(~np.isnan(values))) + len(problems)
        self.wrong += len(problems)
        if self.is_target and self.kind == "number" and len(self.distinct) <= MOST_CLASSES:
            self.distinct.update(np.unique(values[np.isfinite(values)]).tolist())
        return values, problems

    def _codes(self, cells: Cells, missing: frozenset[str]) -> np.ndarray:
        if isinstance(cells, np.ndarray):
            numbers = map(float, cells.tolist())
            cells = ["" if np.isnan(v) else str(int(v)) if v.is_integer() else repr(v) for v in numbers]
        if len(self.texts) > MOST_DISTINCT:
            return np.zeros(len(cells))
        codes = _Codes(self.texts, missing, self.is_target)
        return np.fromiter(map(codes.__getitem__, cells), np.float64, len(cells))

    def _unknown(self, codes: np.ndarray) -> list[tuple[int, str]]:
        wrong = [] if self.allowed is None else [n for text, n in self.texts.items() if text not in self.allowed]
        known = ", ".join(sorted(self.allowed or ())[:MOST_NAMED])
        return [
            (int(at), f"is none of the training part's classes, {known}")
            for at in np.flatnonzero(np.isin(codes, wrong))
        ]

    def _numbers(self, cells: Sequence[str], missing: frozenset[str]) -> tuple[np.ndarray, list[tuple[int, str]]]:
        if self.kind == "number" and self.decimal == "." and missing is MISSING and "_" not in "".join(cells):
            try:
                values = np.fromiter(map(float, cells), np.float64, len(cells))
            except ValueError:
                pass
            else:
                if np.isfinite(values).all():
                    self._note_integers(cells)
                    return values, []
        self._note_integers(cells)
        values, problems = np.full(len(cells), np.nan), []
        for at, cell in enumerate(cells):
            if cell.strip().lower() in missing:
                continue
            value = number(cell, self.decimal) if self.kind == "number" else date(cell, self.order)
            if value is None or not np.isfinite(value):
                what = "is not finite" if value is not None else f"is no {self.kind}"
                problems.append((at, what))
            else:
                values[at] = value
        return values, problems

    def _note_integers(self, cells: Iterable[str]) -> None:
        if self.is_target and self.are_integers:
            self.are_integers = all(is_integer(cell) or not cell for cell in cells)

    @property
    def has_too_many_texts(self) -> bool:
        return len(self.texts) > MOST_DISTINCT

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": "text" if self.has_too_many_texts else self.kind,
            "order": self.order,
            "texts": [] if self.has_too_many_texts else list(self.texts),
            "distinct": sorted(self.distinct) if len(self.distinct) <= MOST_CLASSES else None,
            "are_integers": self.are_integers,
            "known": self.known,
        }


class _Codes(dict[str, float]):
    """Text of a cell -> its number in ``texts``, NaN if it is missing; unseen texts get the next number."""

    def __init__(self, texts: dict[str, int], missing: frozenset[str], is_target: bool):
        super().__init__(texts)
        self._texts, self._missing, self._is_target = texts, missing, is_target

    def __missing__(self, cell: str) -> float:
        text = canonical(cell) if self._is_target else cell.strip()
        code = np.nan if text.lower() in self._missing else self._texts.setdefault(text, len(self._texts))
        self[cell] = code
        return code


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
