"""Sums of arrays that already lie in the memory that the ranks of a node share: nothing is copied in or out.

``NodeReduction`` serves one node. ``MultiNodeReduction`` serves several: each rank sends its lane around a ring
between the nodes, straight from the sum inside its node. Headers and buckets are parallel's business; arrays in
private memory are summed by shared.py and hierarchical.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ddl.arrays import Array
from ddl.collectives.hierarchical import Lanes
from ddl.collectives.shared import add, runs
from ddl.comm import Group


class NodeReduction:
    """sources: (ranks of the node, length), each rank's own row; result: (length,), one for the node.

    parts: those that ``reduce`` sums. lanes: by part, the share that comes into the result through this rank."""

    def __init__(self, group: Group, sources: np.ndarray, result: Array, parts: Sequence[slice]):
        self.group, self.sources, self.result, self.parts = group, sources, result, parts
        self.lanes = [self._lane(part) for part in parts]

    def _lane(self, part: slice) -> slice:
        group = self.group
        cuts = runs(part.stop - part.start, len(group.local_ranks), self.result.itemsize)
        return _within(part, cuts[group.local_ranks.index(group.rank)])

    def reduce(self, number: int) -> float:
        """Sum this rank's share of a part into the result; the squared norm of what it has added up itself.

        Before it, all ranks of the node have written their rows and passed a barrier; behind another one the result
        is whole. Raises PeerLost."""
        return self.add(self.lanes[number])

    def add(self, part: slice) -> float:
        """``part`` of the result becomes the node's sum; its squared norm."""
        return add(self.result, self.sources, part, self.group)


class MultiNodeReduction(NodeReduction):
    """The same over several nodes. What ``reduce`` returns means nothing here."""

    def __init__(self, group: Group, sources: np.ndarray, result: Array, parts: Sequence[slice]):
        self._ways = Lanes(group)
        super().__init__(group, sources, result, parts)

    def _lane(self, part: slice) -> slice:
        lane = self._ways.lane(part.stop - part.start, self.result.itemsize)
        return slice(part.start, part.start) if lane is None else _within(part, lane)

    def reduce(self, number: int) -> float:
        part = self.parts[number]
        self._ways.carry(self.result[part], lambda cut: self.add(_within(part, cut)))
        return math.nan


def _within(part: slice, cut: slice) -> slice:
    """``cut``, a slice of ``part``, as a slice of what ``part`` is one of."""
    return slice(part.start + cut.start, part.start + cut.stop)


def of(group: Group, sources: np.ndarray, result: Array, parts: Sequence[slice]) -> NodeReduction:
    """The way for this group."""
    return (NodeReduction if len(group.nodes) == 1 else MultiNodeReduction)(group, sources, result, parts)
