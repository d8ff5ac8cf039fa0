"""A persistent allreduce, after MPI_Allreduce_init: the same memory is summed many times, and set up once.

If the ranks of a node share memory, ``local`` lies in it, so that nothing is copied in or out. Training has its own
buffers on the same code, since gradients come with a header and in buckets (ddl/parallel/sums.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ddl.arrays import Array
from ddl.collectives.allreduce import resolve_algorithm
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.collectives.node_reduction import node_reduction
from ddl.collectives.shared import workspace
from ddl.collectives.table import TABLE
from ddl.comm import Group


class PersistentAllreduce:
    """Write ``local``, call ``run``, read ``result``: the sum over all workers, equal bits on each.

    length: elements on every rank. All workers construct it, and call ``run``, together. ``result`` is valid until the
    next ``run`` and may be ``local``. algorithm: the name actually used, never "auto".
    Raises ConfigError for an unknown algorithm, and PeerLost if a member dies during ``run``; both arrays are then
    undefined."""

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
        named = resolve_algorithm(algorithm)
        topology = Topology.of(group.nodes, group.size > 1 and workspace(group) is not None)
        chosen = choose(nbytes, topology, tuning, in_place=True) if named is None else algorithm
        self.algorithm = chosen if topology.allows(chosen) else choose(nbytes, Topology.of(group.nodes, False))
        self.run: Callable[[], None]
        if group.size > 1 and self.algorithm in ("shared", "hierarchical") and self._share(group, length, dtype):
            return
        self.local: Array = np.zeros(length, dtype)
        self.result: Array = self.local
        if self.algorithm == "native":
            self.run = group.prepared_allreduce(self.local)
        else:
            allreduce = named if named and self.algorithm == algorithm else TABLE[self.algorithm]
            self.run = lambda: allreduce(self.local, group)

    def _share(self, group: Group, length: int, dtype: np.dtype) -> bool:
        """Place the arrays in shared memory; False on all workers if that is impossible."""
        nbytes = length * dtype.itemsize
        memory = group.share(nbytes, nbytes)
        if memory is None:
            return False
        sources = memory.slots[:, :nbytes].view(dtype)
        self.local, self.result = sources[group.local_ranks.index(group.rank)], memory.common[:nbytes].view(dtype)
        reduction = node_reduction(group, sources, self.result, [slice(0, length)])

        def run() -> None:
            group.node_barrier()
            reduction.reduce(0)
            group.node_barrier()

        self.run = run
        return True
