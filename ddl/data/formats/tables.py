"""Several CSV files as one table: their classes are numbered, and their columns encoded, as all of them together ask.

delimited.py reads one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddl.data.formats.csv_head import canonical, is_integer
from ddl.data.formats.delimited import Delimited
from ddl.data.formats.encoding import Encoding
from ddl.data.formats.files import Concat
from ddl.data.source import Source
from ddl.errors import DataError


def join(files: Sequence[Delimited], learns: bool) -> Tables:
    """One table of all files: classes are those of any of them. Raises DataError where files differ in kind.

    learns: they are the training part, from which encodings are learned."""
    names = {canonical(name) for file in files for name in file.names}
    ordered = sorted(names, key=int) if all(map(is_integer, names)) else sorted(names)
    for file in files:
        if bool(file.names) != bool(names):
            raise DataError(
                "its target is values, that of other files classes: say data.options.target_kind", file.path
            )
        file.number(tuple(ordered))
        file.recall(files[0].learned())
    if learns and not all(file.is_plain for file in files):
        for file in files:
            file.encode_by(None)
    return Tables(files, learns)


class Tables(Concat):
    """CSV files that make one table. learns: they are the training part."""

    def __init__(self, files: Sequence[Delimited], learns: bool):
        super().__init__(files)
        self._files, self._learns = list(files), learns

    def fit(self, indices: np.ndarray) -> None:
        if self._learns and not all(file.is_plain for file in self._files):
            ends = zip(self._files, self._edges[:-1], self._edges[1:], strict=True)
            parts = [file.training_cells(indices[(indices >= a) & (indices < b)] - a) for file, a, b in ends]
            encoding = [Encoding.learn([c for part in column for c in part]) for column in zip(*parts, strict=True)]
            for file in self._files:
                file.encode_by(encoding)
            super().__init__(self._files)

    def recall(self, learned: Mapping[str, Any]) -> None:
        super().recall(learned)
        super().__init__(self._files)

    def exact(self) -> Source:
        return Tables([file.exact() for file in self._files], self._learns)

    def hold(self, ranges: Sequence[range]) -> None:
        if self._files[0].encoding is None:
            self.fit(np.arange(len(self)))
        super().hold(ranges)
