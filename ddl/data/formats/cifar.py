"""CIFAR's binary files: records of one or two label bytes and 32x32 pixels in three planes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddl.data.formats.files import FileColumn, FileSource
from ddl.data.formats.npy import first_bytes
from ddl.data.formats.rows import MappedRows
from ddl.data.source import Field, Source
from ddl.errors import DataError

PIXELS = 3 * 32 * 32


def _chw_to_hwc(record: np.ndarray) -> np.ndarray:
    return record[:, -PIXELS:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def cifar(path: Path, record: int, classes: tuple[int, ...], dtype: np.dtype) -> Source:
    first_bytes(path)
    size = path.stat().st_size
    if size % record:
        raise DataError(
            f"truncated: {size} bytes are no whole number of records of {record}", path, size - size % record
        )
    rows = MappedRows(path, 0, (size // record, record), np.dtype(np.uint8))
    labels = np.array(rows.view(0, size // record)[:, : len(classes)])
    wrong = (labels >= np.array(classes)).any(axis=1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(f"label {labels[first].max()} of {classes[-1]} classes: not this format", path, first * record)
    image = FileColumn(rows, Field((32, 32, 3), dtype), _chw_to_hwc)
    return FileSource({"x": image}, labels[:, -1], [str(label) for label in range(classes[-1])])


def looks_like_cifar(path: Path) -> str | None:
    """The name of the format whose records the file may consist of, by its size and every label."""
    size = path.stat().st_size
    for name, record, classes in (("cifar10", 1 + PIXELS, (10,)), ("cifar100", 2 + PIXELS, (20, 100))):
        if size % record == 0:
            labels = np.memmap(path, np.uint8, "r", shape=(size // record, record))[:, : len(classes)]
            if (labels < np.array(classes)).all():
                return name
    return None
