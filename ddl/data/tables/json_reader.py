"""JSONL files, one object a line, as blocks of cells. Objects within are further columns: "a.b".

formats/labelled_text.py reads the JSONL files of texts and their classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.tables.columns import Cells
from ddl.data.tables.records import Block, Reader
from ddl.data.tables.text import open_text
from ddl.errors import DataError

NAMED_BY = 1000  # objects whose keys are the columns


@dataclass
class JsonReader(Reader):
    """A JSONL file. A key that an object lacks is a missing cell."""

    encoding: str = ""
    later: dict[str, int] = field(default_factory=dict)

    def blocks(self) -> Iterator[Block]:
        known = dict.fromkeys(self.names)
        records = _objects(self.path, self.encoding, self.problems)
        while part := list(islice(records, self.rows_at_once())):
            for number, record in part:
                for name in record.keys() - known.keys():
                    self.later.setdefault(name, number)
            numbers = [number for number, _ in part]
            columns = [self._cells([record.get(name) for _, record in part], name, numbers) for name in known]
            yield Block(columns, numbers)
        for name, number in self.later.items():
            self.notes.append(f"{self.path.name}: key {name!r} first occurs in line {number}: left out")

    def _cells(self, values: list[Any], name: str, numbers: list[int]) -> Cells:
        kinds = set(map(type, values))
        if kinds == {int} and all(abs(value) < 2**53 for value in values):
            return np.array(values, np.int64)
        if kinds <= {int, float}:
            return np.array(values, np.float64)
        if list in kinds and self.names.index(name) not in self.refused:
            wrong = [number for number, value in zip(numbers, values, strict=True) if isinstance(value, list)]
            self.problems += [(number, f"a list in column {name!r}") for number in wrong]
        return [value if type(value) is str else _text(value) for value in values]


def _text(value: Any) -> str:
    if value is None or isinstance(value, list):
        return ""
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def _objects(path: Path, encoding: str, problems: list[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_text(path, encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
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
    for _, record in islice(_objects(path, encoding, problems), NAMED_BY):
        names.update(dict.fromkeys(record))
        lists.update(dict.fromkeys(name for name, value in record.items() if isinstance(value, list)))
    if not names:
        number, what = problems[0] if problems else (1, "no samples in the file")
        raise DataError(what, path, number, "line")
    columns = list(names)
    refused = {columns.index(name): "lists" for name in lists}
    return JsonReader(path, columns, refused=refused, encoding=encoding)
