"""Open tables, and files of labelled text, in the formats that can hold both.

The tables themselves are in ddl/data/tables, the texts in labelled_text.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ddl.data.formats.labelled_text import LabelledText, ReaderTexts, csv_lines, json_lines
from ddl.data.formats.request import Request
from ddl.data.source import Source
from ddl.data.tables import arrow_reader
from ddl.data.tables.csv_reader import open_csv as csv_reader
from ddl.data.tables.json_reader import open_json
from ddl.data.tables.records import Reader
from ddl.data.tables.source import Asked, TableSource, open_table
from ddl.errors import DataError
from ddl.registry import instantiate

TEXT, LABEL = "text", "label"


def open_csv(paths: Sequence[Path], request: Request) -> Source:
    if TEXT in request.options:
        return _labelled(csv_lines, paths, request)
    return request.make(_csv_table, "data.options", paths=paths, request=request)


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
    open_reader = partial(
        csv_reader,
        header=True if by_name and header is None else header,
        delimiter=delimiter,
        decimal=decimal,
        encoding=request.table.encoding,
    )
    return _table(paths, request, open_reader, features=features, target_kind=target_kind, shape=shape)


def open_jsonl(paths: Sequence[Path], request: Request) -> Source:
    open_reader = partial(open_json, encoding=request.table.encoding)
    if _is_text(lambda: open_reader(paths[0]).names, request):
        return _labelled(json_lines, paths, request)
    return request.make(_record_table, "data.options", paths=paths, request=request, open_reader=open_reader)


def open_parquet(paths: Sequence[Path], request: Request) -> Source:
    return _open_records(arrow_reader.open_parquet, paths, request)


def open_arrow(paths: Sequence[Path], request: Request) -> Source:
    return _open_records(arrow_reader.open_arrow, paths, request)


def _open_records(open_reader: Callable[[Path], Reader], paths: Sequence[Path], request: Request) -> Source:
    if not _is_text(lambda: open_reader(paths[0]).names, request):
        return request.make(_record_table, "data.options", paths=paths, request=request, open_reader=open_reader)
    options = dict(request.options)
    text, label = options.pop(TEXT, TEXT), request.targets or options.pop(LABEL, LABEL)
    lines = ReaderTexts([open_reader(path) for path in paths], text, label)
    return instantiate(LabelledText, {"texts": lines, **options}, "data.options")


def _is_text(names: Callable[[], Sequence[str]], request: Request) -> bool:
    """Whether the samples are texts with a class: data.options says so, or there are no other columns."""
    if TEXT in request.options:
        return True
    if request.like is not None:
        return False
    found, label = names(), request.targets or request.options.get(LABEL, LABEL)
    return list(found) == [TEXT] or (len(found) <= 3 and set(found) >= {TEXT, label})


def _record_table(
    paths: Sequence[Path],
    request: Request,
    open_reader: Callable[[Path], Reader],
    *,
    features: Sequence[str | int] | None = None,
    target_kind: str | None = None,
    shape: Sequence[int] | None = None,
) -> TableSource:
    return _table(paths, request, open_reader, features=features, target_kind=target_kind, shape=shape)


def _targets(request: Request) -> list[str]:
    return [name.strip() for name in request.targets.split(",")] if request.targets else []


def _table(
    paths: Sequence[Path],
    request: Request,
    open_reader: Callable[[Path], Reader],
    *,
    target_kind: str | None,
    **asked: Any,
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
            **asked,
        ),
    )


def _labelled(open_lines: Callable[..., Any], paths: Sequence[Path], request: Request) -> Source:
    if len(paths) > 1:
        raise DataError(f"{len(paths)} files of labelled text: join them into one", paths[0].parent)
    options = dict(request.options)
    own: dict[str, Any] = {key: options.pop(key) for key in (TEXT, LABEL, "delimiter") if key in options}
    if request.targets:
        own[LABEL] = request.targets
    lines = instantiate(open_lines, {"path": paths[0], **own}, "data.options")
    return instantiate(LabelledText, {"texts": lines, **options}, "data.options")
