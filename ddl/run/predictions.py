"""Predictions as a table, and the files that hold it: CSV, JSON lines, Parquet, npz, npy.

meaning.py makes the columns out of a model's outputs."""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from ddl.data.tables.arrow_reader import arrow
from ddl.errors import ConfigError
from ddl.run.whole_file import whole_file
from ddl.wording import instead, listed

AT_ONCE = 4096  # rows that are turned into text at a time


@dataclass(frozen=True)
class ColumnGroup:
    """Columns that belong together, such as the probability of each class: names (k,), values (rows, k)."""

    names: tuple[str, ...]
    values: np.ndarray


Column = np.ndarray  # (rows, ...)


@dataclass(frozen=True)
class Predictions:
    """Columns by name, all with as many rows; a ColumnGroup is several columns with one heading."""

    columns: Mapping[str, Column | ColumnGroup]

    def __len__(self) -> int:
        return len(_values(next(iter(self.columns.values()))))

    @classmethod
    def joined(cls, pieces: Sequence[Mapping[str, Column | ColumnGroup]]) -> Predictions:
        """The rows of all ``pieces``, in their order."""
        found: dict[str, Column | ColumnGroup] = {}
        for name, first in pieces[0].items():
            values = np.concatenate([_values(piece[name]) for piece in pieces])
            found[name] = ColumnGroup(first.names, values) if isinstance(first, ColumnGroup) else values
        return cls(found)

    def largest(self, heading: str, count: int) -> Predictions:
        """The ``count`` rows with the largest values in this column, the largest first; NaN counts as the largest."""
        keys = np.nan_to_num(np.asarray(self.columns[heading]), nan=np.inf)
        rows = np.argsort(-keys, kind="stable")[:count]
        return Predictions(
            {
                name: ColumnGroup(c.names, c.values[rows]) if isinstance(c, ColumnGroup) else c[rows]
                for name, c in self.columns.items()
            }
        )

    def flat(self) -> dict[str, np.ndarray]:
        """Every column by its own name: ``probability_cat``."""
        found: dict[str, np.ndarray] = {}
        for heading, column in self.columns.items():
            if isinstance(column, ColumnGroup):
                for place, name in enumerate(column.names):
                    found[f"{heading}_{name}"] = column.values[:, place]
            else:
                found[heading] = column
        return found

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each row as JSON values; a ColumnGroup is an object by name."""
        for start in range(0, len(self), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            lists = {heading: _plain(_values(column)[part]) for heading, column in self.columns.items()}
            names = {heading: c.names for heading, c in self.columns.items() if isinstance(c, ColumnGroup)}
            for row in zip(*lists.values()):
                yield {
                    heading: dict(zip(names[heading], value)) if heading in names else value
                    for heading, value in zip(lists, row)
                }


def _values(column: Column | ColumnGroup) -> np.ndarray:
    return column.values if isinstance(column, ColumnGroup) else column


def _plain(values: np.ndarray) -> list[Any]:
    """As lists of JSON values: float32 with the digits that it has, and null for what JSON has no number for."""
    if values.dtype.kind != "f":
        found: list[Any] = values.tolist()
        return found
    wide = values if values.dtype == np.float64 else values.astype(str).astype(np.float64)
    cells = wide.astype(object)
    cells[~np.isfinite(wide)] = None
    return list(cells.tolist())


def _to_csv(predictions: Predictions, file: TextIO) -> None:
    columns = predictions.flat()
    out = csv.writer(file, lineterminator="\n")
    out.writerow(columns)
    for start in range(0, len(predictions), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        out.writerows(zip(*(_cells(values[part]) for values in columns.values())))


def _cells(values: np.ndarray) -> list[str]:
    """One text for each row; several values of a row are separated by spaces."""
    texts = values.astype(str)
    if values.ndim == 1:
        return list(texts.tolist())
    return [" ".join(row) for row in texts.reshape(len(texts), -1).tolist()]


def _to_jsonl(predictions: Predictions, file: TextIO) -> None:
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for row in predictions.rows():
        file.write(encode(row) + "\n")


def _to_parquet(predictions: Predictions, file: BinaryIO) -> None:
    pyarrow = arrow()
    import pyarrow.parquet as parquet

    flat = predictions.flat()
    arrays = {name: values if values.ndim == 1 else values.tolist() for name, values in flat.items()}
    parquet.write_table(pyarrow.table(arrays), file)


def _to_npz(predictions: Predictions, file: BinaryIO) -> None:
    arrays: dict[str, np.ndarray] = {}
    for heading, column in predictions.columns.items():
        arrays[heading] = _values(column)
        if isinstance(column, ColumnGroup):
            arrays[f"{heading}_names"] = np.array(column.names)
    with zipfile.ZipFile(file, "w") as archive:  # np.savez takes no array called "file", as images have one
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)


def _to_npy(predictions: Predictions, file: BinaryIO) -> None:
    """The numbers alone: the probabilities of classes, or values."""
    np.save(file, _values(list(predictions.columns.values())[-1]))


FORMATS: Mapping[str, Callable[[Predictions, Any], None]] = {
    "csv": _to_csv,
    "jsonl": _to_jsonl,
    "parquet": _to_parquet,
    "npz": _to_npz,
    "npy": _to_npy,
}
TEXT = ("csv", "jsonl")


def format_of(output: str, asked: str = "", option: str = "") -> str:
    """The format of a file called ``output`` ("": stdout), unless it is ``asked`` for. option: of the command that
    names the file, for messages. Raises ConfigError for an unknown format, and where no file can be written."""
    path = Path(output)
    if output and path.is_dir():
        raise ConfigError(f"{option}{output} is a folder: name a file in it, such as {path / 'predictions.csv'}")
    if output and not path.parent.is_dir():
        raise ConfigError(f"{option}{output}: there is no folder {str(path.parent)!r}")
    format = asked or (path.suffix.removeprefix(".").lower() if output else "csv")
    if format not in FORMATS:
        if asked:
            raise ConfigError(f"--format {asked}: {instead(asked, FORMATS, 'there are')}")
        endings = listed([f".{name}" for name in FORMATS])
        hint = ", unless --format names the format" if option else ""
        raise ConfigError(f"{option}{output}: the name must end with {endings}{hint}")
    if not output and format not in TEXT:
        raise ConfigError(f"--format {format} is not written to stdout: name a file with --output FILE")
    return format


def write(predictions: Predictions, output: str, format: str, option: str = "") -> None:
    """Write to the file ``output``, whole or not at all, or ("") to stdout. Raises ConfigError if that fails."""
    if not output:
        FORMATS[format](predictions, sys.stdout)
        sys.stdout.flush()
        return
    with whole_file(Path(output), option) as file:
        if format in TEXT:
            with io.TextIOWrapper(file, "utf-8", newline="") as text:
                FORMATS[format](predictions, text)
        else:
            FORMATS[format](predictions, file)
