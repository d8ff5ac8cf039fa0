"""How the columns of a table become inputs: numbers, categories one-hot or embedded, the parts of dates.

Learned from the training part alone, and applied to every other file. source.py reads the rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ddl.data.tables.cells import is_integer

MOST_EMBEDDED = 10_000  # categories of a column; rarer ones share a vector
WORDS = 4  # a column whose texts have so many words on average is free text
LEAST_ROWS = 20  # fewer distinct numbers prove no identifier
IDENTIFIER = re.compile(r"(^|[\W_])(id|uuid|guid|key|nr|no|number)$|nummer$", re.IGNORECASE)
EPOCH = np.datetime64("1970-01-01")


@dataclass(frozen=True)
class Encoding:
    """kind: "number", "category", "date", or why the column is left out: "text", "identifier", "empty".

    middle: the medians, which missing cells become. has_missing: one more value says where a cell was missing.
    categories: each has a value that is 1 for it, and all are 0 for other categories; or, if the column
    ``is_embedded``, each has a number from 1, and 0 is any other. order: of the digits of dates."""

    kind: str
    middle: tuple[float, ...] = ()
    has_missing: bool = False
    categories: tuple[str, ...] = ()
    is_embedded: bool = False
    order: str = "ymd"

    @classmethod
    def learn(
        cls,
        values: np.ndarray,
        column: Mapping[str, Any],
        most: int,
        *,
        embeds: bool = False,
        forced: bool = False,
    ) -> Encoding:
        """From the values of the training part. column: from the schema. most: categories that are one-hot. embeds:
        the model takes embedded ones, too. forced: the user says that it is an input."""
        kind, known = column["kind"], values[~np.isnan(values)]
        has_missing = len(known) < len(values)
        if kind in ("text", "drop"):
            return cls(kind)
        if not len(known):
            return cls("empty")
        if kind == "number" and not forced and _identifies(values, column["name"]):
            return cls("identifier")
        if kind == "number":
            return cls(kind, (float(np.median(known)),), has_missing)
        if kind == "date":
            return cls(kind, tuple(np.median(date_parts(known), axis=0).tolist()), has_missing, order=column["order"])
        codes, counts = np.unique(known.astype(np.int64), return_counts=True)
        texts = [column["texts"][code] for code in codes]
        if len(codes) > max(most, len(known) / 2) and not forced:
            return cls("identifier" if len(codes) == len(known) and not any(map(_has_words, texts)) else "text")
        if len(codes) > most and not forced and np.mean([len(text.split()) for text in texts]) >= WORDS:
            return cls("text")
        is_embedded = embeds and len(codes) > most
        ranked = sorted(zip((-counts).tolist(), texts, strict=True))[: MOST_EMBEDDED if is_embedded else most]
        if is_embedded:  # nothing can be learned about one that occurs once
            ranked = [(count, text) for count, text in ranked if count < -1] or ranked
        return cls(kind, (), has_missing, tuple(sorted(text for _, text in ranked)), is_embedded)

    @property
    def width(self) -> int:
        """How many values of x a cell becomes, its number if it is embedded not counted."""
        return len(self.middle) + self.has_missing + (0 if self.is_embedded else len(self.categories))

    @property
    def is_used(self) -> bool:
        """Whether the column is an input at all."""
        return bool(self.width) or self.is_embedded

    def encode(self, values: np.ndarray, numbers: np.ndarray | None, out: np.ndarray) -> np.ndarray | None:
        """Write the inputs into ``out``, (rows, width), which is 0; returns the numbers of embedded categories.

        numbers: for each code of the file the category's number here from 1, 0 for others."""
        missing = np.isnan(values)
        if self.has_missing:
            out[:, -1] = missing
        if self.kind in ("number", "date"):
            parts = values[:, None] if self.kind == "number" else date_parts(np.where(missing, 0, values))
            out[:, : len(self.middle)] = np.where(missing[:, None], self.middle, parts)
        if self.kind != "category":
            return None
        assert numbers is not None
        own = numbers[np.where(missing, len(numbers) - 1, values).astype(np.int64)]
        if self.is_embedded:
            return own
        rows = np.flatnonzero(own)
        out[rows, own[rows] - 1] = 1
        return None

    def numbers(self, texts: Sequence[str]) -> np.ndarray | None:
        """For each code of a file, whose ``texts`` they number, the category's number from 1; at the end a 0."""
        if self.kind != "category":
            return None
        places = {text: place for place, text in enumerate(self.categories, 1)}
        alike = {_respelled(text): place for text, place in reversed(places.items())}
        return np.array([*(places.get(text) or alike.get(_respelled(text), 0) for text in texts), 0])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Encoding:
        given = dict(values)
        return cls(given.pop("kind"), tuple(given.pop("middle")), given.pop("has_missing"),
                   tuple(given.pop("categories")), **given)  # fmt: skip


def _identifies(values: np.ndarray, name: str) -> bool:
    """Whether these are whole numbers, all distinct, in a column that is called as identifiers are."""
    if len(values) < LEAST_ROWS or not IDENTIFIER.search(name):
        return False
    return bool((values == np.floor(values)).all()) and len(np.unique(values)) == len(values)


def _respelled(text: str) -> str:
    """The spelling that programs differ in: Python writes True, JSON true; pandas 8001.0 in a column that has gaps."""
    if text in ("True", "TRUE", "False", "FALSE"):
        return text.lower()
    whole, _, zeros = text.partition(".")
    return whole if zeros and not zeros.strip("0") and is_integer(whole) else text


def _has_words(text: str) -> bool:
    return len(text.split()) > 1


def date_parts(days: np.ndarray) -> np.ndarray:
    """(rows, 5): days since 1970, year, month, day and weekday (Monday is 0)."""
    whole = np.floor(days).astype(np.int64)
    dates = EPOCH + whole
    months = dates.astype("datetime64[M]")
    years = months.astype("datetime64[Y]")
    day = (dates - months).astype(np.int64) + 1
    month = (months - years).astype(np.int64) + 1
    return np.stack([days, years.astype(np.int64) + 1970, month, day, (whole + 3) % 7], axis=1)


def described(names: Sequence[str], columns: Sequence[Encoding]) -> list[str]:
    """What becomes of the columns that are not plain numbers, for the banner."""

    def of(kind: str, embedded: bool = False) -> str:
        found = zip(names, columns, strict=True)
        return ", ".join(name for name, column in found if column.kind == kind and column.is_embedded == embedded)

    orders = {"mdy": " (month before day)", "dmy": " (day before month)"}
    dates = [(name, column) for name, column in zip(names, columns, strict=True) if column.kind == "date"]
    missing = ", ".join(name for name, column in zip(names, columns, strict=True) if column.has_missing)
    lines = {
        "columns of categories, one-hot": of("category"),
        "columns of categories, embedded": of("category", embedded=True),
        "columns of dates": ", ".join(name + orders.get(column.order, "") for name, column in dates),
        "columns with missing cells, marked by an extra value": missing,
        'free text, left out (data.types makes it a "category")': of("text"),
        "left out, since every row has another one": of("identifier"),
        "left out, since all cells are missing": of("empty"),
    }
    return [f"{what}: {listed}" for what, listed in lines.items() if listed]
