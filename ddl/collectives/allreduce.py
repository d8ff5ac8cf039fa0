"""One allreduce for everybody: the table of algorithms and the call that picks among them."""

from __future__ import annotations

from collections.abc import Callable

from ddl.arrays import Array
from ddl.collectives import hierarchical, native, ring, shared
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.comm import Group
from ddl.comm.group import check_contiguous
from ddl.errors import UserError

TABLE: dict[str, Callable[[Array, Group], None]] = {
    "native": native.allreduce,
    "ring": ring.allreduce,
    "shared": shared.allreduce,
    "hierarchical": hierarchical.allreduce,
}


def check_algorithm(name: str) -> None:
    """Raises UserError unless ``name`` is "auto" or in the registry."""
    if name != "auto" and name not in TABLE:
        raise UserError(f"comm.algorithm = {name!r}; there are auto, {', '.join(TABLE)}")


def allreduce(x: Array, group: Group, algorithm: str = "auto", tuning: Tuning | None = None) -> None:
    """Sum ``x`` over all workers, in place; every worker calls it with the same size, dtype and algorithm.

    x: contiguous NumPy array. Raises ValueError for a strided one, PeerLost if a member dies on the way;
    ``x`` is then garbage. Summation order is fixed, so all workers end with the same bits."""
    check_contiguous(x)
    check_algorithm(algorithm)
    if group.size == 1:
        return
    topology = Topology.of(group.nodes, shared.workspace(group) is not None)
    if algorithm != "auto" and not topology.allows(algorithm):
        algorithm = "auto"  # asked for shared memory where there is none: the rule knows what is next
    TABLE[choose(x.nbytes, topology, tuning) if algorithm == "auto" else algorithm](x, group)
