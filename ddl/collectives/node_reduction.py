"""Sum arrays that already lie in memory shared by the ranks of a node, without copying them in or out.

``NodeReduction`` serves one node. ``MultiNodeReduction`` serves several: each rank sends its lane around a ring between
the nodes while it is still summing it inside the node. shared.py and hierarchical.py sum arrays in private memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ddl.arrays import Array
from ddl.collectives.compressed import CompressedSum
from ddl.collectives.hierarchical import Lanes
from ddl.collectives.shared import add, runs
from ddl.comm import Group
from ddl.kernels.wire import Wire


class NodeReduction:
    """sources: (ranks of the node, length), one row per rank; result: (length,), one per node.

    parts: the slices that ``reduce`` sums. lanes: by part, the slice of the result that this rank computes."""

    def __init__(self, group: Group, sources: np.ndarray, result: Array, parts: Sequence[slice]):
        self.group, self.sources, self.result, self.parts = group, sources, result, parts
        self.lanes = [self._lane(part) for part in parts]

    def _lane(self, part: slice) -> slice:
        group = self.group
        cuts = runs(part.stop - part.start, len(group.local_ranks), self.result.itemsize)
        return _within(part, cuts[group.local_ranks.index(group.rank)])

    def reduce(self, number: int) -> float:
        """Sum this rank's lane of a part into the result; returns the lane's squared norm.

        Call it after a barrier that follows the writes of all ranks of the node; the result is complete after another
        barrier. Raises PeerLost."""
        return self.add(self.lanes[number])

    def add(self, part: slice) -> float:
        """Write the node's sum to ``part`` of the result; returns its squared norm."""
        return add(self.result, self.sources, part, self.group)

    def settle(self, committed: bool) -> None:
        """Call after all parts have been summed. committed: whether the sums are used; otherwise, what the next sums
        would add to make up for rounding is left as it was."""


class MultiNodeReduction(NodeReduction):
    """The same over several nodes. ``reduce`` returns NaN: the norm is known only once the ring has closed.

    wires: by part, how it travels between the nodes; None: as it is."""

    def __init__(
        self,
        group: Group,
        sources: np.ndarray,
        result: Array,
        parts: Sequence[slice],
        wires: Sequence[Wire | None],
    ):
        self._ring_lanes = Lanes(group)
        super().__init__(group, sources, result, parts)
        self._compressed = {
            number: CompressedSum(group, self._ring_lanes.peers, lane.stop - lane.start, wire)
            for number, (lane, wire) in enumerate(zip(self.lanes, wires or [None] * len(parts), strict=True))
            if wire is not None and self._ring_lanes.peers
        }

    def _lane(self, part: slice) -> slice:
        lane = self._ring_lanes.lane(part.stop - part.start, self.result.itemsize)
        return slice(part.start, part.start) if lane is None else _within(part, lane)

    def reduce(self, number: int) -> float:
        part, compressed = self.parts[number], self._compressed.get(number)
        between = compressed and compressed.run
        self._ring_lanes.carry(self.result[part], lambda cut: self.add(_within(part, cut)), between)
        return math.nan

    def settle(self, committed: bool) -> None:
        for compressed in self._compressed.values():
            compressed.settle(committed)


def _within(part: slice, cut: slice) -> slice:
    """``cut`` counts from the start of ``part``; the same elements, counted from where ``part`` counts."""
    return slice(part.start + cut.start, part.start + cut.stop)


def node_reduction(
    group: Group, sources: np.ndarray, result: Array, parts: Sequence[slice], wires: Sequence[Wire | None] = ()
) -> NodeReduction:
    """The reduction for the nodes of this group."""
    if len(group.nodes) == 1:
        return NodeReduction(group, sources, result, parts)
    return MultiNodeReduction(group, sources, result, parts, wires)
