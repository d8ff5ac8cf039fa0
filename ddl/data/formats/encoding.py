"""How the cells of a table's columns become numbers: categories one-hot, dates their parts, missing cells the median.

Learned from the training part alone, and applied to every other file. delimited.py reads lines and columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))  # in lower case
MOST_CATEGORIES = 20  # of a column; rarer ones count as "other", in which all are 0
EPOCH = datetime(1970, 1, 1)


def is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _date(cell: str) -> list[float] | None:
    """Days since 1970, year, month, day and weekday of a date as ISO 8601 writes it."""
    try:
        day = datetime.fromisoformat(cell).replace(tzinfo=None)
    except ValueError:
        return None
    days = (day - EPOCH).total_seconds() / 86400
    return [days, float(day.year), float(day.month), float(day.day), float(day.weekday())]


def is_date(cell: str) -> bool:
    return _date(cell) is not None


@dataclass(frozen=True)
class Encoding:
    """kind: "number", "category", "date", or "text": a different one in almost every row, which is left out.

    middle: the medians, which missing cells become. has_missing: one more value says where a cell was missing.
    categories: each has a value that is 1 for it; all are 0 for other categories."""

    kind: str
    middle: tuple[float, ...] = ()
    has_missing: bool = False
    categories: tuple[str, ...] = ()

    @classmethod
    def learn(cls, cells: Sequence[str]) -> Encoding:
        """From the cells of the training part."""
        known = [cell for cell in cells if not is_missing(cell)]
        has_missing = len(known) < len(cells)
        for kind, read in (("number", lambda cell: None if (x := _number(cell)) is None else [x]), ("date", _date)):
            values = [value for cell in known if (value := read(cell)) is not None]
            # A few errors in a column of numbers make it no column of texts: reading the first of them reports it.
            if len(values) > len(known) / 2 or not known:
                middle = np.median(values, axis=0).tolist() if values else [0.0]
                return cls(kind, tuple(middle), has_missing)
        counts = Counter(known)
        if len(counts) > max(MOST_CATEGORIES, len(known) / 2):
            return cls("text")
        frequent = sorted(counts, key=lambda name: (-counts[name], name))[:MOST_CATEGORIES]
        return cls("category", (), has_missing, tuple(sorted(frequent)))

    @property
    def width(self) -> int:
        """How many values a cell becomes."""
        return len(self.categories) + len(self.middle) + self.has_missing

    def encode(self, cells: Sequence[str]) -> np.ndarray:
        """(cells, width) float64; NaN where a cell is none of this kind, which the caller reports."""
        out = np.zeros((len(cells), self.width))
        places = {name: place for place, name in enumerate(self.categories)}
        for row, cell in enumerate(cells):
            if is_missing(cell):
                out[row, : len(self.middle)] = self.middle
                if self.has_missing:
                    out[row, -1] = 1
            elif self.kind == "category":
                if cell in places:
                    out[row, places[cell]] = 1
            elif self.kind != "text":
                value = _number(cell) if self.kind == "number" else _date(cell)
                out[row, : len(self.middle)] = np.nan if value is None else value
        return out

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Encoding:
        return cls(values["kind"], tuple(values["middle"]), values["has_missing"], tuple(values["categories"]))


def described(names: Sequence[str], columns: Sequence[Encoding]) -> list[str]:
    """What becomes of the columns that are not plain numbers, for the banner. columns: none if all are."""
    names = names[: len(columns)]

    def of(kind: str) -> str:
        return ", ".join(name for name, column in zip(names, columns, strict=True) if column.kind == kind)

    missing = ", ".join(name for name, column in zip(names, columns, strict=True) if column.has_missing)
    lines = {
        "columns of categories, one-hot": of("category"),
        "columns of dates": of("date"),
        "columns with missing cells, marked by an extra value": missing,
        "left out, since almost every row has another text": of("text"),
    }
    return [f"{what}: {listed}" for what, listed in lines.items() if listed]
