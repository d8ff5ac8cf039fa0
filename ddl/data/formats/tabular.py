"""Open tables, and files of labelled text, in the formats that can hold both.

The tables themselves are in ddl/data/tables, the texts in labelled_text.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ddl.data.formats.labelled_text import LabelledText, ReaderTexts
from ddl.data.formats.request import Request
from ddl.data.source import Source
from ddl.data.tables import arrow_reader
from ddl.data.tables.csv_reader import open_csv
from ddl.data.tables.json_reader import open_json, open_lines
from ddl.data.tables.records import Reader
from ddl.data.tables.source import Asked, TableSource, open_table
from ddl.registry import instantiate

TEXT, LABEL = "text", "label"
READERS: dict[str, Callable[..., Reader]] = {
    "csv": open_csv,
    "jsonl": open_json,
    "parquet": arrow_reader.open_parquet,
    **dict.fromkeys(("arrow", "hf"), arrow_reader.open_arrow),
    "text": open_lines,
}


def reader_of(format: str, encoding: str = "", delimiter: str | None = None) -> Callable[[Path], Reader]:
    """What opens a file whose columns have names. encoding: of text, "" for UTF-8. delimiter: of CSV; None decides by
    the first records."""
    if format == "csv":
        return partial(open_csv, header=True, delimiter=delimiter, encoding=encoding)
    return partial(READERS[format], encoding=encoding) if format in ("jsonl", "text") else READERS[format]


def open_records(format: str, paths: Sequence[Path], request: Request) -> Source:
    """A table; or texts and their classes, if data.options says so or there are no other columns."""
    open_reader = reader_of(format, request.table.encoding, request.options.get("delimiter"))
    is_text = TEXT in request.options
    if not is_text and format != "csv" and request.like is None:
        found, label = open_reader(paths[0]).names, request.targets or request.options.get(LABEL, LABEL)
        is_text = list(found) == [TEXT] or (len(found) <= 3 and set(found) >= {TEXT, label})
    if is_text:
        options = {name: value for name, value in request.options.items() if name not in (TEXT, LABEL, "delimiter")}
        lines = texts_of([open_reader(path) for path in paths], request.options, request.targets)
        return instantiate(LabelledText, {"texts": lines, **options}, "data.options")
    if format == "csv":
        return request.make(_csv_table, "data.options", paths=paths, request=request)
    return request.make(_table, "data.options", paths=paths, request=request, open_reader=open_reader)


def texts_of(
    readers: Sequence[Reader], options: Mapping[str, Any], targets: str = "", *, is_labelled: bool = True
) -> ReaderTexts:
    """The texts and classes in the columns that data.options and data.targets name."""
    label = targets or options.get(LABEL, LABEL) if is_labelled else None
    return ReaderTexts(readers, options.get(TEXT, TEXT), label)


def _csv_table(
    paths: Sequence[Path],
    request: Request,
    *,
    header: bool | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
    features: Sequence[str | int] | None = None,
    target_kind: str | None = None,
    shape: Sequence[int] | None = None,
) -> TableSource:
    named = [*_targets(request), *(features or request.table.columns), *request.table.drop, *request.table.types]
    by_name = any(isinstance(one, str) and one != "none" and not one.strip("+- ").isdecimal() for one in named)
    header = True if by_name and header is None else header
    how = {"header": header, "delimiter": delimiter, "decimal": decimal, "encoding": request.table.encoding}
    return _table(paths, request, partial(open_csv, **how), features=features, target_kind=target_kind, shape=shape)  # type: ignore[arg-type]


def _targets(request: Request) -> list[str]:
    return [name.strip() for name in request.targets.split(",")] if request.targets else []


def _table(
    paths: Sequence[Path],
    request: Request,
    open_reader: Callable[[Path], Reader],
    *,
    features: Sequence[str | int] | None = None,
    target_kind: str | None = None,
    shape: Sequence[int] | None = None,
) -> TableSource:
    targets = _targets(request)
    return open_table(
        paths,
        open_reader,
        Asked(
            targets=None if not targets else [] if targets == ["none"] else targets,
            target_kind=target_kind or request.target_kind,
            dtype=request.dtype,
            like=request.like,
            settings=request.table,
            features=features,
            shape=shape,
        ),
    )
