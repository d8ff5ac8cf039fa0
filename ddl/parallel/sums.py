"""Where the gradients of a generation lie, and how a part of them is summed: one class a way.

When a part may leave is the reducer's business (reducer.py); the algorithms are collectives'."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np

from ddl.arrays import Array, Device, Layout, aligned
from ddl.collectives import placed, ring
from ddl.collectives.allreduce import TABLE, check_algorithm
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.collectives.shared import runs
from ddl.comm import Group, NodeMemory
from ddl.kernels.cache_flush import can_evict, evict, evict_rows
from ddl.kernels.sums import squares
from ddl.parallel.staging import Direct, Staged
from ddl.parallel.tables import FEW, MultiNodeRows, PrivateRows, SharedMemoryRows, Table, Touched
from ddl.parallel.trial import Trial

Update = Callable[[float], None]
"""Writes this rank's shares of the second bank; told the squared norm of the result, or NaN."""


class Sum(Protocol):
    """Sums one flat array and a float64 header over all workers, part by part.

    tables: by part, those of which the rows that a rank has touched are known; each is a part of its own."""

    local: Array  # (length,) of this rank: write here
    header: np.ndarray  # (header_length,) float64 of this rank: write here
    result: Array  # (length,) the sum, from the return of ``close`` to the next ``reduce``; may be ``local``
    total: np.ndarray  # (header_length,) float64, likewise
    pays_to_overlap: bool  # whether sending during backward is worth a thread
    touched: dict[int, Touched]  # by part, for each table: mark the rows before ``open``

    def stage(self, number: int) -> None:
        """Part ``number`` of ``local`` is written; called by the thread that wrote it, before ``open``."""

    def open(self, numbers: Iterable[int]) -> None:
        """These parts are staged, and are reduced next; all workers open the same ones together."""

    def reduce(self, number: int) -> None:
        """Sum part ``number``; all workers go through the parts in the same order."""

    def close(self) -> float:
        """Sum the header, wait for everybody; the squared norm of ``result``."""

    def release(self) -> None:
        """Give back what the garbage collector does not know of."""


class _OnHost:
    """What is written on the host needs no staging and is freed with its last view."""

    touched: dict[int, Touched]

    def stage(self, number: int) -> None:
        pass

    def open(self, numbers: Iterable[int]) -> None:
        pass

    def release(self) -> None:
        pass


class SingleRank(_OnHost):
    """One rank: the sum is what there is."""

    pays_to_overlap = False

    def __init__(self, layout: Layout, header_length: int, xp: ModuleType = np):
        self.local = self.result = aligned.zeros(layout.length, layout.dtype, xp)
        self.header = self.total = np.zeros(header_length)
        self.touched = {}

    def reduce(self, number: int) -> None:
        """Nothing to add."""

    def close(self) -> float:
        return squares(self.result)


class Private(_OnHost):
    """Memory of our own, summed in place by a ring or the library; the local gradient does not outlive it."""

    pays_to_overlap = True

    def __init__(
        self,
        group: Group,
        layout: Layout,
        header_length: int,
        parts: Sequence[slice],
        tables: Mapping[int, Table],
        algorithm: str,
        tuning: Tuning | None,
    ):
        self.group = group
        self.local = self.result = aligned.zeros(layout.length, layout.dtype)
        self.header, self.total = np.zeros(header_length), np.zeros(header_length)
        topology = Topology.of(group.nodes, can_share=False)
        # Without shared memory "shared" and "hierarchical" cannot run: the choice by size takes their place.
        is_usable = algorithm != "auto" and topology.allows(algorithm)

        def allreduce(x: Array, group: Group) -> None:
            TABLE[algorithm if is_usable else choose(x.nbytes, topology, tuning)](x, group)

        self._allreduce = allreduce
        self._parts = [self.local[part] for part in parts]
        self._rows = {n: PrivateRows(group, table, self.local, allreduce) for n, table in tables.items()}
        self.touched = {n: rows.touched for n, rows in self._rows.items()}

    def reduce(self, number: int) -> None:
        rows = self._rows.get(number)
        if rows is None:
            self._dense(number)
        else:
            rows.reduce(functools.partial(self._dense, number))

    def _dense(self, number: int) -> None:
        self._allreduce(self._parts[number], self.group)

    def close(self) -> float:
        self.total[...] = self.header
        self.group.native_allreduce(self.total)
        # A member may have left a collective while another still waits in it; a step counts only behind a barrier.
        self.group.barrier()
        return squares(self.result)


class SharedMemory(_OnHost):
    """One node: gradients and headers lie in shared memory, and one pair of barriers serves both.

    banks: two places for each array of a replica that the ranks of the node update together, each its ``shares``.

    What this rank writes and others of the node read leaves the caches before it is written again, where that is found
    to pay (``evicts``): a store would wait for the others' copies to go, line after line."""

    pays_to_overlap = False

    def __init__(
        self,
        group: Group,
        memory: NodeMemory,
        at: Places,
        layout: Layout,
        parts: Sequence[slice],
        tables: Mapping[int, Table],
    ):
        self.group, self.me, self._memory = group, group.local_ranks.index(group.rank), memory
        ranks = len(group.local_ranks)
        headers = at.header.of(memory.slots, np.float64)
        sources = at.gradient.of(memory.slots, layout.dtype)
        self.local, self.header = sources[self.me], headers[self.me]
        self.result = at.result.of(memory.common, layout.dtype)
        self.total = np.zeros(headers.shape[1])
        self._headers = headers
        self._norms = at.norms.of(memory.common, np.float64)[:ranks]
        self._way = placed.of(group, sources, self.result, parts)
        self._rows: dict[int, SharedMemoryRows] = {}
        for number, table in tables.items():
            flags = at.touched[number].of(memory.slots, np.uint8)
            self._rows[number] = self._by_rows(table, sources, flags, at.packed[number].of(memory.common, layout.dtype))
        self.touched = {number: rows.touched for number, rows in self._rows.items()}
        self._squares = [0.0] * len(parts)
        self.banks = [[place.of(memory.common, layout.dtype) for place in bank] for bank in at.banks]
        self.shares = self._way.lanes
        # The first of the node tries it, for all: a mixture of both ways would be neither.
        self._trial = Trial() if self.me == 0 and can_evict(self.local) else None
        self._word = at.word.of(memory.common, np.uint8)
        self.evicts = False
        self._result_is_read = not self.banks[0]  # by others: every rank's update reads all of it

    def _by_rows(self, table: Table, sources: np.ndarray, flags: np.ndarray, packed: np.ndarray) -> SharedMemoryRows:
        return SharedMemoryRows(self.group, table, sources, self.result, flags)

    def open(self, numbers: Iterable[int]) -> None:
        if self.evicts and self._result_is_read:
            for lane in (self._way.lanes[number] for number in numbers if not self._is_sparse(number)):
                evict(self.result, lane.start, lane.stop)
        self.group.node_barrier()

    def _decide(self) -> None:
        """Called before a barrier behind which all ranks of the node look at the word; the next one is given behind
        another barrier."""
        if self.me == 0:
            self._word[0] = self._trial is not None and self._trial.next()

    def _is_sparse(self, number: int) -> bool:
        """Whether the last sum of a part was one of its rows."""
        return number in self._rows and self._rows[number].touched.is_sparse

    def _evict_what_was_read(self) -> None:
        """The sum is over: others have read what they have summed of this rank's, and backward will write it again."""
        self.evicts = bool(self._word[0])
        if not self.evicts:
            return
        for number, (part, lane) in enumerate(zip(self._way.parts, self._way.lanes, strict=True)):
            rows = self._rows.get(number)
            if rows is None:
                evict(self.local, part.start, lane.start)
                evict(self.local, lane.stop, part.stop)
            elif rows.touched.is_sparse:
                evict_rows(self.local, rows.table.start, rows.table.width, rows.read_by_others(), 0, 0)
            else:  # all rows were summed by lanes; only those that were touched will be cleared
                evict_rows(self.local, rows.table.start, rows.table.width, rows.touched.own, lane.start, lane.stop)

    def release(self) -> None:
        """The node's memory is free when nobody views it any more."""
        self.group.give_back(self._memory)

    def reduce(self, number: int) -> None:
        rows = self._rows.get(number)
        dense = functools.partial(self._dense, number)
        self._squares[number] = dense() if rows is None else rows.reduce(dense)

    def _dense(self, number: int) -> float:
        return self._way.reduce(number)

    def close(self, update: Update | None = None, whole: bool = False) -> float:
        """update: called when ``total`` is known and ``result`` is whole in this rank's ``shares``, or everywhere if
        ``whole``, which also brings the norm. All ranks of the node have returned from theirs when this returns."""
        np.add.reduce(self._headers, axis=0, out=self.total)
        self._norms[self.me] = sum(self._squares)
        if update is not None:
            whole = whole or bool(self._rows)  # whose rows are summed by ranks in turn
            if whole:
                self.group.node_barrier()
            update(float(self._norms.sum()) if whole else math.nan)
        self._decide()
        self.group.node_barrier()
        self._evict_what_was_read()
        return float(self._norms.sum())


class MultiNode(SharedMemory):
    """Several nodes: shared memory inside each, rings between them, each rank on its own lane."""

    pays_to_overlap = True

    def __init__(
        self,
        group: Group,
        memory: NodeMemory,
        at: Places,
        layout: Layout,
        parts: Sequence[slice],
        tables: Mapping[int, Table],
    ):
        super().__init__(group, memory, at, layout, parts, tables)
        self._first = [ranks[0] for ranks in group.nodes]
        # Only these carry lanes. More zeros behind their norms would make some nodes add in another order.
        self._norms = self._norms[: min(len(ranks) for ranks in group.nodes)]
        self._shared_total = at.total.of(memory.common, np.float64)
        self.shares = [runs(layout.length, len(group.local_ranks), layout.dtype.itemsize)[self.me]]
        self._result_is_read = True  # lanes are not shares

    def _by_rows(self, table: Table, sources: np.ndarray, flags: np.ndarray, packed: np.ndarray) -> SharedMemoryRows:
        return MultiNodeRows(self.group, table, sources, self.result, flags, packed)

    def _dense(self, number: int) -> float:
        self._way.reduce(number)
        return squares(self.result[self._way.lanes[number]])

    def close(self, update: Update | None = None, whole: bool = False) -> float:
        if self.me < len(self._norms):
            self._norms[self.me] = sum(self._squares)
        if self.me == 0:
            np.add.reduce(self._headers, axis=0, out=self._shared_total)
            ring.allreduce(self._shared_total, self.group, self._first)
        self._decide()
        self.group.barrier()
        self.total[...] = self._shared_total
        norm = float(self._norms.sum())
        if update is not None:
            update(norm)
            self.group.node_barrier()
        self._evict_what_was_read()
        return norm


class Place(NamedTuple):
    """Bytes of a slot, or of the common part."""

    start: int
    stop: int

    def of(self, memory: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
        """A view of ``memory`` (..., bytes)."""
        found: np.ndarray = memory[..., self.start : self.stop].view(dtype)
        return found


class Places(NamedTuple):
    """Where things lie: of each rank in its slot, of the node in the common part. touched, packed: by part.

    word: one byte, whether to evict."""

    header: Place
    gradient: Place
    touched: dict[int, Place]
    slot_bytes: int
    norms: Place
    word: Place
    total: Place
    result: Place
    packed: dict[int, Place]
    banks: tuple[list[Place], list[Place]]
    common_bytes: int

    @classmethod
    def of(
        cls,
        layout: Layout,
        header_length: int,
        ranks: int,
        tables: Mapping[int, Table],
        packs: bool,
        replica: Sequence[int] = (),
    ) -> Places:
        """ranks: the most on a node. packs: rows are packed to travel. replica: bytes of each array in a bank."""
        slot, common, itemsize = _Shelf(), _Shelf(), layout.dtype.itemsize
        header, gradient = slot.place(8 * header_length), slot.place(layout.nbytes)
        touched = {number: slot.place(table.rows) for number, table in tables.items()}
        norms, word, total = common.place(8 * ranks), common.place(1), common.place(8 * header_length)
        result = common.place(layout.nbytes)
        packed = {n: common.place(packs * int(FEW * t.rows) * t.width * itemsize) for n, t in tables.items()}
        one, two = ([common.place(nbytes) for nbytes in replica] for _ in range(2))
        return cls(header, gradient, touched, slot.used, norms, word, total, result, packed, (one, two), common.used)


class _Shelf:
    """Hands out bytes of memory that begins on a page."""

    def __init__(self) -> None:
        self.used = self._turn = 0

    def place(self, nbytes: int) -> Place:
        start = aligned.place(self.used, nbytes, self._turn)
        self.used, self._turn = start + nbytes, self._turn + 1
        return Place(start, start + nbytes)


def make_sum(
    group: Group,
    layout: Layout,
    header_length: int,
    parts: Sequence[slice],
    tables: Mapping[int, Table],
    algorithm: str,
    tuning: Tuning | None,
    device: Device,
    direct: bool = False,
    replica: Sequence[int] = (),
) -> Sum:
    """The best way for this group; every worker calls it with the same arguments, each with its own device.

    direct: MPI takes GPU memory on all ranks, all of which have a GPU. replica: bytes of arrays that want banks.
    Raises UserError for an algorithm that is not in the registry of collectives."""
    check_algorithm(algorithm)
    if group.size == 1:
        return SingleRank(layout, header_length, device.xp)
    if direct:
        return Direct(group, layout, header_length, parts, tables, device)
    on_host = _on_host(group, layout, header_length, parts, tables, algorithm, tuning, replica)
    return Staged(on_host, device, parts) if device.is_gpu else on_host


def _on_host(
    group: Group,
    layout: Layout,
    header_length: int,
    parts: Sequence[slice],
    tables: Mapping[int, Table],
    algorithm: str,
    tuning: Tuning | None,
    replica: Sequence[int],
) -> Sum:
    if algorithm == "auto" and tuning is not None:
        algorithm = tuning.algorithm(layout.nbytes, Topology.of(group.nodes, can_share=True)) or "auto"
    if algorithm in ("auto", "shared", "hierarchical"):
        is_one = len(group.nodes) == 1
        most = max(len(ranks) for ranks in group.nodes)
        for wanted in (replica, ()) if replica else ((),):  # gradients come first where memory is short
            at = Places.of(layout, header_length, most, tables, not is_one, wanted)
            memory = group.share(at.slot_bytes, at.common_bytes)
            if memory is not None:
                return (SharedMemory if is_one else MultiNode)(group, memory, at, layout, parts, tables)
    return Private(group, layout, header_length, parts, tables, algorithm, tuning)
