"""Cells of a table as numbers: numbers as people write them, and dates in the usual forms.

columns.py decides which of them a column holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from functools import lru_cache

# In lower case; data.missing adds others.
MISSING = frozenset(
    (
        "",
        "na",
        "n/a",
        "n.a.",
        "#n/a",
        "nan",
        "null",
        "none",
        "nil",
        "<na>",
        "nat",
        "missing",
        "unknown",
        "k.a.",
        "?",
        "-",
        "--",
    )
)
EPOCH = datetime(1970, 1, 1)
ORDERS = ("ymd", "dmy", "mdy")  # of a date's digits

DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_SPACES = "\u00a0\u202f '\u2019"
_DRESS = re.compile(r"(?s)^([+-]?)\s*(?:[$€£¥₹]|CHF|EUR|USD|GBP)?\s*(.*?)\s*(?:[$€£¥₹%]|CHF|EUR|USD|GBP)?$")
_GROUPED = {
    ".": re.compile(rf"[+-]?\d{{1,3}}([,{_SPACES}]\d{{3}})+(\.\d+)?"),
    ",": re.compile(rf"[+-]?\d{{1,3}}([.{_SPACES}]\d{{3}})+(,\d+)?"),
}
_GROUPS = {".": str.maketrans("", "", "," + _SPACES), ",": str.maketrans(",", ".", "." + _SPACES)}
_DIGITS = re.compile(r"(\d{1,4})([./-])(\d{1,2})\2(\d{1,4})(?:[ T]+(.+))?")
_DAY_FIRST = re.compile(r"(\d{1,2})[ .-]+([A-Za-z]{3,9})\.?,?[ -]+(\d{4})(?:[ T]+(.+))?")
_MONTH_FIRST = re.compile(r"([A-Za-z]{3,9})\.? (\d{1,2})(?:st|nd|rd|th)?,? (\d{4})(?:[ T]+(.+))?")
_MONTHS = {
    name: number
    for number, name in enumerate(
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1
    )
}


def is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


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
    text = text.strip()
    if is_integer(text):
        return str(int(text))
    if is_number(text) and float(text).is_integer():
        return str(int(float(text)))
    return text


@lru_cache(maxsize=2**14)
def number(cell: str, decimal: str = ".") -> float | None:
    """The number that a cell holds, None if it holds none: also 1,234.50 or 1'234.50, $ 12, 7 % (which is 7)."""
    text = cell.strip()
    if decimal == "," and DECIMAL_COMMA.fullmatch(text):
        return float(text.replace(",", "."))
    if is_number(text) and not (decimal == "," and _GROUPED[","].fullmatch(text)):
        return float(text)
    sign, bare = _DRESS.fullmatch(text).groups()  # type: ignore[union-attr]
    if _GROUPED[decimal].fullmatch(bare):
        bare = bare.translate(_GROUPS[decimal])
    elif decimal == "," and DECIMAL_COMMA.fullmatch(bare):
        bare = bare.replace(",", ".")
    return float(sign + bare) if bare[:1].isascii() and is_number(sign + bare) else None


@lru_cache(maxsize=2**14)
def date(cell: str, order: str = "ymd") -> float | None:
    """Days since 1970 of a date, with or without a time; None if the cell holds none.

    order: of the parts of dates in digits that do not begin with the year."""
    text = cell.strip()
    if text[-1:] in "zZ":
        text = text[:-1]
    if match := _DIGITS.fullmatch(text):
        first, _, second, third, time = match.groups()
        if len(first) == 4:
            return _days(first, second, third, time)
        day, month = (second, first) if order == "mdy" else (first, second)
        return None if len(third) in (1, 3) or len(first) > 2 else _days(_century(third), month, day, time)
    for pattern, places in ((_DAY_FIRST, (3, 2, 1)), (_MONTH_FIRST, (3, 1, 2))):
        if match := pattern.fullmatch(text):
            year, month, day = (match[place] for place in places)
            return _days(year, str(_MONTHS.get(month[:3].lower(), 0)), day, match[4])
    return _iso(text)


def _century(year: str) -> str:
    return year if len(year) == 4 else f"{1900 + int(year) if int(year) > 68 else 2000 + int(year)}"


def _days(year: str, month: str, day: str, time: str | None) -> float | None:
    return _iso(f"{int(year):04}-{int(month):02}-{int(day):02}{f'T{time}' if time else ''}")


def _iso(text: str) -> float | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    if found.tzinfo is not None:
        found = found.astimezone(timezone.utc).replace(tzinfo=None)
    return (found - EPOCH).total_seconds() / 86400


def date_order(cells: list[str]) -> str | None:
    """How the dates among these cells are written; None if less than half of the cells are dates.

    12/11/2020 is read as the month first, unless some cell can only begin with the day, or parts are set apart by
    points."""
    fits: Callable[[str], int] = lambda order: sum(date(cell, order) is not None for cell in cells)  # noqa: E731
    counts = {order: fits(order) for order in ORDERS[1:]}
    best = "dmy" if counts["dmy"] > counts["mdy"] else "mdy"
    if 2 * counts[best] <= len(cells):
        return None
    matches = [match for cell in cells if (match := _DIGITS.fullmatch(cell.strip())) and len(match[1]) < 3]
    if not matches:
        return "ymd"
    return "dmy" if counts["dmy"] == counts["mdy"] and all(match[2] == "." for match in matches) else best
