"""An allreduce of the same memory again and again, with everything decided and mapped beforehand.

Where the ranks of a node share memory, ``local`` lies in it: nothing is copied in. Gradients, which
travel with a header and in buckets, have a way of their own (parallel/sums.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np

from ddl.arrays import Array
from ddl.collectives import placed
from ddl.collectives.allreduce import TABLE
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.collectives.shared import add, workspace
from ddl.comm import Group

# Up to here each rank sums everything for itself: a copy and that cost less than a second barrier.
ONE_BARRIER_BYTES = 16 << 10


class PersistentAllreduce:
    """Write ``local``, call ``run``, read ``result``: the sum over all workers, the same bits on each.

    length: elements on every rank. All workers make it, and call ``run``, together. ``result`` is valid until the next
    ``run`` and may be ``local``. Raises PeerLost if a member dies on the way; both are then garbage."""

    def __init__(
        self,
        group: Group,
        length: int,
        dtype: np.typing.DTypeLike = "float32",
        algorithm: str = "auto",
        tuning: Tuning | None = None,
    ):
        dtype = np.dtype(dtype)
        nbytes = length * dtype.itemsize
        can_share = group.size > 1 and workspace(group) is not None
        topology = Topology.of(group.nodes, can_share)
        chosen = choose(nbytes, topology, tuning, in_place=True) if algorithm == "auto" else algorithm
        self.algorithm = chosen if topology.allows(chosen) else choose(nbytes, Topology.of(group.nodes, False))
        self.run: Callable[[], None]
        if group.size > 1 and self.algorithm in ("shared", "hierarchical") and self._share(group, length, dtype):
            return
        self.local: Array = np.zeros(length, dtype)
        self.result: Array = self.local
        if self.algorithm == "native":
            self.run = group.prepared_allreduce(self.local)
        else:
            self.run = lambda: TABLE[self.algorithm](self.local, group)

    def _share(self, group: Group, length: int, dtype: np.dtype) -> bool:
        """Map the arrays; False on all workers where that cannot be done."""
        nbytes, me = length * dtype.itemsize, group.local_ranks.index(group.rank)
        if self.algorithm == "shared" and nbytes <= ONE_BARRIER_BYTES:
            memory = group.share(2 * nbytes, 0)
            if memory is not None:
                halves = [memory.slots[:, at : at + nbytes].view(dtype) for at in (0, nbytes)]
                self.local, self.result = np.zeros(length, dtype), np.zeros(length, dtype)
                self.run = _OneBarrier(group, self.local, halves, me, self.result)
        else:
            memory = group.share(nbytes, nbytes)
            if memory is not None:
                sources = memory.slots[:, :nbytes].view(dtype)
                self.local, self.result = sources[me], memory.common[:nbytes].view(dtype)
                self.run = _TwoBarriers(group, placed.of(group, sources, self.result, [slice(0, length)]))
        return memory is not None


class _TwoBarriers:
    """All have written, each sums its share, all shares are there."""

    def __init__(self, group: Group, way: placed.InNode):
        self._group, self._way = group, way

    def __call__(self) -> None:
        self._group.node_barrier()
        self._way.reduce(0)
        self._group.node_barrier()


class _OneBarrier:
    """Each shows the others a copy, and sums them all. The next call shows the other half: who still reads this one
    has not come to that call's barrier."""

    def __init__(self, group: Group, local: Array, halves: Sequence[np.ndarray], me: int, result: Array):
        self._group, self._local, self._result = group, local, result
        self._turns = cycle([(half[me], half) for half in halves])
        self._whole = slice(0, len(local))

    def __call__(self) -> None:
        own, all_of_them = next(self._turns)
        np.copyto(own, self._local)
        self._group.node_barrier()
        add(self._result, all_of_them, self._whole, self._group)
