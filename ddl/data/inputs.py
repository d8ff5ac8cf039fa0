"""What a checkpoint records about the training data, which suffices to read files of new samples.

The sources number words, characters and classes (``learned``, ``recall``); the formats are in formats/."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.formats.corpus import Alphabet, ByteCodes, open_text, open_tokens
from ddl.data.formats.detect import SUFFIXES, TABLES, Request, detect, expand, open_files
from ddl.data.formats.files import Concat, pair
from ddl.data.formats.image_files import Tree, loose, walk
from ddl.data.formats.image_source import Images, LooseFiles
from ddl.data.formats.labelled_text import LabelledText, TextList, Texts
from ddl.data.formats.pixels import Form, ImageSettings, shaped
from ddl.data.formats.tabular import reader_of, texts_of
from ddl.data.formats.webdataset import open_tars
from ddl.data.memory import as_dtype
from ddl.data.source import Field, Source, as_source
from ddl.data.tables.roles import Settings
from ddl.data.targets import Target
from ddl.errors import DataError
from ddl.reading import take
from ddl.wording import listed

HOW = ("header", "delimiter", "decimal")  # options of CSV files that say how they are written


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
    def numeric_columns(self) -> frozenset[str]:
        """The columns of a table's features that hold numbers."""
        features = zip(self.columns("features"), self.learned.get("encoding") or ())
        return frozenset(name for name, encoding in features if encoding["kind"] == "number")

    @property
    def encode(self) -> Callable[[str], np.ndarray] | None:
        """What turns a line of text into x; None if lines of text are no samples."""
        if self.learned.get("kind") != "texts":
            return None
        texts = LabelledText(TextList([], [], ()), length=self.learned["length"], vocabulary=self.learned["vocabulary"])
        texts.recall(self.learned)
        return lambda text: texts.encode(text)[0]

    @property
    def images(self) -> Mapping[str, Any]:
        """What files of images recall of the training part; empty if they are no samples. Where these were arrays of
        images, files are brought to their shape."""
        if self.learned.get("kind") == "images":
            return self.learned
        shape = self.fields["x"].shape if "x" in self.fields else ()
        if self.learned or len(shape) != 3 or shape[-1] not in (1, 3):
            return {}
        return {"kind": "images", **Form(*shape).to_json(), "names": list(self.names)}

    @property
    def shape_image(self) -> Callable[[Any], np.ndarray] | None:
        """What turns an image of Pillow into x; None if images are no samples."""
        if not self.images:
            return None
        form = Form.from_json(self.images)
        return lambda image: shaped(image, form)

    @property
    def symbols(self) -> Any:
        """Converts text to the model's tokens and back (``encode``, ``decode``); None if the data is not text."""
        unit = self.learned.get("unit")
        return Alphabet(self.learned["known"]) if unit == "characters" else ByteCodes() if unit == "bytes" else None


def _alone(opened: Source | Mapping[str, Source], path: str) -> Source:
    if isinstance(opened, Mapping):
        raise DataError(f"holds several parts, {listed(sorted(opened), 'and')}, where one is wanted", path)
    return opened


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

    images: how images are read; their form is that of the training part.

    is_labelled: targets are read too, and must exist. targets: the file or columns that hold them, if they differ from
    the job's. table: the job's settings of tables."""

    format: str = "auto"
    columns: str = ""
    targets: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    is_labelled: bool = False
    dtype: np.dtype | str = "float32"
    table: Settings = field(default_factory=Settings)
    images: ImageSettings = field(default_factory=ImageSettings)

    def open(self, path: str, known: Known) -> Source:
        """The samples of ``path``, read and numbered as the training part was. Raises DataError, ConfigError."""
        kind = known.learned.get("kind")
        if (learned := known.images) and (images := self._images(path, learned)) is not None:
            source = images
        elif kind == "texts":
            source = self._texts(path, known)
        elif kind == "windows":
            source = self._windows(path, known)
        else:
            source = self._rows(path, known)
        is_measured = "x" in known.fields and known.fields["x"].dtype.kind == "f"
        keep = [name for name, f in known.fields.items() if f.dtype == np.float64]
        source = as_dtype(source.exact() if keep else source, self.dtype, keep=keep, measured=is_measured)
        self._check(source, known, path)
        return source

    def _images(self, path: str, learned: Mapping[str, Any]) -> Source | None:
        """Images of a file, a folder or tar files, in the form of the training part; None for other data."""
        folder = Path(path).expanduser()
        tree = walk(folder) if folder.is_dir() else Tree()
        paths = [] if tree.images else expand(path)
        format = self._format(paths[0]) if paths else "images"
        if format not in ("images", "webdataset"):
            return None
        if self.is_labelled:
            request = Request(self.targets or self.columns, images=self.images)
            source = _alone(open_files(path, format, request), path)
        elif format == "webdataset":
            source = open_tars(paths, self.images, is_labelled=False)
        else:
            source = Images(LooseFiles(folder, tree.images) if tree.images else loose(paths), None, self.images)
        source.recall(learned)
        return source

    def _texts(self, path: str, known: Known) -> Source:
        paths = expand(path)
        format = SUFFIXES.get(paths[0].suffix.lower(), self.format)
        if self.is_labelled and format not in TABLES:
            raise DataError("texts without classes: .jsonl or .csv files have both", path)
        open_reader = reader_of(
            format if format in TABLES else "text", self.table.encoding, self.options.get("delimiter")
        )
        readers, targets = [open_reader(one) for one in paths], self.targets or self.columns
        return self._of_texts(texts_of(readers, self.options, targets, is_labelled=self.is_labelled), known)

    def _of_texts(self, lines: Texts, known: Known) -> Source:
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
        is_table, knows_columns = format in TABLES, known.learned.get("kind") == "columns"
        request = Request(dtype=np.dtype(self.dtype), table=replace(self.table, columns=(), drop=(), types={}))
        if is_table and knows_columns and not self.targets:
            options = {name: value for name, value in self.options.items() if name in HOW and format == "csv"}
            targets = "" if self.is_labelled else "none"
            opened = open_files(
                path,
                format,
                replace(
                    request, targets=targets, options={**options, "shape": known.fields["x"].shape}, like=known.learned
                ),
            )
        else:
            taken = {*HOW, "target_kind", "shape"} if is_table else set(inspect.signature(pair).parameters)
            options = {name: value for name, value in self.options.items() if name in taken}
            targets = self.targets or (self.columns if is_table or format == "npz" else "")
            if not self.is_labelled:
                targets = "none" if is_table else ""
            kind = "whole" if knows_columns and known.names else "values"
            opened = open_files(path, format, replace(request, targets=targets, target_kind=kind, options=options))
        opened = _alone(opened, path)
        if self.is_labelled and knows_columns and self.targets:
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
