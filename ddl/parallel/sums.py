"""Where the gradients of a generation lie, and how a part of them is summed: one class a way.

When a part may leave is the reducer's business (reducer.py); the algorithms are collectives'."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np

from ddl.arrays import Array, Device, Layout
from ddl.arrays.sums import squares
from ddl.collectives import placed, ring
from ddl.collectives.allreduce import TABLE
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.collectives.shared import LINE_BYTES
from ddl.comm import Group, SharedMemory
from ddl.comm.group import no_probe
from ddl.comm.topology import cores
from ddl.parallel.staging import Staged


class Sum(Protocol):
    """Sums one flat array and a float64 header over all workers, part by part."""

    local: Array  # (length,) of this rank: write here
    header: np.ndarray  # (header_length,) float64 of this rank: write here
    result: Array  # (length,) the sum, from the return of ``close`` to the next ``reduce``; may be ``local``
    total: np.ndarray  # (header_length,) float64, likewise
    pays_to_overlap: bool  # whether sending during backward is worth a thread

    def stage(self, number: int) -> None:
        """Part ``number`` of ``local`` is written; called by the thread that wrote it, before ``reduce``."""

    def reduce(self, number: int) -> None:
        """Sum part ``number``; all workers go through the parts in the same order."""

    def close(self) -> float:
        """Sum the header, wait for everybody; the squared norm of ``result``."""

    def release(self) -> None:
        """Give back what the garbage collector does not know of."""


class _OnHost:
    """What is written on the host needs no staging and is freed with its last view."""

    def stage(self, number: int) -> None:
        pass

    def release(self) -> None:
        pass


class Alone(_OnHost):
    """One rank: the sum is what there is."""

    pays_to_overlap = False

    def __init__(self, layout: Layout, header_length: int, xp: ModuleType = np):
        self.local = self.result = xp.zeros(layout.length, layout.dtype)
        self.header = self.total = np.zeros(header_length)

    def reduce(self, number: int) -> None:
        """Nothing to add."""

    def close(self) -> float:
        return squares(self.result)


class Flat(_OnHost):
    """Memory of our own, summed in place by a ring or the library; the local gradient does not outlive it."""

    pays_to_overlap = True

    def __init__(
        self,
        group: Group,
        layout: Layout,
        header_length: int,
        parts: Sequence[slice],
        algorithm: str,
        tuning: Tuning | None,
    ):
        self.group = group
        self.local = self.result = np.zeros(layout.length, layout.dtype)
        self.header, self.total = np.zeros(header_length), np.zeros(header_length)
        topology = Topology.of(group.nodes, can_share=False)
        self._todo = []
        for part in parts:
            x = self.local[part]
            usable = algorithm if algorithm in ("ring", "native") else choose(x.nbytes, topology, tuning)
            self._todo.append((TABLE[usable], x))

    def reduce(self, number: int) -> None:
        allreduce, x = self._todo[number]
        allreduce(x, self.group)

    def close(self) -> float:
        self.total[...] = self.header
        self.group.native_allreduce(self.total)
        # A member may have left a collective while another still waits in it; a step counts only behind a barrier.
        self.group.barrier()
        return squares(self.result)


class Arrivals:
    """Waiting for the node's ranks without taking their cores: a rank that spins in a barrier slows those that compute.

    Only a courtesy before the barrier: who has waited long enough goes there, and hears of deaths.
    counts: (ranks,) in memory of the node, zero at first."""

    SPIN_S, NAP_S, PATIENCE_S = 1e-4, 5e-5, 0.05

    def __init__(self, counts: np.ndarray, me: int):
        self._counts, self._me, self._round = counts, me, 0

    def wait(self) -> None:
        """Tell that this rank has come; return when all have, or after ``PATIENCE_S``."""
        self._round += 1
        self._counts[self._me] = self._round
        began = time.perf_counter()
        while self._counts.min() < self._round:
            waited = time.perf_counter() - began
            if waited > self.PATIENCE_S:
                return
            if waited > self.SPIN_S:
                time.sleep(self.NAP_S)
            else:
                os.sched_yield()


class InNode(_OnHost):
    """One node: gradients and headers lie in shared memory, and one pair of barriers serves both."""

    pays_to_overlap = False

    def __init__(self, group: Group, memory: SharedMemory, layout: Layout, header_length: int, parts: Sequence[slice]):
        self.group, self.me = group, group.local_ranks.index(group.rank)
        ranks = len(group.local_ranks)
        at = places(header_length, ranks)
        headers = memory.slots[:, : 8 * header_length].view(np.float64)
        sources = memory.slots[:, at.slot : at.slot + layout.nbytes].view(layout.dtype)
        self.local, self.header = sources[self.me], headers[self.me]
        self.result = memory.common[at.common : at.common + layout.nbytes].view(layout.dtype)
        self.total = np.zeros(header_length)
        self._headers = headers
        self._norms = memory.common[: 8 * ranks].view(np.float64)
        self._arrivals = Arrivals(memory.common[at.arrivals : at.arrivals + 8 * ranks].view(np.int64), self.me)
        self._naps = ranks >= cores()
        self._way = placed.of(group, sources, self.result, parts)
        self._squares = [0.0] * len(parts)

    def reduce(self, number: int) -> None:
        if self._naps and self.group.probe is no_probe:
            self.group.waits(True)
            self._arrivals.wait()
            self.group.waits(False)
        self.group.node_barrier()
        self._squares[number] = self._way.reduce(number)

    def close(self) -> float:
        np.add.reduce(self._headers, axis=0, out=self.total)
        self._norms[self.me] = sum(self._squares)
        self.group.node_barrier()
        return float(self._norms.sum())


class BetweenNodes(InNode):
    """Several nodes: shared memory inside each, rings between them, each rank on its own lane."""

    pays_to_overlap = True

    def __init__(self, group: Group, memory: SharedMemory, layout: Layout, header_length: int, parts: Sequence[slice]):
        super().__init__(group, memory, layout, header_length, parts)
        self._first = [ranks[0] for ranks in group.nodes]
        start = places(header_length, len(group.local_ranks)).header
        self._shared_total = memory.common[start : start + 8 * header_length].view(np.float64)

    def reduce(self, number: int) -> None:
        self.group.node_barrier()
        self._way.reduce(number)

    def close(self) -> float:
        self._norms[self.me] = sum(squares(self.result[lane]) for lane in self._way.lanes)
        if self.me == 0:
            np.add.reduce(self._headers, axis=0, out=self._shared_total)
            ring.allreduce(self._shared_total, self.group, self._first)
        self.group.barrier()
        self.total[...] = self._shared_total
        return float(self._norms.sum())


class Places(NamedTuple):
    """Byte offsets. A slot holds header, gradient; the common part holds norms, arrivals, header, gradient."""

    slot: int  # the gradient in a slot
    arrivals: int  # in the common part
    header: int  # the header in the common part
    common: int  # the gradient in the common part


def places(header_length: int, ranks: int) -> Places:
    header, each = _lines(8 * header_length), _lines(8 * ranks)
    return Places(slot=header, arrivals=each, header=2 * each, common=2 * each + header)


def _lines(nbytes: int) -> int:
    return -(-nbytes // LINE_BYTES) * LINE_BYTES


def make_sum(
    group: Group,
    layout: Layout,
    header_length: int,
    parts: Sequence[slice],
    algorithm: str,
    tuning: Tuning | None,
    device: Device,
) -> Sum:
    """The best way for this group; every worker calls it with the same arguments, each with its own device."""
    if group.size == 1:
        return Alone(layout, header_length, device.xp)
    on_host = _on_host(group, layout, header_length, parts, algorithm, tuning)
    return Staged(on_host, device, parts) if device.is_gpu else on_host


def _on_host(
    group: Group, layout: Layout, header_length: int, parts: Sequence[slice], algorithm: str, tuning: Tuning | None
) -> Sum:
    if algorithm == "auto" and tuning is not None:
        algorithm = tuning.algorithm(layout.nbytes, Topology.of(group.nodes, can_share=True)) or "auto"
    if algorithm in ("auto", "shared", "hierarchical"):
        at = places(header_length, max(len(ranks) for ranks in group.nodes))
        memory = group.share(at.slot + layout.nbytes, at.common + layout.nbytes)
        if memory is not None:
            way = InNode if len(group.nodes) == 1 else BetweenNodes
            return way(group, memory, layout, header_length, parts)
    return Flat(group, layout, header_length, parts, algorithm, tuning)
