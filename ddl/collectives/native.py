"""The MPI library's own allreduce: the best for a few bytes, and right for every odd case."""

from __future__ import annotations

from ddl.arrays import Array
from ddl.comm import Group
from ddl.comm.group import check_contiguous


def allreduce(x: Array, group: Group) -> None:
    """Sum ``x`` over all workers, in place; float16 is rounded at each addition that the library makes.

    Raises PeerLost if a member dies on the way; ``x`` is then garbage."""
    check_contiguous(x)
    if group.size > 1:
        group.native_allreduce(x)
