"""Sources whose samples are rows of arrays in files, one array per field; and a source of several, one after another.

The other files of this folder find and open the arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.formats.rows import Rows, StreamedRows
from ddl.data.held import Ranges, merged
from ddl.data.source import Field, Source
from ddl.errors import DataError
from ddl.wording import named


@dataclass(frozen=True)
class FileColumn:
    """One field: the rows it is read from, and their conversion. ``convert`` works on (n, ...) as stored."""

    rows: Rows
    field: Field
    convert: Callable[[np.ndarray], np.ndarray]


class FileSource(Source):
    """Fields read from rows of files; only held samples are in memory.

    labels: class numbers (n,) that lie in memory, small as they are; they become the field "y"."""

    def __init__(self, columns: Mapping[str, FileColumn], labels: np.ndarray | None = None, names: Sequence[str] = ()):
        self._columns, self._labels, self.names = dict(columns), labels, tuple(names)
        lengths = {name: column.rows.shape[0] for name, column in columns.items()}
        if labels is not None:
            lengths["y"] = len(labels)
        if len(set(lengths.values())) != 1:
            path = next(iter(columns.values())).rows.path
            raise DataError(f"numbers of samples do not match: {named(lengths)}", path)
        self._length = lengths["x"]
        self.reads_from_start = any(isinstance(column.rows, StreamedRows) for column in columns.values())
        self._fields = {name: column.field for name, column in columns.items()}
        if labels is not None:
            size = int(labels.max()) + 1
            self._fields["y"] = Field((), np.dtype(np.int64), max(size, len(self.names)))

    @property
    def fields(self) -> Mapping[str, Field]:
        return self._fields

    def __len__(self) -> int:
        return self._length

    def hold(self, ranges: Sequence[range]) -> None:
        for column in self._columns.values():
            column.rows.hold(ranges)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {}
        for name, column in self._columns.items():
            value = column.convert(column.rows.take(indices))
            batch[name] = np.ascontiguousarray(value.reshape(len(indices), *column.field.shape), column.field.dtype)
        if self._labels is not None:
            batch["y"] = self._labels[indices].astype(np.int64)
        return batch

    def exact(self) -> Source:
        wide = {
            name: replace(column, field=replace(column.field, dtype=np.dtype(np.float64)))
            for name, column in self._columns.items()
            if column.rows.dtype == np.float64 and column.field.dtype.kind == "f"
        }
        return FileSource({**self._columns, **wide}, self._labels, self.names) if wide else self

    def targets(self) -> np.ndarray | None:
        if self._labels is not None:
            return self._labels
        return whole(self._columns["y"].rows) if "y" in self._columns else None

    def content(self) -> Sequence[Path | np.ndarray]:
        paths: dict[Path, None] = dict.fromkeys(column.rows.path for column in self._columns.values())
        return [*paths, *([] if self._labels is None else [self._labels])]

    def labels(self) -> np.ndarray:
        if self._labels is None:
            return Source.labels(self)
        return self._labels.astype(np.int64)


class Concat(Source):
    """Several sources with the same fields, one after another."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)
        first = self.sources[0].fields
        for source in self.sources[1:]:
            for name in sorted({*first, *source.fields}):
                if (one := _described(first.get(name))) != (other := _described(source.fields.get(name))):
                    raise DataError(f"files differ: {name} is {one} in the first and {other} in another")
        self._edges = np.concatenate([[0], np.cumsum([len(source) for source in self.sources])])
        self._fields = {
            name: Field(
                f.shape,
                np.result_type(*(s.fields[name].dtype for s in self.sources)),
                max(s.fields[name].size or 0 for s in self.sources) or None,
            )
            for name, f in first.items()
        }
        self.names = tuple(self.sources[0].names)
        self.notes = tuple(dict.fromkeys(note for source in self.sources for note in source.notes))
        self.is_sequential = self.sources[0].is_sequential
        self.reads_from_start = any(source.reads_from_start for source in self.sources)

    @property
    def fields(self) -> Mapping[str, Field]:
        return self._fields

    def __len__(self) -> int:
        return int(self._edges[-1])

    def learned(self) -> dict[str, Any]:
        """Make all files use one numbering of classes and symbols."""
        return self.sources[0].learned()

    def exact(self) -> Source:
        return Concat([source.exact() for source in self.sources])

    def recall(self, learned: Mapping[str, Any]) -> None:
        for source in self.sources:
            source.recall(learned)

    def hold(self, ranges: Sequence[range]) -> None:
        held = merged(ranges)
        for source, (low, high) in zip(self.sources, pairwise(self._edges.tolist()), strict=True):
            own = held.within(low, high)
            source.hold(Ranges(own.starts - low, own.stops - low))

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {name: np.empty((len(indices), *f.shape), f.dtype) for name, f in self._fields.items()}
        owner = np.searchsorted(self._edges, indices, side="right") - 1
        for place in np.unique(owner):
            rows = np.flatnonzero(owner == place)
            for name, value in self.sources[place].gather(indices[rows] - self._edges[place]).items():
                batch[name][rows] = value
        return batch

    def targets(self) -> np.ndarray | None:
        stored = [source.targets() for source in self.sources]
        return None if any(part is None for part in stored) else np.concatenate(stored)  # type: ignore[arg-type]

    def content(self) -> Sequence[Path | np.ndarray]:
        return [part for source in self.sources for part in source.content()]

    def labels(self) -> np.ndarray:
        return np.concatenate([source.labels() for source in self.sources])


def _described(field: Field | None) -> str:
    if field is None:
        return "absent"
    kind = {"f": "floating-point numbers", "U": "texts"}.get(field.dtype.kind, "whole numbers")
    return f"{kind} of shape {field.shape}"


def whole(rows: Rows) -> np.ndarray:
    """The whole array in memory; for small arrays such as labels."""
    rows.hold([range(rows.shape[0])])
    values = rows.take(np.arange(rows.shape[0]))
    rows.hold([])
    return values


def same(values: np.ndarray) -> np.ndarray:
    """Rows as they are."""
    return values


def pair(
    x: Rows,
    y: Rows | None,
    dtype: np.dtype,
    *,
    shape: Sequence[int] | None = None,
    size: int | None = None,
    names: Sequence[str] = (),
) -> FileSource:
    """A source of x and targets.

    x: floating values and bytes (images; those without channels get an axis for one) are delivered as ``dtype``,
    other whole numbers as int64 tokens below ``size``. shape: what a sample of x is reshaped to.
    y: whole numbers not below 0, one per sample, are classes; texts are named classes; anything else are values, (n, k)
    at least."""
    if x.dtype.kind == "U":
        raise DataError(f"the samples are of {x.dtype}, not of numbers", x.path)
    is_image = x.dtype == np.uint8 and size is None
    delivered = dtype if is_image or x.dtype.kind == "f" else np.dtype(np.int64)
    sample = x.shape[1:] if shape is None else tuple(shape)
    if np.prod(sample, dtype=int) != np.prod(x.shape[1:], dtype=int):
        raise DataError(f"samples of shape {x.shape[1:]} cannot be reshaped to {sample}", x.path)
    if is_image and len(sample) == 2 and shape is None:
        sample = (*sample, 1)
    columns = {"x": FileColumn(x, Field(sample, delivered, size), same)}
    if y is None:
        return FileSource(columns)
    if len(y.shape) == 1 and y.dtype.kind in "biu":
        values = whole(y)
        low = values.min()
        if low >= 0:
            if x.shape[0] != len(values):
                raise DataError(f"{len(values)} targets for the {x.shape[0]} samples of {x.path}", y.path)
            if names and values.max() >= len(names):
                raise DataError(
                    f"class {values.max()}, but there are {len(names)}", y.path, int(values.argmax()), "sample"
                )
            return FileSource(columns, values, names)
    if x.shape[0] != y.shape[0]:
        raise DataError(f"{y.shape[0]} targets for the {x.shape[0]} samples of {x.path}", y.path)
    # Whole numbers stay as they are until the kind of the target is decided (targets.py).
    kept = {"f": dtype, "U": y.dtype.newbyteorder("=")}.get(y.dtype.kind, np.dtype(np.int64))
    columns["y"] = FileColumn(y, Field(y.shape[1:] or (1,), kept), same)
    return FileSource(columns)
