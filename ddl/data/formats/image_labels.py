"""A CSV file that gives the label of each image of a folder: one column of file names, one of labels.

image_files.py looks for it beside the images."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl.data.formats.image_source import SHOWN, Labels
from ddl.errors import DataError
from ddl.wording import listed

LABEL_FILES = ("labels.csv", "labels.tsv")
FILE_COLUMNS = ("file", "filename", "file_name", "image", "image_id", "path", "id", "name")
LABEL_COLUMNS = ("label", "labels", "class", "target", "y", "category", "class_name")


@dataclass(frozen=True)
class FileLabels:
    """by_file: name of a file as written -> (its label, the line). kind: Request.target_kind."""

    path: Path
    by_file: Mapping[str, tuple[str, int]]
    kind: str = "auto"

    @classmethod
    def read(cls, path: Path, kind: str = "auto") -> FileLabels:
        """Raises DataError naming all lines that cannot be used."""
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}", path) from error
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        lines = csv.reader(text.splitlines(), delimiter=delimiter)
        rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines if any(map(str.strip, row))]
        if not rows:
            raise DataError("the file is empty", path, 0)
        file, label, has_header = _columns([row for _, row in rows[:2]], path)
        by_file: dict[str, tuple[str, int]] = {}
        problems = []
        for line, row in rows[has_header:]:
            if len(row) <= max(file, label) or not row[file] or not row[label]:
                problems.append(f"line {line} has no {'label' if len(row) > file and row[file] else 'file'}")
                continue
            name = os.path.normpath(row[file].replace("\\", "/"))
            if by_file.setdefault(name, (row[label], line))[0] != row[label]:
                problems.append(f"line {line} gives {name} another label than line {by_file[name][1]}")
        if problems:
            raise DataError(listed(_few(problems), "and"), path)
        return cls(path, by_file, kind)

    def of(self, names: Sequence[str], prefix: str = "") -> tuple[np.ndarray, Labels | None]:
        """(numbers of those of ``names`` that have a label, their labels). prefix: the folder that they are below.

        Files are matched by their path below the folder of all parts or below their own, else by their name alone,
        with or without its ending. Raises DataError if a line names no image and there is only one part."""
        numbers, texts, used = [], [], set()
        for number, name in enumerate(names):
            base = os.path.basename(name)
            stem = os.path.splitext(base)[0]
            key = next((key for key in (prefix + name, name, base, stem) if key in self.by_file), None)
            if key is not None:
                used.add(key)
                numbers.append(number)
                texts.append(self.by_file[key][0])
        absent = [f"line {line}: no image {name}" for name, (_, line) in self.by_file.items() if name not in used]
        if absent and not prefix:
            raise DataError("; ".join(_few(absent)), self.path)
        return np.array(numbers, np.int64), self._labels(texts) if texts else None

    def _labels(self, texts: Sequence[str]) -> Labels:
        values = [_number(text) for text in texts]
        numbers = [value for value in values if value is not None]
        if self.kind == "values" and len(numbers) < len(values):
            raise DataError(f"the label {texts[values.index(None)]!r} is no number, as values are", self.path)
        are_whole = all(value == math.floor(value) for value in numbers)
        if self.kind == "classes" or len(numbers) < len(values) or (self.kind != "values" and are_whole):
            return Labels.of_texts(texts)
        return Labels(np.array(numbers, np.float32)[:, None])


def _columns(rows: Sequence[Sequence[str]], path: Path) -> tuple[int, int, bool]:
    """(column of files, column of labels, whether the first row names them), from the first two rows."""
    first = rows[0]
    lowered = [cell.lower() for cell in first]
    file = next((lowered.index(name) for name in FILE_COLUMNS if name in lowered), None)
    label = next((lowered.index(name) for name in LABEL_COLUMNS if name in lowered and name != first[file or 0]), None)
    if len(first) == 2:
        file = file if file is not None else 1 - label if label is not None else 0
        is_named = len(rows) > 1 and "." in rows[1][file] and "." not in first[file]
        return file, 1 - file, is_named or label is not None
    if file is None or label is None:
        found = listed(map(repr, first[:SHOWN]), "and")
        raise DataError(f"the columns file and label are needed; the first line has {found}", path)
    return file, label, True


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _few(problems: Sequence[str]) -> list[str]:
    more = [f"{len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return [*problems[:SHOWN], *more]
