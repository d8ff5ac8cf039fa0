"""The contract of a data source: samples by number, and the promise to hold only what a rank needs.

Formats are in formats.py (and beside it); how samples are cut into shards is shards.py's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Field:
    """One named part of a sample: ``shape`` without the batch axis, ``dtype`` as delivered.

    size: whole numbers of this field lie in 0 .. size - 1 (classes, a vocabulary); None where it is no such number."""

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int | None = None


@runtime_checkable
class Source(Protocol):
    """Samples numbered 0 .. len-1. Fields are "x" and, where there are targets, "y"; a source may have more.

    Opening a source reads no more than its headers; it raises DataError naming file and offset when
    the file is not what it says."""

    @property
    def fields(self) -> Mapping[str, Field]: ...

    def __len__(self) -> int: ...

    def hold(self, ranges: Sequence[range]) -> None:
        """Keep exactly these samples at hand, dropping others; may read and memory grows with them only.

        Called before ``gather`` and again whenever shards move."""
        ...

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Samples by number (n,) int64, all within the held ranges: field -> new array (n, *shape).

        Two threads may call it at once. A source may have, beside it, ``gather_into(indices, out)`` that fills
        given arrays; those that lie in memory do, and are read without a thread of their own."""
        ...
