"""Gradients with sparse rows: sum and send only the rows that some rank has touched in this step.

All ranks first agree on the union of their touched rows; every other row of the sum is zero. If the union exceeds a
given share of the rows, the gradient is summed whole, as a dense one. Inside a node both ways add the same numbers in
the same order, so the results are equal bit for bit. sums.py and staging.py own the buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ddl.arrays import Array, namespace_of, partition
from ddl.collectives.hierarchical import Lanes
from ddl.comm import Group
from ddl.kernels.sparse_rows import add_touched, pack_sums, summing_rank
from ddl.kernels.sums import squares

# The largest share of rows for which the sparse sum is used. On the network every row left out saves time. In shared
# memory, scattered rows take several times as long as contiguous ones: 40 % of 10,000 rows of 64 floats took 1.4 times
# as long as all of them.
SPARSE_SHARE, SPARSE_SHARE_IN_NODE = 0.5, 0.125


@dataclass(frozen=True)
class SparseGradient:
    """A part of the flat gradient: ``rows`` of ``width`` elements from ``start`` on; ``name`` is the parameter's."""

    name: str
    start: int
    rows: int
    width: int

    def of(self, flat: Array) -> Array:
        """(rows, width), a view of ``flat`` (length,)."""
        return flat[self.start : self.start + self.rows * self.width].reshape(self.rows, self.width)


class Touched:
    """Which rows of one gradient this rank has touched, and which rows any rank has.

    own: (rows,) bytes of this rank, written by ``mark``. share: the largest share of rows that counts as sparse."""

    def __init__(self, gradient: SparseGradient, own: np.ndarray, share: float):
        self.gradient, self.own, self.share = gradient, own, share
        self.union = np.zeros(gradient.rows, np.uint8)  # of all ranks, at the last sum; all 0 before the first
        self.before = np.zeros(gradient.rows, np.uint8)  # of all ranks, at the sum before that

    def mark(self, rows: np.ndarray | None) -> None:
        """Record this rank's rows of this step; None if they are unknown, which counts as all of them."""
        self.own.fill(rows is None)
        if rows is not None:
            self.own[rows] = 1

    def next_union(self) -> np.ndarray:
        """(rows,) the bytes to write this step's union to; the last union becomes ``before``."""
        self.union, self.before = self.before, self.union
        return self.union

    @property
    def is_sparse(self) -> bool:
        return int(np.count_nonzero(self.union)) <= self.share * self.gradient.rows


class SharedMemoryRows:
    """Sums touched rows in shared memory: sources (ranks of the node, length) into result (length,).

    touched: (ranks of the node, rows) bytes, also in shared memory."""

    share = SPARSE_SHARE_IN_NODE

    def __init__(self, group: Group, gradient: SparseGradient, sources: np.ndarray, result: Array, touched: np.ndarray):
        self.group, self.gradient, self.sources, self.result = group, gradient, sources, result
        self.me = group.local_ranks.index(group.rank)
        self.touched, self._all = Touched(gradient, touched[self.me], self.share), touched
        self._summed_by_others = (summing_rank(gradient.rows, len(sources)) != self.me).astype(np.uint8)

    def reduce(self, dense: Callable[[], float]) -> float:
        """Sum this rank's share of the rows; returns its squared norm. Call after a barrier that follows ``mark``.

        dense: sums this rank's share of the whole gradient instead."""
        touched, gradient = self.touched, self.gradient
        np.bitwise_or.reduce(self._all, axis=0, out=touched.next_union())
        if not touched.is_sparse:
            return dense()
        rows = gradient.start, gradient.width, touched.union, touched.before
        return float(add_touched(self.result, self.sources, *rows, self.me, len(self.sources)))

    def read_by_others(self) -> np.ndarray:
        """(rows,) bytes: the rows of this rank that other ranks have read in the last sparse sum."""
        return self.touched.own & self._summed_by_others


class MultiNodeRows(SharedMemoryRows):
    """Sums touched rows over several nodes. packed: (SPARSE_SHARE of the elements,), in shared memory of the node.

    The ranks first sum counts, one or two bytes per row, to agree on the union; then the touched rows are packed
    without gaps, so that the rings between the nodes carry nothing else."""

    share = SPARSE_SHARE

    def __init__(
        self,
        group: Group,
        gradient: SparseGradient,
        sources: np.ndarray,
        result: Array,
        touched: np.ndarray,
        packed: Array,
    ):
        super().__init__(group, gradient, sources, result, touched)
        self._packed, self._lanes = packed, Lanes(group)
        self._counts = np.zeros(gradient.rows, count_type(group.size))
        self._summed_by_others[:] = 1  # which rank sums a row changes with the union, so assume another rank did

    def reduce(self, dense: Callable[[], float]) -> float:
        """Sum the rows; returns the squared norm of this rank's lane, or what ``dense`` returns."""
        touched, gradient = self.touched, self.gradient
        agree(self.group, touched, self._counts)
        if not touched.is_sparse:
            return dense()
        picked = np.flatnonzero(touched.union)
        packed = self._packed[: len(picked) * gradient.width]
        layout = gradient.start, gradient.width, picked
        self._lanes.carry(packed, lambda cut: pack_sums(packed, self.sources, *layout, cut.start, cut.stop))
        self.group.node_barrier()
        # The ranks of the node copy the packed sums into the result together, and clear what the last sum left there.
        ranks, rows = len(self.sources), gradient.of(self.result)
        stale = np.flatnonzero((touched.before != 0) & (touched.union == 0))
        rows[stale[partition(len(stale), ranks)[self.me]]] = 0
        mine = partition(len(picked), ranks)[self.me]
        rows[picked[mine]] = packed.reshape(-1, gradient.width)[mine]
        lane = self._lanes.lane(packed.size, packed.itemsize)
        return 0.0 if lane is None else squares(packed[lane])


class PrivateRows:
    """Sums touched rows of an array in this rank's private memory, in place."""

    def __init__(self, group: Group, gradient: SparseGradient, flat: Array, allreduce: Callable[[Array, Group], None]):
        self.group, self.flat = group, flat
        self._allreduce, self._counts = allreduce, np.zeros(gradient.rows, count_type(group.size))
        self.touched = Touched(gradient, np.zeros(gradient.rows, np.uint8), SPARSE_SHARE)

    def reduce(self, dense: Callable[[], None]) -> None:
        """Sum the rows on every rank. dense: sums the whole gradient instead."""
        touched = self.touched
        agree(self.group, touched, self._counts)
        if not touched.is_sparse:
            return dense()
        picked = namespace_of(self.flat).asarray(np.flatnonzero(touched.union))
        rows = touched.gradient.of(self.flat)
        packed = rows[picked]
        self._allreduce(packed, self.group)
        rows[picked] = packed


def agree(group: Group, touched: Touched, counts: np.ndarray) -> None:
    """Compute the union of all workers' rows on each of them. Returns only after every worker has marked its rows."""
    counts[...] = touched.own
    group.native_allreduce(counts)
    np.not_equal(counts, 0, out=touched.next_union().view(bool))


def count_type(ranks: int) -> type[np.unsignedinteger]:
    """The smallest unsigned type that can count to ``ranks``."""
    return np.uint8 if ranks < 1 << 8 else np.uint16 if ranks < 1 << 16 else np.uint32
