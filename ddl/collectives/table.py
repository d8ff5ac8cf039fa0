"""The registry of collectives: every allreduce by name. ``comm.algorithm``, tuning tables and the bench read it."""

from __future__ import annotations

from collections.abc import Callable

from ddl.arrays import Array
from ddl.collectives import hierarchical, native, ring, shared
from ddl.comm import Group

Allreduce = Callable[[Array, Group], None]

TABLE: dict[str, Allreduce] = {
    "native": native.allreduce,
    "ring": ring.allreduce,
    "shared": shared.allreduce,
    "hierarchical": hierarchical.allreduce,
}
