"""The newest state in the memory of each node: what a relaunch continues from when the disk holds an older one.

It is a store of one checkpoint in /dev/shm. It outlives the ranks, so it exists only where the supervisor
(ddl.launch) made its folder, and the supervisor removes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ddl.checkpoint.file import Probe, no_probe
from ddl.checkpoint.store import Store, silent

FOLDER_VARIABLE = "DDL_REPLICA"


def open_replica(
    environ: Mapping[str, str] = os.environ,
    *,
    say: Callable[[str], None] = silent,
    probe: Probe = no_probe,
) -> Store | None:
    """The replica of this node; None when no supervisor owns a folder for it. One rank of a node writes it.

    A replica is in memory: a full disk does not hurt it, a power cut ends it."""
    folder = environ.get(FOLDER_VARIABLE)
    return Store(Path(folder), keep=1, keep_best=False, say=say, probe=probe) if folder else None


def newer_of(disk: Store, replica: Store | None) -> Store:
    """Where to continue from: the replica if it holds a later step than the disk, else the disk."""
    return replica if replica is not None and replica.newest_step() > disk.newest_step() else disk
