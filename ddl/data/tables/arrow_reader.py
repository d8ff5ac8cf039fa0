"""Parquet, Arrow (Feather) and Hugging Face files as blocks of cells, by pyarrow (extra: arrow).

pyarrow is imported only here, and only when such a file is opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.tables.records import Block, Cells, Reader, Texts
from ddl.errors import ConfigError, DataError

PARQUET_MAGIC, ARROW_MAGIC, FEATHER_MAGIC = b"PAR1", b"ARROW1", b"FEA1"
DAY_US = 86_400_000_000


def arrow() -> Any:
    """pyarrow. Raises ConfigError with the extra's name if it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError("Parquet, Arrow and Hugging Face files need pyarrow: pip install 'ddl-mpi[arrow]'") from error
    return pyarrow


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """pyarrow; its errors are raised as DataError naming the file."""
    pa = arrow()
    try:
        yield pa
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split()).partition(" Detail:")[0]
        raise DataError(f"cannot be read: {text[:200]}", path) from error


@dataclass
class ArrowReader(Reader):
    """A Parquet or Arrow file. batches: opens it and yields its record batches. labels: names of the classes of a
    column, which holds their numbers."""

    batches: Callable[[Path, int], Iterator[Any]] = field(default=lambda path, rows: iter(()))
    labels: dict[str, list[str]] = field(default_factory=dict)

    def blocks(self) -> Iterator[Block]:
        first = 1
        with _reading(self.path) as pa:
            for batch in self.batches(self.path, self.rows_at_once()):
                for start in range(0, batch.num_rows, self.rows_at_once()):
                    piece = batch.slice(start, self.rows_at_once())
                    columns = _flat(pa, piece.schema, piece.columns)
                    yield Block(range(first, first + piece.num_rows), partial(self._cells, pa, columns))
                    first += piece.num_rows

    def _cells(self, pa: Any, columns: Sequence[tuple[str, Any]], place: int) -> Cells:
        (name, column), types = columns[place], pa.types
        names, is_coded = self.labels.get(name), types.is_dictionary(column.type)
        kind = column.type.value_type if is_coded else column.type
        if names is not None or types.is_boolean(kind) or _is_text(pa, kind):
            column = column if is_coded else column.dictionary_encode()
            used, codes = np.unique(np.asarray(column.indices.fill_null(-1)), return_inverse=True)
            different = [None if at < 0 else column.dictionary[at].as_py() for at in used.tolist()]
            if names is not None:
                different = [None if one is None or one < 0 else names[one] for one in different]
            texts = ["" if one is None else str(one).lower() if isinstance(one, bool) else one for one in different]
            return Texts(texts, codes)
        column = column.dictionary_decode() if is_coded else column
        if types.is_date(kind) or types.is_timestamp(kind):
            micro = column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
            return _floats(pa, micro) / DAY_US
        if types.is_integer(kind) and not column.null_count and not types.is_uint64(kind):
            return np.asarray(column.cast(pa.int64()))
        return _floats(pa, column) if _is_number(pa, kind) else np.full(len(column), np.nan)


def _flat(pa: Any, schema: Any, columns: Sequence[Any]) -> list[tuple[str, Any]]:
    """(name, column): structures are flattened, and so are lists of a fixed size."""
    pairs = zip(schema.names, columns, strict=True)
    return [flat for name, column in pairs for flat in _flattened(pa, name, column)]


def _floats(pa: Any, column: Any) -> np.ndarray:
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def _is_number(pa: Any, kind: Any) -> bool:
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind)


def _is_text(pa: Any, kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()


def _flattened(pa: Any, name: str, column: Any) -> list[tuple[str, Any]]:
    if pa.types.is_struct(column.type):
        fields = [column.type.field(at).name for at in range(column.type.num_fields)]
        found = []
        for inner, part in zip(fields, column.flatten(), strict=True):
            found += _flattened(pa, f"{name}.{inner}", part)
        return found
    if pa.types.is_fixed_size_list(column.type) and not column.null_count:
        size = column.type.list_size
        values = column.flatten()
        return [(f"{name}.{at}", values.take(pa.array(range(at, len(values), size), pa.int64()))) for at in range(size)]
    return [(name, column)]


def _reader(path: Path, schema: Any, batches: Callable[[Path, int], Iterator[Any]]) -> ArrowReader:
    pa = arrow()
    empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
    named = _flat(pa, schema, empty.columns)
    kinds, refused = {}, {}
    for at, (_, column) in enumerate(named):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            kinds[at] = "date"
        elif not (_is_number(pa, kind) or _is_text(pa, kind) or pa.types.is_boolean(kind)):
            refused[at] = f"values of type {kind}" if len(str(kind)) < 40 else f"a {kind.id}"
    labels = _class_labels(schema)
    for at, (name, _) in enumerate(named):
        if name in labels:
            kinds[at] = "category"
    numbering = tuple(at for at, (name, _) in enumerate(named) if name.startswith("__index_level_"))
    if not named:
        raise DataError("a table of no columns", path)
    return ArrowReader(path, [name for name, _ in named], unit="row", kinds=kinds, refused=refused,
                       row_numbers=numbering, batches=batches, labels=labels)  # fmt: skip


def _class_labels(schema: Any) -> dict[str, list[str]]:
    """Column -> names of the classes, by number, as Hugging Face datasets write them."""
    content = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(content).get("info", {}).get("features", {}) if content else {}
    return {
        name: list(one["names"])
        for name, one in features.items()
        if isinstance(one, dict) and one.get("_type") == "ClassLabel" and one.get("names")
    }


def open_parquet(path: Path) -> ArrowReader:
    with _reading(path):
        import pyarrow.parquet as pq

        def batches(path: Path, rows: int) -> Iterator[Any]:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(rows)

        return _reader(path, pq.read_schema(path), batches)


def open_arrow(path: Path) -> ArrowReader:
    """An Arrow file or stream, memory-mapped; Feather's second version is such a file."""
    with _reading(path):
        schema = next(_arrow_batches(path, 1, schema=True))
        return _reader(path, schema, _arrow_batches)


def _arrow_batches(path: Path, rows: int, schema: bool = False) -> Iterator[Any]:
    pa = arrow()
    with pa.memory_map(str(path), "r") as source:
        head = source.read(8)
        source.seek(0)
        if head.startswith(FEATHER_MAGIC):
            raise DataError("Feather of version 1: write it again by a newer pyarrow", path)
        reader = pa.ipc.open_file(source) if head.startswith(ARROW_MAGIC) else pa.ipc.open_stream(source)
        if schema:
            yield reader.schema
        elif head.startswith(ARROW_MAGIC):
            yield from (reader.get_batch(at) for at in range(reader.num_record_batches))
        else:
            yield from reader


# Folders that Hugging Face datasets write by save_to_disk.


def saved_parts(folder: Path) -> dict[str, list[Path]] | None:
    """split -> its Arrow files; "" for a folder of one dataset. None if ``folder`` was not written by save_to_disk."""
    whole = folder / "dataset_dict.json"
    if whole.is_file():
        splits = _json(whole).get("splits")
        if not isinstance(splits, list) or not splits:
            raise DataError("names no splits", whole)
        return {name: _files(folder / str(name)) for name in splits}
    return {"": _files(folder)} if (folder / "state.json").is_file() else None


def _files(folder: Path) -> list[Path]:
    names = [one.get("filename") for one in _json(folder / "state.json").get("_data_files", [])]
    if not names:
        raise DataError("names no files of data", folder / "state.json")
    return [folder / str(name) for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", path) from error
    if not isinstance(found, dict):
        raise DataError("not a JSON object", path)
    return found
