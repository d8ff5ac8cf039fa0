"""An allreduce of the same memory again and again, with everything decided and mapped beforehand.

Where the ranks of a node share memory, ``local`` lies in it: nothing is copied in. Gradients, which
travel with a header and in buckets, have a way of their own (parallel/sums.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ddl.arrays import Array
from ddl.collectives import placed
from ddl.collectives.allreduce import TABLE
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.collectives.shared import workspace
from ddl.comm import Group


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
        nbytes = length * dtype.itemsize
        memory = group.share(nbytes, nbytes)
        if memory is None:
            return False
        sources = memory.slots[:, :nbytes].view(dtype)
        self.local, self.result = sources[group.local_ranks.index(group.rank)], memory.common[:nbytes].view(dtype)
        way = placed.of(group, sources, self.result, [slice(0, length)])
        self.run = lambda: _run(group, way)
        return True


def _run(group: Group, way: placed.NodeReduction) -> None:
    group.node_barrier()
    way.reduce(0)
    group.node_barrier()
