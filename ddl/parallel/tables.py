"""Gradients of tables of which a step touches few rows: those rows alone are summed and sent.

All ranks agree on the rows that any of them has touched; all other rows of the sum are zero. Where they are too large
a share of the table (FEW), the table goes as everything else does. The sums are the same either way, addition by
addition inside a node. Where gradients lie, and what is done for all else, is sums.py's business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ddl.arrays import Array, namespace_of, partition
from ddl.collectives.hierarchical import Lanes
from ddl.comm import Group
from ddl.kernels.sparse_rows import add_touched, in_turn, pack_sums
from ddl.kernels.sums import squares

# On the wire every row left out is time saved. In shared memory a row here and there takes several times as long as
# one of a table that is read from end to end: 40 % of 10,000 rows of 64 took 1.4 times as long as all of them.
FEW, FEW_IN_NODE = 0.5, 0.125


@dataclass(frozen=True)
class Table:
    """A part of the flat gradient: ``rows`` of ``width`` elements from ``start`` on, ``name`` as the model has it."""

    name: str
    start: int
    rows: int
    width: int

    def of(self, flat: Array) -> Array:
        """(rows, width), a view of (length,)."""
        return flat[self.start : self.start + self.rows * self.width].reshape(self.rows, self.width)


class Touched:
    """Which rows of one table a rank has touched, and which all of them have.

    own: (rows,) bytes to write this rank's to. few: the largest share of the rows that is worth a way of its own."""

    def __init__(self, table: Table, own: np.ndarray, few: float):
        self.table, self.own, self.few = table, own, few
        self.union = np.zeros(table.rows, np.uint8)  # at the last sum; at first nothing is touched
        self.before = np.zeros(table.rows, np.uint8)  # at the sum before

    def mark(self, rows: np.ndarray | None) -> None:
        """This rank's rows of this step; None where it cannot tell."""
        self.own.fill(rows is None)
        if rows is not None:
            self.own[rows] = 1

    def agreed(self) -> np.ndarray:
        """(rows,) bytes to write the next union to; the last one becomes ``before``."""
        self.union, self.before = self.before, self.union
        return self.union

    @property
    def is_sparse(self) -> bool:
        return int(np.count_nonzero(self.union)) <= self.few * self.table.rows


class SharedMemoryRows:
    """Touched rows of arrays in shared memory: sources (ranks of the node, length), result (length,).

    touched: of all ranks of the node, (ranks, rows) bytes in that memory as well."""

    few = FEW_IN_NODE

    def __init__(self, group: Group, table: Table, sources: np.ndarray, result: Array, touched: np.ndarray):
        self.group, self.table, self.sources, self.result = group, table, sources, result
        self.me = group.local_ranks.index(group.rank)
        self.touched, self._all = Touched(table, touched[self.me], self.few), touched
        self._theirs = (in_turn(table.rows, len(sources)) != self.me).astype(np.uint8)
        self._read = np.zeros(table.rows, np.uint8)

    def reduce(self, dense: Callable[[], float]) -> float:
        """Sum this rank's share of the rows, behind a barrier; its squared norm. dense: does so with all of them."""
        touched, table = self.touched, self.table
        np.bitwise_or.reduce(self._all, axis=0, out=touched.agreed())
        if not touched.is_sparse:
            return dense()
        ranks = len(self.sources)
        return float(
            add_touched(
                self.result, self.sources, table.start, table.width, touched.union, touched.before, self.me, ranks
            )
        )

    def read_by_others(self) -> np.ndarray:
        """(rows,) bytes: those of this rank's rows that others have read for the sum of touched rows."""
        np.bitwise_and(self.touched.own, self._theirs, out=self._read)
        return self._read


class MultiNodeRows(SharedMemoryRows):
    """The same over several nodes. packed: (FEW of the table's elements,), in memory of the node.

    Every rank's rows travel in a sum of their own, a byte or two a row."""

    few = FEW

    def __init__(
        self, group: Group, table: Table, sources: np.ndarray, result: Array, touched: np.ndarray, packed: Array
    ):
        super().__init__(group, table, sources, result, touched)
        self._packed, self._lanes = packed, Lanes(group)
        self._counts = np.zeros(table.rows, count_type(group.size))
        self._theirs[:] = 1  # who sums a row changes with the rows that there are

    def reduce(self, dense: Callable[[], float]) -> float:
        """The squared norm of what came into the sum through this rank; the dense way's as ``dense`` says."""
        touched, table = self.touched, self.table
        agree(self.group, touched, self._counts)
        if not touched.is_sparse:
            return dense()
        picked = np.flatnonzero(touched.union)
        packed = self._packed[: len(picked) * table.width]
        self._lanes.carry(
            packed, lambda cut: pack_sums(packed, self.sources, table.start, table.width, picked, cut.start, cut.stop)
        )
        self.group.node_barrier()
        ranks, rows = len(self.sources), table.of(self.result)
        left = np.flatnonzero((touched.before != 0) & (touched.union == 0))
        rows[left[partition(len(left), ranks)[self.me]]] = 0
        mine = partition(len(picked), ranks)[self.me]
        rows[picked[mine]] = packed.reshape(-1, table.width)[mine]
        lane = self._lanes.lane(packed.size, packed.itemsize)
        return 0.0 if lane is None else squares(packed[lane])


class PrivateRows:
    """Touched rows of an array of this rank's own, which becomes the sum."""

    def __init__(self, group: Group, table: Table, flat: Array, allreduce: Callable[[Array, Group], None]):
        self.group, self.table, self.flat = group, table, flat
        self._allreduce, self._counts = allreduce, np.zeros(table.rows, count_type(group.size))
        self.touched = Touched(table, np.zeros(table.rows, np.uint8), FEW)

    def reduce(self, dense: Callable[[], None]) -> None:
        """Sum the rows, on every rank. dense: does so with all of them."""
        touched = self.touched
        agree(self.group, touched, self._counts)
        if not touched.is_sparse:
            return dense()
        picked = namespace_of(self.flat).asarray(np.flatnonzero(touched.union))
        table = self.table.of(self.flat)
        packed = table[picked]
        self._allreduce(packed, self.group)
        table[picked] = packed


def agree(group: Group, touched: Touched, counts: np.ndarray) -> None:
    """The union of all workers' rows, on each; behind it all of them have marked theirs."""
    counts[...] = touched.own
    group.native_allreduce(counts)
    np.not_equal(counts, 0, out=touched.agreed().view(bool))


def count_type(ranks: int) -> type[np.unsignedinteger]:
    """Whole numbers that can count to ``ranks``."""
    return np.uint8 if ranks < 1 << 8 else np.uint16 if ranks < 1 << 16 else np.uint32
