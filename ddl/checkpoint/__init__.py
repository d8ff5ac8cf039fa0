"""Checkpoints: named arrays on disk and in a node's memory, each complete or absent.

ddl/train defines the arrays and decides when to take a checkpoint."""

from ddl.checkpoint.lease import Owner, RunFolderLease, owner_of
from ddl.checkpoint.memory import newer_of, open_memory_checkpoint
from ddl.checkpoint.store import Entry, Store, read_state
from ddl.checkpoint.writer import Writer

__all__ = [
    "Entry",
    "Owner",
    "RunFolderLease",
    "Store",
    "Writer",
    "newer_of",
    "open_memory_checkpoint",
    "owner_of",
    "read_state",
]
