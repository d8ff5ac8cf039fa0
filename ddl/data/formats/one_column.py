"""One column of a file, as it is written there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.formats.detect import TABLES, detect
from ddl.data.formats.npy import open_npz
from ddl.data.formats.tabular import reader_of
from ddl.errors import ConfigError
from ddl.wording import instead, listed


def column_of(path: Path, name: str, encoding: str = "", delimiter: str | None = None) -> Sequence[Any] | np.ndarray:
    """The cells of the column ``name``, or the array of that name in an npz file. encoding: of text; "" for UTF-8.
    delimiter: of CSV; None decides by the first records.

    Raises ConfigError if there is none, DataError if the file cannot be read."""
    format = detect(path)
    if format == "npz":
        members = open_npz(path)
        if name not in members:
            raise ConfigError(f"{path.name} has no such array; {instead(name, members, 'it has')}")
        rows = members[name]()
        rows.hold([range(rows.shape[0])])
        return rows.take(np.arange(rows.shape[0]))
    if format not in TABLES:
        raise ConfigError(f"{path.name} has no columns; files of {listed([*TABLES, 'npz'])} have")
    reader = reader_of(format, encoding, delimiter)(path)
    if name not in reader.names:
        raise ConfigError(f"{path.name} has no such column; {instead(name, reader.names, 'it has')}")
    at = reader.names.index(name)
    cells = [cell for block in reader.blocks() for cell in block.cells(at)]
    is_whole = all(isinstance(cell, float) and cell.is_integer() for cell in cells)
    return [int(cell) for cell in cells] if is_whole else cells
