"""Sums over several nodes: inside a node through shared memory, between nodes in rings side by side.

Every node cuts the array into as many lanes as the smallest node has ranks; the k-th rank of each
node sends lane k around a ring with its namesakes, so each byte crosses the network 2(n-1)/n times and
all links work at once."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ddl.arrays import Array
from ddl.collectives import ring
from ddl.collectives.shared import add, runs, workspace
from ddl.comm import Group
from ddl.comm.group import check_contiguous


class Lanes:
    """Which part of an array this rank carries between the nodes, and with whom."""

    def __init__(self, group: Group):
        self.group = group
        self.me, self.locals = group.local_ranks.index(group.rank), len(group.local_ranks)
        self.count = min(len(ranks) for ranks in group.nodes)
        self.namesakes = [ranks[self.me] for ranks in group.nodes] if self.me < self.count else []
        # Where a rank's slice inside the node is its lane as well, it need not wait for the others to finish theirs.
        self.coincide = self.locals == self.count

    def lane(self, size: int, itemsize: int) -> slice | None:
        """This rank's lane of an array; None for a rank that carries none."""
        return runs(size, self.count, itemsize)[self.me] if self.namesakes else None

    def carry(self, result: Array, add: Callable[[slice], object]) -> None:
        """Sum the node's ``result`` over all nodes, in place; ``add`` writes a part of it, the sum inside the node."""
        lane = self.lane(result.size, result.itemsize)
        if self.coincide and lane is not None:
            start = lane.start
            ring.allreduce(
                result[lane],
                self.group,
                self.namesakes,
                lambda part: add(slice(start + part.start, start + part.stop)),
            )
            return
        add(runs(result.size, self.locals, result.itemsize)[self.me])
        self.group.node_barrier()
        if lane is not None:
            ring.allreduce(result[lane], self.group, self.namesakes)


def allreduce(x: Array, group: Group) -> None:
    """Sum ``x`` over all workers, in place; the workers of a node share memory (``shared.workspace``).

    Raises PeerLost if a member dies on the way; ``x`` is then garbage."""
    check_contiguous(x)
    space = workspace(group)
    if space is None:
        raise ValueError("the ranks do not share memory")
    lanes, flat = Lanes(group), x.reshape(-1)
    step = space.piece_bytes // x.itemsize
    for start in range(0, flat.size, step):
        piece = flat[start : start + step]
        sources, out = space.half(space.next_half(), x.dtype)
        sources[lanes.me, : piece.size] = piece
        group.node_barrier()
        lanes.carry(out[: piece.size], functools.partial(_add, out, sources, group))
        group.node_barrier()
        piece[...] = out[: piece.size]


def _add(out: Array, sources: Array, group: Group, part: slice) -> None:
    add(out, sources, part, group)
