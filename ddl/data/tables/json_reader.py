"""JSONL files, one object a line, as blocks of cells. Objects within are further columns: "a.b".

formats/labelled_text.py reads the JSONL files of texts and their classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.tables.records import Block, Cells, Reader, Texts
from ddl.data.tables.text import open_text
from ddl.errors import DataError
from ddl.wording import counted

NAMED_BY = 1000  # objects whose keys are the columns


@dataclass
class JsonReader(Reader):
    """A JSONL file. A key that an object lacks is a missing cell."""

    encoding: str = ""
    later: dict[str, int] = field(default_factory=dict)

    def blocks(self) -> Iterator[Block]:
        known = dict.fromkeys(self.names)
        usual = {name for place, name in enumerate(self.names) if place not in self.refused}
        records = _objects(self.path, self.encoding, self.problems, self.notes)
        while part := list(islice(records, self.rows_at_once())):
            for number, record in part:
                for name in record.keys() - known.keys():
                    self.later.setdefault(name, number)
                for name in (name for name, value in record.items() if type(value) is list and name in usual):
                    self.problems.append((number, f"a list in column {name!r}"))
            yield Block([number for number, _ in part], partial(self._cells, part))
        for name, number in self.later.items():
            self.notes.append(f"{self.path.name}: key {name!r} first occurs in line {number}: left out")

    def _cells(self, part: list[tuple[int, dict[str, Any]]], place: int) -> Cells:
        values = [record.get(self.names[place]) for _, record in part]
        kinds = set(map(type, values))
        if kinds == {int} and all(abs(value or 0) < 2**53 for value in values):
            return np.array(values, np.int64)
        if kinds <= {int, float}:
            return np.array(values, np.float64)
        return Texts.of([value if type(value) is str else _text(value) for value in values])


def _text(value: Any) -> str:
    if value is None or isinstance(value, list):
        return ""
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def _objects(
    path: Path, encoding: str, problems: list[tuple[int, str]], notes: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    blank = pending = 0
    with open_text(path, encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                pending += 1
                continue
            blank, pending = blank + pending, 0
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == 1 and line.lstrip().startswith("["):
                    raise DataError("a JSON array: write one object a line (JSONL)", path, 1, "line") from error
                problems.append((number, f"not a line of JSON: {error}"))
                continue
            if not isinstance(record, Mapping):
                what = "a JSON array: write one object a line (JSONL)" if number == 1 else "not a JSON object"
                problems.append((number, what))
                continue
            yield number, dict(_flat(record))
    if blank:
        notes.append(f"{path.name}: {counted(blank, 'blank line')} skipped")


def _flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", None if isinstance(value, Mapping) else value


def open_json(path: Path, encoding: str = "") -> JsonReader:
    names: dict[str, None] = {}
    lists: dict[str, None] = {}
    problems: list[tuple[int, str]] = []
    for _, record in islice(_objects(path, encoding, problems, []), NAMED_BY):
        names.update(dict.fromkeys(record))
        lists.update(dict.fromkeys(name for name, value in record.items() if isinstance(value, list)))
    if not names:
        number, what = problems[0] if problems else (1, "no samples in the file")
        raise DataError(what, path, number, "line")
    columns = list(names)
    refused = {columns.index(name): "lists" for name in lists}
    return JsonReader(path, columns, refused=refused, encoding=encoding)


@dataclass
class LineReader(Reader):
    """A text in each line, in the column "text"; blank lines are skipped."""

    encoding: str = ""

    def blocks(self) -> Iterator[Block]:
        with open_text(self.path, self.encoding) as file:
            lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(file, 1) if line.strip())
            while part := list(islice(lines, self.rows_at_once())):
                yield Block([number for number, _ in part], lambda _: Texts.of([line for _, line in part]))


def open_lines(path: Path, encoding: str = "") -> LineReader:
    return LineReader(path, ["text"], is_named=False, encoding=encoding)
