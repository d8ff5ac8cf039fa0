"""What a checkpoint records about the training data, which suffices to read files of new samples.

The sources number words, characters and classes (``learned``, ``recall``); the formats are in formats/."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.formats.corpus import Alphabet, ByteCodes, open_text, open_tokens
from ddl.data.formats.delimited import Delimited
from ddl.data.formats.detect import SUFFIXES, Request, detect, expand, open_files
from ddl.data.formats.files import Concat, pair
from ddl.data.formats.labelled_text import LabelledText, RecordLines, TextList, csv_lines, json_lines, plain_lines
from ddl.data.memory import as_dtype
from ddl.data.source import Field, Source, as_source
from ddl.data.targets import Target
from ddl.errors import DataError
from ddl.reading import take


@dataclass(frozen=True)
class Known:
    """fields: of the training part. learned: what its source has learned: columns, words, characters, classes.
    names: of the classes, if they have names. notes: for the
    banner."""

    fields: Mapping[str, Field]
    learned: Mapping[str, Any]
    names: Sequence[str] = ()
    target: Target | None = None
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, source: Source, names: Sequence[str] = (), target: Target | None = None) -> Known:
        """Describe the training part ``source``."""
        return cls(
            dict(source.fields), as_source(source).learned(), tuple(names), target, tuple(as_source(source).notes)
        )

    def to_json(self) -> dict[str, Any]:
        fields = {  # a user's own source may have counted with NumPy
            name: {
                "shape": [int(length) for length in f.shape],
                "dtype": np.dtype(f.dtype).str,
                "size": None if f.size is None else int(f.size),
            }
            for name, f in self.fields.items()
        }
        return {
            "fields": fields,
            "learned": dict(self.learned),
            "names": [str(name) for name in self.names],
            "notes": list(self.notes),
            "target": None if self.target is None else self.target.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Known:
        """Raises KeyError, TypeError or ValueError where ``values`` are not what ``to_json`` returns."""
        fields = {name: _field(take(values["fields"], name, dict)) for name in take(values, "fields", dict)}
        target = values.get("target")  # checkpoints of earlier versions have none
        target = None if target is None else Target.from_json(target, fields["y"])
        return cls(fields, take(values, "learned", dict), tuple(map(str, take(values, "names", list))), target)

    def columns(self, kind: str) -> tuple[str, ...]:
        """The names of a table's "features" or "targets"; () where the data have no named columns."""
        names, places = self.learned.get("columns"), self.learned.get(kind)
        if not isinstance(names, list) or not isinstance(places, list):
            return ()
        return tuple(str(names[at]) for at in places)

    @property
    def encode(self) -> Callable[[str], np.ndarray] | None:
        """What turns a line of text into x; None if lines of text are no samples."""
        if self.learned.get("kind") != "texts":
            return None
        texts = LabelledText(TextList([], [], ()), length=self.learned["length"], vocabulary=self.learned["vocabulary"])
        texts.recall(self.learned)
        return lambda text: texts.encode(text)[0]

    @property
    def symbols(self) -> Any:
        """Converts text to the model's tokens and back (``encode``, ``decode``); None if the data is not text."""
        unit = self.learned.get("unit")
        return Alphabet(self.learned["known"]) if unit == "characters" else ByteCodes() if unit == "bytes" else None


def _field(values: Mapping[str, Any]) -> Field:
    shape = [take({"shape": length}, "shape", int) for length in take(values, "shape", list)]
    return Field(tuple(shape), np.dtype(take(values, "dtype", str)), take(values, "size", int, type(None)))


def data_lines(known: Mapping[str, Any]) -> list[str]:
    """What was decided when the data were read, for the banner. known: as ``Known.to_json`` returns it."""
    target = known.get("target")
    notes = list(known.get("notes", ()))
    return notes + ([] if target is None else [f"y: {target['reason']}"])


@dataclass(frozen=True)
class Inputs:
    """How files of new samples are read. format, columns, options: the job's, if the files do not determine them;
    columns are those of the targets, or the name of their array.

    is_labelled: targets are read too, and must exist. targets: the file or columns that hold them, if they differ from
    the job's."""

    format: str = "auto"
    columns: str = ""
    targets: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    is_labelled: bool = False
    dtype: np.dtype | str = "float32"

    def open(self, path: str, known: Known) -> Source:
        """The samples of ``path``, read and numbered as the training part was. Raises DataError, ConfigError."""
        kind = known.learned.get("kind")
        if kind == "texts":
            source = self._texts(path, known)
        elif kind == "windows":
            source = self._windows(path, known)
        else:
            source = self._rows(path, known)
        is_measured = "x" in known.fields and known.fields["x"].dtype.kind == "f"
        keep_x = "x" in known.fields and known.fields["x"].dtype == np.float64
        source = as_dtype(source.exact() if keep_x else source, self.dtype, keep_x=keep_x, measured=is_measured)
        self._check(source, known, path)
        return source

    def _texts(self, path: str, known: Known) -> Source:
        paths = expand(path)
        if len(paths) > 1:
            raise DataError(f"{len(paths)} files of texts: join them into one", path)
        format = SUFFIXES.get(paths[0].suffix.lower(), self.format)
        key = self.options.get("text", "text")
        label = (self.targets or self.columns or self.options.get("label", "label")) if self.is_labelled else None
        lines: RecordLines
        if format == "jsonl":
            lines = json_lines(paths[0], key, label)
        elif format == "csv":
            lines = csv_lines(paths[0], key, label, self.options.get("delimiter", ","))
        elif label is not None:
            raise DataError("texts without classes: .jsonl or .csv files have both", path)
        else:
            lines = plain_lines(paths[0])
        source = LabelledText(lines, length=known.learned["length"], vocabulary=known.learned["vocabulary"])
        source.recall(known.learned)
        return source

    def _windows(self, path: str, known: Known) -> Source:
        paths, window, unit = expand(path), known.learned["window"], known.learned["unit"]
        source: Source
        if unit == "tokens":
            dtype, size = known.learned["dtype"], known.learned["size"]
            parts = [open_tokens(one, window, dtype, size) for one in paths]
            source = parts[0] if len(parts) == 1 else Concat(parts)
        else:
            source = open_text(paths, window, unit)
        source.recall(known.learned)
        return source

    def _rows(self, path: str, known: Known) -> Source:
        format = self._format(expand(path)[0])
        if format == "csv" and known.learned.get("kind") == "columns" and not self.targets:
            parts = [self._columns(one, known) for one in expand(path)]
            return parts[0] if len(parts) == 1 else Concat(parts)
        of_format: Any = Delimited if format == "csv" else pair
        taken = set(inspect.signature(of_format).parameters) - {"features"}
        options = {name: value for name, value in self.options.items() if name in taken}
        targets = self.targets or (self.columns if format in ("csv", "npz") else "")
        if not self.is_labelled:
            targets = "none" if format == "csv" else ""
        is_named = known.learned.get("kind") == "columns" and bool(known.names)
        kind = "whole" if is_named else "values"
        opened = open_files(path, format, Request(targets, kind, np.dtype(self.dtype), options))
        if isinstance(opened, Mapping):
            raise DataError(f"holds several parts {sorted(opened)} where one is wanted", path)
        if self.is_labelled and known.learned.get("kind") == "columns":
            opened.recall(known.learned)
        if self.is_labelled and known.target is not None:
            opened = known.target.apply(opened)
        return opened

    def _format(self, path: Path) -> str:
        """The format detected from the file, or else the job's."""
        try:
            found = detect(path)
        except DataError:
            if self.format == "auto":
                raise
            return self.format
        return self.format if self.format != "auto" and found in ("tokens", "text") else found

    def _columns(self, path: Path, known: Known) -> Source:
        """A CSV file, by the columns of the training part."""
        knows, options = known.learned, self.options
        settings: dict[str, Any] = {
            name: options[name] for name in ("header", "delimiter", "decimal") if name in options
        }
        source = Delimited(
            path,
            targets=None if self.is_labelled else [],
            like=knows,
            target_kind="classes" if knows["names"] else "values",
            shape=known.fields["x"].shape,
            dtype=self.dtype,
            **settings,
        )
        source.recall(knows if self.is_labelled else {**knows, "names": []})
        return source

    def _check(self, source: Source, known: Known, path: str) -> None:
        for name in ("x", "y") if self.is_labelled and "y" in known.fields else ("x",):
            wanted, found = known.fields[name], source.fields.get(name)
            if found is None:
                raise DataError("holds no targets, which evaluation needs", path)
            if found.shape != wanted.shape:
                what = "samples" if name == "x" else "targets"
                raise DataError(f"holds {what} of shape {found.shape}, the run was trained on {wanted.shape}", path)
            if (found.dtype.kind == "f") != (wanted.dtype.kind == "f"):
                raise DataError(f"holds {name} of {found.dtype}, the run was trained on {wanted.dtype}", path)
            if wanted.size is not None and (found.size or 0) > wanted.size:
                raise DataError(f"{name} goes up to {(found.size or 0) - 1}, in training to {wanted.size - 1}", path)
