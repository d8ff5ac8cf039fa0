"""The memory checkpoint: the newest state in each node's memory, from which a relaunch resumes if the disk's is older.

It is a store of one checkpoint in /dev/shm. It outlives the ranks, so it exists only where the supervisor (ddl.launch)
has named a folder for it, and the supervisor removes it. /dev/shm is open to every user, so the folder's name cannot be
guessed, and no other user may read or write it. Its checkpoint counts only for the run that wrote it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddl.arrays import Array
from ddl.checkpoint.file import Probe, no_probe
from ddl.checkpoint.store import Store, read_state, silent
from ddl.errors import CheckpointError

FOLDER_VARIABLE = "DDL_REPLICA"


class MemoryStore(Store):
    """The one checkpoint of ``run``, the id that the run folder keeps; another run's is passed over."""

    mode = 0o600

    def __init__(self, folder: Path, run: str, *, say: Callable[[str], None] = silent, probe: Probe = no_probe):
        super().__init__(folder, keep=1, keep_best=False, say=say, probe=probe)
        self.run = run

    def save(self, step: int, arrays: Mapping[str, Array], meta: Mapping[str, Any], score: float | None = None) -> Path:
        return super().save(step, arrays, {**meta, "run": self.run}, score)

    def _state(self, path: Path) -> dict[str, Any]:
        state = read_state(path)
        if state["meta"].get("run") != self.run:
            raise CheckpointError("it is of another run")
        return state


def open_memory_checkpoint(
    run: str,
    environ: Mapping[str, str] = os.environ,
    *,
    say: Callable[[str], None] = silent,
    probe: Probe = no_probe,
) -> MemoryStore | None:
    """The memory checkpoint of this node; None without a supervisor's folder for it. One rank of a node writes it.

    run: the run folder's id. A folder that other users can access is not used, and ``say`` gets a warning.
    A full disk does not affect it; a power cut deletes it."""
    folder = environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    path = Path(folder)
    try:
        with suppress(FileExistsError):
            path.mkdir(0o700)
        found = path.lstat()
    except OSError as error:
        say(f"no checkpoint is kept in memory: {error}")
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        say(f"no checkpoint is kept in memory: {path} is not a folder that this user alone can open")
        return None
    return MemoryStore(path, run, say=say, probe=probe)


def newer_of(disk: Store, memory: Store | None) -> Store:
    """The store to resume from: memory if it has a later step than the disk."""
    return memory if memory is not None and memory.newest_step() > disk.newest_step() else disk
