"""The supervisor's folder for the memory checkpoint: made in /dev/shm, held by a lock, removed when it is stale.

ddl/checkpoint/memory.py writes the checkpoint."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from ddl.launcher.mpirun import SHARED_MEMORY

PREFIX = f"ddl-replica-{os.uname().nodename}-"


class MemoryFolder:
    """A new folder that only this user can access, under a name that cannot be guessed. This process keeps a lock on
    it, so that no other process takes the folder for a stale one. Raises OSError."""

    def __init__(self, parent: Path = SHARED_MEMORY):
        self._lock = None
        while self._lock is None:  # between its making and its locking another process may have removed it as stale
            self.path = parent / f"{PREFIX}{secrets.token_hex(16)}"
            self.path.mkdir(0o700)
            self._lock = _lock(self.path)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_stale_replicas(parent: Path = SHARED_MEMORY) -> None:
    """Remove this user's folders whose supervisor is gone: folders that no process has locked, of any age.

    Folders of a supervisor on another host, where their lock is, bear that host's name and stay."""
    for path in parent.glob(f"{PREFIX}*") if parent.is_dir() else ():
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock on this user's folder; None if another process holds it or it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(fd)
        if found.st_uid == os.geteuid() and os.path.samestat(found, path.lstat()):
            return fd
    os.close(fd)
    return None
