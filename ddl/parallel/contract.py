"""The contract of gradient buffers: what they sum, and how the reducer drives them.

sums.py implements it for memory on the host, staging.py for memory on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ddl.arrays import Array, Layout
from ddl.collectives import Tuning
from ddl.kernels.wire import Wire
from ddl.parallel.sparse_rows import SparseGradient, Touched


@dataclass(frozen=True)
class SumPlan:
    """What is summed in every step; the same on all workers.

    parts: slices of the flat gradient, summed one by one in this order. sparse: the parts that hold exactly one
    gradient with sparse rows, by number. algorithm: "auto" or a name in the registry of collectives.
    replica_bytes: sizes of the arrays of a replica that the ranks of a node should share; empty: none. wires: by part,
    how it travels between nodes, and None for a part that travels as it is; empty: all of them."""

    layout: Layout
    header_length: int
    parts: Sequence[slice]
    sparse: Mapping[int, SparseGradient] = field(default_factory=dict)
    algorithm: str = "auto"
    tuning: Tuning | None = None
    replica_bytes: Sequence[int] = ()
    wires: Sequence[Wire | None] = ()


class Sum(Protocol):
    """Sums one flat gradient and a float64 header over all workers, part by part.

    A step calls ``stage``, ``open`` and ``reduce`` for every part, then ``close``."""

    local: Array  # (length,) this rank's gradient, written by backward
    header: np.ndarray  # (header_length,) float64, this rank's header
    result: Array  # (length,) the sum, valid from the return of ``close`` to the next ``reduce``; may be ``local``
    total: np.ndarray  # (header_length,) float64, the sum of the headers, valid as long as ``result``
    pays_to_overlap: bool  # whether sending during backward is worth a thread
    touched: dict[int, Touched]  # by part, for each gradient with sparse rows; marked before ``open``
    algorithm: str  # the registry's name of what sums dense parts; "auto": chosen by size in every call

    def stage(self, number: int) -> None:
        """Part ``number`` of ``local`` is complete. The thread that computed it calls this, before ``open``."""

    def open(self, numbers: Iterable[int]) -> None:
        """Prepare to reduce these staged parts; all workers open the same parts together."""

    def reduce(self, number: int) -> None:
        """Sum part ``number``; all workers reduce the parts in the same order."""

    def close(self) -> float:
        """Sum the header and wait for all workers; returns the squared norm of ``result``."""

    def release(self) -> None:
        """Free memory that Python's reference counts do not cover."""


class OnHost:
    """Defaults for buffers on the host: no staging, and memory that is freed with its last view."""

    def stage(self, number: int) -> None:
        pass

    def open(self, numbers: Iterable[int]) -> None:
        pass

    def release(self) -> None:
        pass
