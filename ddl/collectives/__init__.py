"""Allreduce in several ways, one file each, and the choice among them."""

from ddl.collectives.allreduce import TABLE, allreduce
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.collectives.persistent import PersistentAllreduce
from ddl.collectives.ring import allgather, reduce_scatter

__all__ = ["TABLE", "PersistentAllreduce", "Topology", "Tuning", "allgather", "allreduce", "choose", "reduce_scatter"]
