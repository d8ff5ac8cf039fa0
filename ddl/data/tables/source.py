"""A table as a data source: one sample a row, in columns, none, one or more of them the target.

convert.py makes the rows, roles.py decides which columns are used, encoding.py turns them into inputs."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import generator
from ddl.data.held import Held, runs
from ddl.data.source import Field, Source
from ddl.data.tables.cells import canonical, is_integer
from ddl.data.tables.columns import MOST_CLASSES, TableColumn
from ddl.data.tables.convert import Problems, convert
from ddl.data.tables.encoding import Encoding, described
from ddl.data.tables.records import Reader
from ddl.data.tables.roles import Roles, Settings, matched, roles
from ddl.data.tables.store import RowStore
from ddl.errors import DataError

LEARNED_FROM = 200_000  # rows of the training part
SAMPLED_BYTES = 32 * 2**20  # of them in memory at a time
TARGET_KINDS = ("auto", "classes", "values", "whole")


@dataclass(frozen=True)
class Asked:
    """What is asked of a table. targets: columns by name or number, None for the last, [] for none. features: columns
    of x in this order, None for all others.
    target_kind: "classes", "values", "whole" (classes if every number is whole), or "auto": texts are classes, and so
    are whole numbers of which there are few. shape: what the inputs of a sample are reshaped to. like: what the
    training part's source ``learned``; its columns take the place of ``features`` and ``targets`` (but [] asks for no
    targets)."""

    targets: Sequence[str | int] | None = None
    features: Sequence[str | int] | None = None
    target_kind: str = "auto"
    shape: Sequence[int] | None = None
    dtype: np.dtype | str = "float32"
    like: Mapping[str, Any] | None = None
    settings: Settings = field(default_factory=Settings)


def open_table(paths: Sequence[Path], open_reader: Callable[[Path], Reader], asked: Asked) -> TableSource:
    """The rows of all ``paths``, one after another, as one table. Raises DataError for all problems at once."""
    if asked.target_kind not in TARGET_KINDS:
        raise DataError(f"targets are 'classes', 'values' or 'auto', not {asked.target_kind!r}", paths[0])
    readers = [open_reader(path) for path in paths]
    problems = Problems()
    if asked.like is None:
        first = readers[0]
        use = roles(first, asked.settings, asked.targets, asked.features)
        like: Mapping[str, Any] = {
            "columns": first.names if first.is_named else len(first.names),
            "features": use.features,
            "targets": use.targets,
        }
        columns = [_column(first, at, asked) for at in use.features]
        columns += [_target(first.names[at], asked.target_kind) for at in use.targets]
        everything, needed, is_labelled = [first, *readers[1:]], use.features, True
        places = [[*use.features, *use.targets]]
        others = readers[1:]
    else:
        like, is_labelled = asked.like, asked.targets != []
        names = like["columns"] if not isinstance(like["columns"], int) else list(map(str, range(like["columns"])))
        known = _encodings(like)
        needed = [at for at, one in zip(like["features"], known, strict=True) if one.is_used]
        columns = [
            TableColumn(names[at], one.kind, one.order)
            for at, one in zip(like["features"], known, strict=True)
            if one.is_used
        ]
        if is_labelled:
            allowed = frozenset(map(canonical, like["names"])) or None
            kind = "number" if allowed is None else "category"
            columns += [TableColumn(names[at], kind, is_target=True, allowed=allowed) for at in like["targets"]]
        use = Roles(list(like["features"]), list(like["targets"]) if is_labelled else [])
        everything, places, others = readers, [], readers
    for reader in others:
        features, targets = matched(reader, like, needed, is_labelled, problems)
        kept = [at for at, place in zip(features, like["features"], strict=True) if place in needed]
        places.append([*kept, *targets])
    if problems.count:
        # Check the columns that there are, so that the error names all that is wrong.
        there = [at for at in range(len(columns)) if all(own[at] is not None for own in places)]
        if there:
            convert(everything, [[own[at] for at in there] for own in places], [columns[at] for at in there],
                    key={"checks": True}, missing=asked.settings.missing, problems=problems)  # fmt: skip
        problems.check()
    store = convert(
        everything,
        places,
        columns,
        key={"types": dict(asked.settings.types), "encoding": asked.settings.encoding},
        missing=asked.settings.missing,
        skips=asked.settings.skips_missing_targets,
    )
    table = TableSource([reader.path for reader in everything], store, use, like, asked)
    if asked.like is not None:
        table.recall({**asked.like, "names": asked.like["names"] if is_labelled else []})
    return table


def _column(reader: Reader, at: int, asked: Asked) -> TableColumn:
    kind, _, order = str(asked.settings.types.get(reader.names[at], reader.kinds.get(at, ""))).partition(":")
    return TableColumn(reader.names[at], kind, order or ("dmy" if kind == "date" else "ymd"))


def _target(name: str, kind: str) -> TableColumn:
    return TableColumn(name, {"classes": "category", "values": "number"}.get(kind, ""), is_target=True)


def _encodings(like: Mapping[str, Any]) -> list[Encoding]:
    """Those of the features; before they are learned, of their kinds alone. Of a checkpoint from before there were any,
    plain numbers."""
    stored = like.get("encoding") or like.get("kinds") or []
    return [Encoding.from_json(one) for one in stored] or [Encoding("number", (0.0,))] * len(like["features"])


class TableSource(Source):
    """Rows of a converted table; only held ones are in memory."""

    def __init__(self, paths: Sequence[Path], store: RowStore, use: Roles, like: Mapping[str, Any], asked: Asked):
        self.paths, self._store, self._use, self._asked, self._like = list(paths), store, use, asked, like
        self._dtype = np.dtype(asked.dtype)
        self._columns: list[Mapping[str, Any]] = list(store.schema["columns"])
        self.notes: Sequence[str] = (*store.schema["notes"], *use.left_out)
        self._described: list[str] = []
        self._width = len(self._columns) - len(use.targets)  # columns of inputs in the store
        self.encoding: list[Encoding] | None = None
        self._number(_classes(self._columns[self._width :], asked.target_kind, store.rows, self.paths[0]))

    @property
    def _names(self) -> list[str]:
        columns = self._like["columns"]
        return list(map(str, range(columns))) if isinstance(columns, int) else list(columns)

    def learned(self) -> dict[str, Any]:
        """The roles of the columns, how they are encoded, and how classes are numbered, as JSON values."""
        return {
            "kind": "columns",
            "columns": self._like["columns"],
            "features": list(self._like["features"]),
            "targets": list(self._like["targets"]),
            "names": list(self.names),
            **self._kinds(),
        }

    def _kinds(self) -> dict[str, Any]:
        if self.encoding is not None:
            return {"encoding": [column.to_json() for column in self.encoding]}
        kinds = [Encoding(one["kind"], (0.0,), order=one["order"]) for one in self._columns[: self._width]]
        return {"encoding": None, "kinds": [one.to_json() for one in kinds]}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Encode by what ``learned`` records, and apply its numbering of classes."""
        if learned.get("encoding") is not None or self._asked.like is not None:
            self._encode_by(_encodings(learned))
        self._number(learned["names"])

    def fit(self, indices: np.ndarray) -> None:
        """Learn from these samples how columns become inputs."""
        if self._asked.like is not None:
            return
        rows = np.unique(indices)
        if len(rows) > LEARNED_FROM:  # drawn, since evenly spaced rows could all be alike
            rows = np.sort(generator(0, "encoding").permutation(rows)[:LEARNED_FROM])
        held, types, asked = Held(runs(rows)), self._asked.settings.types, self._asked.settings
        encoding, at_once = [], max(SAMPLED_BYTES // (8 * len(rows)), 1)
        for first in range(0, self._width, at_once):
            places = list(range(first, min(first + at_once, self._width)))
            sampled = self._rows_of(held, places)
            for values, column in zip(sampled.T, self._columns[first:], strict=False):
                forced = column["name"] in types or len(self._asked.features or asked.columns) > 0
                encoding.append(
                    Encoding.learn(values, column, asked.max_categories, embeds=asked.embeds, forced=forced)
                )
        self._encode_by(encoding)

    def _encode_by(self, encoding: list[Encoding]) -> None:
        self.encoding = encoding
        # Of a table of new samples only the columns that are used were converted.
        stored = iter(range(self._width))
        is_whole = self._width == len(encoding)
        self._places = [next(stored) if is_whole or column.is_used else None for column in encoding]
        self._numbers = [
            None if place is None else column.numbers(self._columns[place]["texts"])
            for place, column in zip(self._places, encoding, strict=True)
        ]
        others = [note for note in self.notes if note not in self._described]
        self._described = described([self._names[at] for at in self._like["features"]], encoding)
        if not any(column.is_used for column in encoding):
            raise DataError(f"no column is left for x: {'; '.join(self._described)}", self.paths[0])
        self.notes = (*others, *self._described)
        self._number(self.names)

    @property
    def _inputs(self) -> int:
        return len(self._like["features"]) if self.encoding is None else sum(one.width for one in self.encoding)

    def _number(self, names: Sequence[str]) -> None:
        """Apply this numbering of classes; nothing is held afterwards."""
        self.names = tuple(names)
        self._kept: tuple[Held, dict[str, np.ndarray]] = (Held([]), {})

    @property
    def fields(self) -> Mapping[str, Field]:
        width, embedded = self._inputs, [one for one in self.encoding or () if one.is_embedded]
        shape = (width,) if self._asked.shape is None else tuple(self._asked.shape)
        if self.encoding is not None and math.prod(shape) != width:
            raise DataError(f"{width} features cannot be reshaped to {shape}", self.paths[0])
        fields = {"x": Field(shape, self._dtype)}
        if embedded:
            count = sum(1 + len(one.categories) for one in embedded)
            fields["categories"] = Field((len(embedded),), np.dtype(np.int64), count)
        if self.names:
            fields["y"] = Field((), np.dtype(np.int64), len(self.names))
        elif self._use.targets:
            fields["y"] = Field((len(self._use.targets),), self._dtype)
        return fields

    def __len__(self) -> int:
        return self._store.rows

    def exact(self) -> TableSource:
        other = copy(self)
        other._dtype = np.dtype(np.float64)
        other._number(self.names)
        return other

    def targets(self) -> np.ndarray | None:
        """None if they are classes, which are numbered already."""
        if self.names or not self._use.targets:
            return None
        return self._rows_of(self._all, list(range(self._width, len(self._columns))))

    def labels(self) -> np.ndarray:
        """In the smallest type, since they are the numbers of all samples."""
        if not self.names:
            raise DataError("the target is values, not classes", self.paths[0])
        found, filled = np.empty(len(self), np.min_scalar_type(len(self.names))), 0
        for rows in self._store.pieces(self._all):
            found[filled : filled + len(rows)] = self._classes_of(rows[:, self._width])
            filled += len(rows)
        return found

    @property
    def _all(self) -> Held:
        return Held([range(len(self))])

    def content(self) -> Sequence[Path | np.ndarray]:
        return self.paths

    def _rows_of(self, held: Held, columns: Sequence[int]) -> np.ndarray:
        """Some columns of these rows."""
        # Separate memory: after it frees so large an array, malloc would keep later ones when they are freed.
        memory = mmap.mmap(-1, max(8 * len(held) * len(columns), 8))
        found, filled = np.frombuffer(memory, count=len(held) * len(columns)).reshape(len(held), len(columns)), 0
        for rows in self._store.pieces(held):
            found[filled : filled + len(rows)] = rows[:, columns]
            filled += len(rows)
        return found

    def hold(self, ranges: Sequence[range]) -> None:
        held = Held(ranges)
        if held.ranges == self._kept[0].ranges and self._kept[1]:
            return
        if self.encoding is None:
            self.fit(np.arange(len(self)))
        self._number(self.names)  # what was held goes before the new rows come
        kept = {name: np.empty((len(held), *f.shape), f.dtype) for name, f in self.fields.items()}
        filled = 0
        for rows in self._store.pieces(held):
            place = slice(filled, filled + len(rows))
            filled += len(rows)
            self._encode(rows, {name: values[place] for name, values in kept.items()})
        self._kept = (held, kept)

    def _encode(self, rows: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        x, codes, width, offset = np.zeros((len(rows), self._inputs)), [], 0, 0
        for column, place, numbers in zip(self.encoding or (), self._places, self._numbers, strict=True):
            if place is None or not column.is_used:
                continue
            own = column.encode(rows[:, place], numbers, x[:, width : width + column.width])
            width += column.width
            if own is not None:
                codes.append(own + offset)
                offset += 1 + len(column.categories)
        out["x"][...] = x.reshape(out["x"].shape)
        if codes:
            out["categories"][...] = np.stack(codes, axis=1)
        if self.names:
            out["y"][...] = self._classes_of(rows[:, self._width])
        elif self._use.targets:
            out["y"][...] = rows[:, self._width :]

    def _classes_of(self, values: np.ndarray) -> np.ndarray:
        """Stored targets as class numbers."""
        place, column = {canonical(name): at for at, name in enumerate(self.names)}, self._columns[self._width]
        if column["kind"] == "category":
            return np.array([place[text] for text in column["texts"]], np.int64)[values.astype(np.int64)]
        distinct, inverse = np.unique(values, return_inverse=True)
        return np.array([place[canonical(repr(value))] for value in distinct.tolist()], np.int64)[inverse]

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        held, kept = self._kept
        places = held.places(indices)
        return {name: values[places] for name, values in kept.items()}


def _classes(targets: Sequence[Mapping[str, Any]], kind: str, rows: int, path: Path) -> tuple[str, ...]:
    """The classes of the target by number; empty for values."""
    if len(targets) != 1 or kind == "values":
        return ()
    (target,) = targets
    if target["kind"] in ("category", "text"):
        texts = target["texts"]
        if target["kind"] == "text" or len(texts) > MOST_CLASSES:
            raise DataError(f"the target has over {MOST_CLASSES} classes", path)
        return tuple(sorted(texts, key=int) if all(map(is_integer, texts)) else sorted(texts))
    distinct = target["distinct"]
    if len(distinct) > MOST_CLASSES or not all(float(value).is_integer() for value in distinct):
        return ()
    # Under "auto" 1.0 is a value, and so are many different whole numbers.
    is_few = target["are_integers"] and len(distinct) <= max(20.0, math.sqrt(rows))
    return tuple(str(int(value)) for value in distinct) if kind != "auto" or is_few else ()
