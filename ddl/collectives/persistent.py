"""An allreduce of the same memory again and again, with everything decided and mapped beforehand.

Where the ranks of one node share memory, ``local`` lies in it: nothing is copied in. Gradients, which
travel with a header and in buckets, have a way of their own (parallel/sums.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ddl.arrays import Array
from ddl.collectives.allreduce import TABLE
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.collectives.shared import add, runs, workspace
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
        memory = group.share(nbytes, nbytes) if self.algorithm == "shared" and group.size > 1 else None
        self.run: Callable[[], None]
        if memory is not None:
            sources = memory.slots[:, :nbytes].view(dtype)
            me = group.local_ranks.index(group.rank)
            self.local: Array = sources[me]
            self.result: Array = memory.common[:nbytes].view(dtype)
            mine = runs(length, len(group.local_ranks), dtype.itemsize)[me]
            self.run = lambda: self._in_node(group, sources, mine)
            return
        self.local = self.result = np.zeros(length, dtype)
        if self.algorithm == "native":
            self.run = group.prepared_allreduce(self.local)
        else:
            self.run = lambda: TABLE[self.algorithm](self.local, group)

    def _in_node(self, group: Group, sources: np.ndarray, mine: slice) -> None:
        group.node_barrier()
        add(self.result, sources, mine, group)
        group.node_barrier()
