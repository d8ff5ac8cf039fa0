"""Allreduce algorithms, one file each, and the choice among them."""

from ddl.collectives.allreduce import allreduce
from ddl.collectives.choose import Topology, Tuning, choose
from ddl.collectives.contract import (
    Call,
    check_same_call,
    check_same_values,
    end_script,
    reduce_across_ranks,
    shadow_the_rest,
)
from ddl.collectives.persistent import PersistentAllreduce
from ddl.collectives.table import TABLE

__all__ = [
    "TABLE",
    "Call",
    "PersistentAllreduce",
    "Topology",
    "Tuning",
    "allreduce",
    "check_same_call",
    "check_same_values",
    "choose",
    "end_script",
    "reduce_across_ranks",
    "shadow_the_rest",
]
