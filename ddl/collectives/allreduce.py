"""Allreduce by any algorithm of the registry, or by the one that fits the size and the topology."""

from __future__ import annotations

from ddl.arrays import Array
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.collectives.shared import workspace
from ddl.collectives.table import TABLE, Allreduce
from ddl.comm import Group
from ddl.comm.group import check_contiguous
from ddl.registry import resolve


def resolve_algorithm(name: str) -> Allreduce | None:
    """The registry's algorithm ``name``, or the user's "package.module:function"; None for "auto".

    Raises ConfigError, with the closest name of the registry, for an unknown one."""
    algorithm: Allreduce | None = None if name == "auto" else resolve(name, TABLE, "comm.algorithm", ["auto"])
    return algorithm


def allreduce(x: Array, group: Group, algorithm: str = "auto", tuning: Tuning | None = None) -> None:
    """Sum ``x`` over all workers, in place; every worker passes the same size, dtype and algorithm.

    x: contiguous NumPy array. An algorithm that needs shared memory is replaced by "auto" if there is none. The
    order of additions is fixed, so all workers end with the same bits.
    Raises ValueError for a strided array, ConfigError for an unknown algorithm, and PeerLost if a member dies during
    the call; ``x`` is then undefined."""
    check_contiguous(x)
    named = resolve_algorithm(algorithm)
    if group.size == 1:
        return
    topology = Topology.of(group.nodes, workspace(group) is not None)
    if named is None or not topology.allows(algorithm):
        named = TABLE[choose(x.nbytes, topology, tuning)]
    named(x, group)
