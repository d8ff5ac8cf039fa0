"""The memory checkpoint: the newest state in each node's memory, from which a relaunch resumes if the disk's is older.

It is a store of one checkpoint in /dev/shm. It outlives the ranks, so it exists only where the supervisor (ddl.launch)
has created its folder, and the supervisor removes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ddl.checkpoint.file import Probe, no_probe
from ddl.checkpoint.store import Store, silent

FOLDER_VARIABLE = "DDL_REPLICA"


def open_memory_checkpoint(
    environ: Mapping[str, str] = os.environ,
    *,
    say: Callable[[str], None] = silent,
    probe: Probe = no_probe,
) -> Store | None:
    """The memory checkpoint of this node; None without a supervisor's folder for it. One rank of a node writes it.

    A full disk does not affect it; a power cut deletes it."""
    folder = environ.get(FOLDER_VARIABLE)
    return Store(Path(folder), keep=1, keep_best=False, say=say, probe=probe) if folder else None


def newer_of(disk: Store, memory: Store | None) -> Store:
    """The store to resume from: memory if it has a later step than the disk."""
    return memory if memory is not None and memory.newest_step() > disk.newest_step() else disk
