"""Allreduce over several nodes: through shared memory inside each node, and in parallel rings between the nodes.

Each node cuts the array into as many lanes as the smallest node has ranks. The k-th rank of each node sends lane k
around a ring of the k-th ranks, so each byte crosses the network 2(n-1)/n times for n nodes and all links are busy."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ddl.arrays import Array
from ddl.collectives import ring
from ddl.collectives.shared import add, runs, workspace
from ddl.comm import Group
from ddl.comm.group import check_contiguous


class Lanes:
    """Which lane of an array this rank sends between the nodes, and the ranks of its ring."""

    def __init__(self, group: Group):
        self.group = group
        self.me, self.locals = group.local_ranks.index(group.rank), len(group.local_ranks)
        self.count = min(len(ranks) for ranks in group.nodes)
        self.peers = [ranks[self.me] for ranks in group.nodes] if self.me < self.count else []
        # If every rank of the node has a lane, it sums inside the node exactly what it sends, and need not wait for the
        # other ranks of the node in between.
        self.coincide = self.locals == self.count

    def lane(self, size: int, itemsize: int) -> slice | None:
        """This rank's lane of an array of ``size`` elements; None for a rank without one."""
        return runs(size, self.count, itemsize)[self.me] if self.peers else None

    def carry(
        self, result: Array, add: Callable[[slice], object], between: Callable[[Array], None] | None = None
    ) -> None:
        """Sum ``result`` of this node over all nodes, in place. add: writes the node's sum to a slice of ``result``.

        between: sums this rank's lane over the nodes; default: by a ring."""
        lane = self.lane(result.size, result.itemsize)
        if self.coincide and lane is not None and between is None:
            start = lane.start
            ring.allreduce(
                result[lane],
                self.group,
                self.peers,
                lambda part: add(slice(start + part.start, start + part.stop)),
            )
            return
        add(runs(result.size, self.locals, result.itemsize)[self.me])
        if not self.coincide:
            self.group.node_barrier()
        if lane is not None and between is not None:
            between(result[lane])
        elif lane is not None:
            ring.allreduce(result[lane], self.group, self.peers)


def allreduce(x: Array, group: Group) -> None:
    """Sum ``x`` over all workers, in place; the workers of each node share memory (``shared.workspace``).

    Raises ValueError if they cannot, and PeerLost if a member dies during the call; ``x`` is then undefined."""
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
