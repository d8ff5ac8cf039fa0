"""Gradient buffers on the host: one rank, private memory, memory shared by a node, and several nodes.

reducer.py decides when a part is summed; the algorithms are in ddl/collectives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

import numpy as np

from ddl.arrays import Array, Device, Layout, aligned
from ddl.collectives import ring
from ddl.collectives.allreduce import resolve_algorithm
from ddl.collectives.choose import Topology, choose
from ddl.collectives.node_reduction import node_reduction
from ddl.collectives.shared import runs
from ddl.collectives.table import TABLE
from ddl.comm import Group, NodeMemory
from ddl.kernels.cache_flush import can_flush, flush, flush_rows
from ddl.kernels.sums import squares
from ddl.parallel.contract import OnHost, Sum, SumPlan
from ddl.parallel.sparse_rows import SPARSE_SHARE, MultiNodeRows, PrivateRows, SharedMemoryRows, Touched
from ddl.parallel.staging import Direct, Staged
from ddl.parallel.trial import Trial

Update = Callable[[float], None]
"""Writes this rank's shares of the second replica, given the squared norm of the result, or NaN if not computed."""


class SingleRank(OnHost):
    """One rank: its gradient is the sum."""

    pays_to_overlap = False
    algorithm = "auto"

    def __init__(self, layout: Layout, header_length: int, xp: ModuleType = np):
        self.local = self.result = aligned.zeros(layout.length, layout.dtype, xp)
        self.header = self.total = np.zeros(header_length)
        self.touched: dict[int, Touched] = {}

    def reduce(self, number: int) -> None:
        """Nothing to add."""

    def close(self) -> float:
        return squares(self.result)


class Private(OnHost):
    """Private memory, summed in place by any algorithm of the registry; the local gradient is overwritten."""

    pays_to_overlap = True

    def __init__(self, group: Group, plan: SumPlan):
        self.group, layout = group, plan.layout
        self.local = self.result = aligned.zeros(layout.length, layout.dtype)
        self.header, self.total = np.zeros(plan.header_length), np.zeros(plan.header_length)
        topology = Topology.of(group.nodes, can_share=False)
        # "shared" and "hierarchical" need shared memory; without it the algorithm is chosen by size.
        self.algorithm = plan.algorithm if topology.allows(plan.algorithm) else "auto"
        named = resolve_algorithm(self.algorithm)

        def allreduce(x: Array, group: Group) -> None:
            (named or TABLE[choose(x.nbytes, topology, plan.tuning)])(x, group)

        self._allreduce = allreduce
        self._parts = [self.local[part] for part in plan.parts]
        self._rows = {n: PrivateRows(group, sparse, self.local, allreduce) for n, sparse in plan.sparse.items()}
        self.touched = {n: rows.touched for n, rows in self._rows.items()}

    def reduce(self, number: int) -> None:
        dense = functools.partial(self._allreduce, self._parts[number], self.group)
        rows = self._rows.get(number)
        if rows is None:
            dense()
        else:
            rows.reduce(dense)

    def close(self) -> float:
        self.total[...] = self.header
        self.group.native_allreduce(self.total)
        # A rank may return from a collective while another is still in it and then finds a peer dead. Only a barrier
        # proves that every rank has the whole sum, so that all of them or none commit the step.
        self.group.barrier()
        return squares(self.result)


class SharedMemory(OnHost):
    """One node: gradients and headers lie in shared memory, and each rank sums its lane of every part.

    Two barriers per step suffice: one before the sum (all ranks have written) and one after it (all have summed).

    replicas: two sets of arrays in shared memory for the replica that the ranks of the node update together, each
    rank its ``shares``; both empty if the replica is not shared.

    Cache lines that this rank writes and other ranks read are flushed before the next write where the trial finds
    that faster (``flushes``): a store would otherwise wait, line by line, for the other cores' copies."""

    pays_to_overlap = False
    algorithm = "shared"

    def __init__(self, group: Group, memory: NodeMemory, at: MemoryMap, plan: SumPlan):
        self.group, self.me, self._memory, layout = group, group.local_ranks.index(group.rank), memory, plan.layout
        sources = at.gradient.of(memory.slots, layout.dtype)
        self._headers = at.header.of(memory.slots, np.float64)
        self.local, self.header = sources[self.me], self._headers[self.me]
        self.result = at.result.of(memory.common, layout.dtype)
        self.total = np.zeros(plan.header_length)
        self._norms = at.norms.of(memory.common, np.float64)[: len(group.local_ranks)]
        self._reduction = node_reduction(group, sources, self.result, plan.parts, plan.wires)
        self._rows: dict[int, SharedMemoryRows] = {}
        for number, gradient in plan.sparse.items():
            arrays = gradient, sources, self.result, at.touched[number].of(memory.slots, np.uint8)
            packed = at.packed[number].of(memory.common, layout.dtype)
            is_one = len(group.nodes) == 1
            self._rows[number] = SharedMemoryRows(group, *arrays) if is_one else MultiNodeRows(group, *arrays, packed)
        self.touched = {number: rows.touched for number, rows in self._rows.items()}
        self._squares = [0.0] * len(plan.parts)
        self.replicas = [[extent.of(memory.common, layout.dtype) for extent in extents] for extents in at.replicas]
        self.shares = self._reduction.lanes
        # The node's first rank runs the trial for all of them: ranks that chose differently would measure a mixture.
        self._trial = Trial() if self.me == 0 and can_flush(self.local) else None
        self._flag = at.flag.of(memory.common, np.uint8)
        self.flushes = False
        # With a shared replica each rank's update reads only its own lanes of the result, so no line is contended.
        self._result_is_read_by_others = not self.replicas[0]

    def open(self, numbers: Iterable[int]) -> None:
        if self.flushes and self._result_is_read_by_others:
            for lane in (self._reduction.lanes[number] for number in numbers if not self._was_sparse(number)):
                flush(self.result, lane.start, lane.stop)
        self.group.node_barrier()

    def _was_sparse(self, number: int) -> bool:
        return number in self._rows and self._rows[number].touched.is_sparse

    def reduce(self, number: int) -> None:
        rows = self._rows.get(number)
        dense = functools.partial(self._dense, number)
        self._squares[number] = dense() if rows is None else rows.reduce(dense)

    def _dense(self, number: int) -> float:
        return self._reduction.reduce(number)

    def close(self, update: Update | None = None, whole: bool = False) -> float:
        """Sum the headers and return the squared norm of the result.

        update: called once ``total`` is known and ``result`` is complete in this rank's ``shares``; with ``whole``,
        once all of it is complete and the norm is known. Returns after all ranks of the node have run theirs."""
        np.add.reduce(self._headers, axis=0, out=self.total)
        self._norms[self.me] = sum(self._squares)
        if update is not None:
            whole = whole or bool(self._rows)  # sparse rows are dealt to the ranks in blocks, not by lanes
            if whole:
                self.group.node_barrier()
            update(float(self._norms.sum()) if whole else math.nan)
        self._write_flag()
        self.group.node_barrier()
        self._flush_what_others_read()
        return float(self._norms.sum())

    def _write_flag(self) -> None:
        """Call before a barrier: every rank of the node reads the flag after it, and it is written again only after
        another barrier."""
        if self.me == 0:
            self._flag[0] = self._trial is not None and self._trial.next()

    def _flush_what_others_read(self) -> None:
        """Flush what other ranks have read of this rank's gradient: the next backward will overwrite it."""
        self.flushes = bool(self._flag[0])
        if not self.flushes:
            return
        for number, (part, lane) in enumerate(zip(self._reduction.parts, self._reduction.lanes, strict=True)):
            rows = self._rows.get(number)
            if rows is None:
                flush(self.local, part.start, lane.start)
                flush(self.local, lane.stop, part.stop)
                continue
            start, width = rows.gradient.start, rows.gradient.width
            if rows.touched.is_sparse:
                flush_rows(self.local, start, width, rows.read_by_others(), 0, 0)
            else:  # summed whole, by lanes; but the next backward clears only the rows that this rank has touched
                flush_rows(self.local, start, width, rows.touched.own, lane.start, lane.stop)

    def release(self) -> None:
        """Unmap the shared memory once its last view is gone."""
        self.group.give_back(self._memory)


class MultiNode(SharedMemory):
    """Several nodes: shared memory inside each node, and rings between the nodes, one per lane."""

    pays_to_overlap = True
    algorithm = "hierarchical"

    def __init__(self, group: Group, memory: NodeMemory, at: MemoryMap, plan: SumPlan):
        super().__init__(group, memory, at, plan)
        self._first_ranks = [ranks[0] for ranks in group.nodes]
        # Only as many ranks as the smallest node has carry lanes. Adding the zeros of further ranks would change the
        # order of additions there, so that replicas would be clipped by norms that differ in the last bit.
        self._norms = self._norms[: min(len(ranks) for ranks in group.nodes)]
        self._shared_total = at.total.of(memory.common, np.float64)
        self.shares = [runs(plan.layout.length, len(group.local_ranks), plan.layout.dtype.itemsize)[self.me]]
        self._result_is_read_by_others = True  # lanes and shares differ here

    def _dense(self, number: int) -> float:
        self._reduction.reduce(number)
        return squares(self.result[self._reduction.lanes[number]])

    def close(self, update: Update | None = None, whole: bool = False) -> float:
        if self.me < len(self._norms):
            self._norms[self.me] = sum(self._squares)
        if self.me == 0:
            np.add.reduce(self._headers, axis=0, out=self._shared_total)
            ring.allreduce(self._shared_total, self.group, self._first_ranks)
        self._write_flag()
        self.group.barrier()
        self.total[...] = self._shared_total
        norm = float(self._norms.sum())
        self._reduction.settle(math.isfinite(norm) and bool(np.isfinite(self.total).all()))
        if update is not None:
            update(norm)
            self.group.node_barrier()
        self._flush_what_others_read()
        return norm


class Extent(NamedTuple):
    """A range of bytes in a rank's slot, or in the common part, of a node's shared memory."""

    start: int
    stop: int

    def of(self, memory: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
        """A view of ``memory`` (..., bytes) as ``dtype``."""
        view: np.ndarray = memory[..., self.start : self.stop].view(dtype)
        return view


class MemoryMap(NamedTuple):
    """Where arrays lie in shared memory: header to touched in each rank's slot, the others in the common part.

    touched, packed: by part, for gradients with sparse rows. flag: one byte, whether the ranks flush."""

    header: Extent
    gradient: Extent
    touched: dict[int, Extent]
    slot_bytes: int
    norms: Extent
    flag: Extent
    total: Extent
    result: Extent
    packed: dict[int, Extent]
    replicas: tuple[list[Extent], list[Extent]]
    common_bytes: int

    @classmethod
    def of(cls, plan: SumPlan, ranks: int, packs: bool) -> MemoryMap:
        """ranks: of the largest node, so that all nodes get the same map. packs: whether sparse rows are packed."""
        slot, common, layout = _Allocator(), _Allocator(), plan.layout
        header, gradient = slot.allocate(8 * plan.header_length), slot.allocate(layout.nbytes)
        touched = {number: slot.allocate(sparse.rows) for number, sparse in plan.sparse.items()}
        norms, flag, total = common.allocate(8 * ranks), common.allocate(1), common.allocate(8 * plan.header_length)
        result = common.allocate(layout.nbytes)
        packed = {
            number: common.allocate(packs * int(SPARSE_SHARE * sparse.rows) * sparse.width * layout.dtype.itemsize)
            for number, sparse in plan.sparse.items()
        }
        one, two = ([common.allocate(nbytes) for nbytes in plan.replica_bytes] for _ in range(2))
        return cls(header, gradient, touched, slot.used, norms, flag, total, result, packed, (one, two), common.used)


class _Allocator:
    """Assigns aligned extents of memory that begins on a page, without freeing any."""

    def __init__(self) -> None:
        self.used = self._count = 0

    def allocate(self, nbytes: int) -> Extent:
        start = aligned.place(self.used, nbytes, self._count)
        self.used, self._count = start + nbytes, self._count + 1
        return Extent(start, start + nbytes)


def make_sum(group: Group, plan: SumPlan, device: Device, direct: bool = False) -> Sum:
    """The gradient buffers for this group; every worker calls it with the same plan, and its own device.

    direct: give GPU memory to MPI, which must be possible on all ranks.
    Raises ConfigError for an algorithm that is not in the registry of collectives."""
    resolve_algorithm(plan.algorithm)
    if group.size == 1:
        return SingleRank(plan.layout, plan.header_length, device.xp)
    if direct:
        return Direct(group, plan, device)
    on_host = _on_host(group, plan)
    return Staged(on_host, device, plan.parts) if device.is_gpu else on_host


def _on_host(group: Group, plan: SumPlan) -> Sum:
    algorithm, is_one = plan.algorithm, len(group.nodes) == 1
    if algorithm == "auto" and plan.tuning is not None:
        algorithm = plan.tuning.algorithm(plan.layout.nbytes, Topology.of(group.nodes, can_share=True)) or "auto"
    if algorithm in ("auto", "shared", "hierarchical"):
        # If memory is too short for replicas as well, share the gradients alone.
        for wanted in (plan, replace(plan, replica_bytes=())) if plan.replica_bytes else (plan,):
            at = MemoryMap.of(wanted, max(map(len, group.nodes)), not is_one)
            memory = group.share(at.slot_bytes, at.common_bytes)
            if memory is not None:
                return (SharedMemory if is_one else MultiNode)(group, memory, at, wanted)
    return Private(group, replace(plan, algorithm=algorithm))
