"""The identifier of each sample of an input file: the cells of one of its columns, as ``ddl.predict --id NAME`` asks.

Without one, a source names its samples itself: by file name, or by row."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data import Source
from ddl.data.source import Wrapper
from ddl.errors import ConfigError, DataError
from ddl.wording import instead, listed

DELIMITERS = (",", ";", "\t", "|")


class Named(Wrapper):
    """A source whose samples have other identifiers: values (n,) under a heading."""

    def __init__(self, source: Source, heading: str, values: np.ndarray):
        super().__init__(source)
        self._identifiers = (heading, values)

    def identifiers(self) -> tuple[str, np.ndarray]:
        return self._identifiers


def named_by(source: Source, path: Path, column: str) -> Source:
    """``source``, the samples of the file ``path``, named by this column of it. Raises ConfigError, DataError."""
    suffix = next((s for s in reversed(path.suffixes) if s.lower() != ".gz"), "").lower()
    read = _READERS.get(suffix)
    if read is None:
        raise ConfigError(f"--id {column}: {path.name} has no columns; {listed(_READERS)} files have")
    try:
        values = read(path, column)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read for --id {column}: {error}", path) from error
    if len(values) != len(source):
        raise DataError(f"column {column!r} has {len(values)} cells for {len(source)} samples", path)
    return Named(source, column, np.asarray(values))


def _open(path: Path) -> Any:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _of_csv(path: Path, column: str) -> list[str]:
    known: list[str] = []
    for delimiter in DELIMITERS:
        with _open(path) as file:
            rows = (row for row in csv.reader(file, delimiter=delimiter) if any(cell.strip() for cell in row))
            columns = [cell.strip() for cell in next(rows, [])]
            if column in columns:
                at = columns.index(column)
                return [row[at] if at < len(row) else "" for row in rows]
        known = max(known, columns, key=len)
    raise ConfigError(f"--id {column}: {path.name} has no such column; {instead(column, known, 'it has')}")


def _of_jsonl(path: Path, column: str) -> list[Any]:
    with _open(path) as file:
        records = [json.loads(line) for line in file if line.strip()]
    if missing := [number for number, record in enumerate(records, 1) if column not in record]:
        raise ConfigError(f"--id {column}: record {missing[0]} of {path.name} has no such field")
    return [record[column] for record in records]


def _of_npz(path: Path, column: str) -> np.ndarray:
    with np.load(path) as arrays:
        if column not in arrays:
            raise ConfigError(f"--id {column}: {path.name} has no such array; {instead(column, arrays, 'it has')}")
        return np.asarray(arrays[column])


def _of_arrow(path: Path, column: str) -> list[Any]:
    try:
        import pyarrow.feather
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet and Arrow files need pyarrow (extra: arrow)") from error
    read = pyarrow.parquet.read_table if path.suffix.lower() == ".parquet" else pyarrow.feather.read_table
    table = read(path)
    if column not in table.column_names:
        known = instead(column, table.column_names, "it has")
        raise ConfigError(f"--id {column}: {path.name} has no such column; {known}")
    return list(table.column(column).to_pylist())


_READERS: dict[str, Callable[[Path, str], Any]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), _of_csv),
    **dict.fromkeys((".jsonl", ".ndjson"), _of_jsonl),
    ".npz": _of_npz,
    **dict.fromkeys((".parquet", ".arrow", ".feather"), _of_arrow),
}
