"""The identifier of each sample of an input file: the cells of one of its columns, as ``ddl.predict --id NAME`` asks.

Without one, a source names its samples itself: by file name, or by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddl.data import Source, column_of
from ddl.data.formats.detect import expand
from ddl.data.source import Wrapper
from ddl.errors import ConfigError, DataError


class Named(Wrapper):
    """A source whose samples have other identifiers: values (n,) under a heading."""

    def __init__(self, source: Source, heading: str, values: np.ndarray):
        super().__init__(source)
        self._identifiers = (heading, values)

    def identifiers(self) -> tuple[str, np.ndarray]:
        return self._identifiers


def named_by(source: Source, pattern: str, column: str, encoding: str = "", delimiter: str | None = None) -> Source:
    """``source``, the samples of the files of ``pattern``, named by this column of them. encoding, delimiter: of text.

    Raises ConfigError, DataError."""
    try:
        cells = [column_of(path, column, encoding, delimiter) for path in expand(pattern)]
    except ConfigError as error:
        raise ConfigError(f"--id {column}: {error}") from error
    # Numbers in one file and texts in another are all texts.
    values = np.concatenate([np.asarray(own) for own in cells])
    if len(values) != len(source):
        raise DataError(f"column {column!r} has {len(values)} cells for {len(source)} samples", Path(pattern))
    return Named(source, column, values)
