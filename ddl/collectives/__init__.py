"""Allreduce algorithms, one file each, and the choice among them."""

from ddl.collectives.allreduce import allreduce
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.collectives.contract import check_same_call, reduce_across_ranks
from ddl.collectives.persistent import PersistentAllreduce
from ddl.collectives.table import TABLE

__all__ = [
    "TABLE",
    "PersistentAllreduce",
    "Topology",
    "Tuning",
    "allreduce",
    "check_same_call",
    "choose",
    "reduce_across_ranks",
]
