"""Remove files that Open MPI and killed ranks have left on this machine, if they are provably no longer in use.

Call ``remove_leftovers`` before starting mpirun: it fails ("PMIx server's listener thread failed to start") if a dead
one with the same pid has left its session folder. Only files of this user and this host are touched, and only if their
process is gone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from ddl.launcher.mpirun import SHARED_MEMORY

YOUNG_S = 60.0  # a segment may not be mapped yet
HOST = os.uname().nodename
_SESSION = re.compile(r"ompi\.(?P<pid>\d+)")
_ANNOUNCEMENTS = re.compile(rf"\.ddl-startup-{os.geteuid()}-.*prterun-{re.escape(HOST)}-(?P<pid>\d+)@\d+")


def remove_leftovers(temporary: Path | None = None, memory: Path = SHARED_MEMORY) -> list[Path]:
    """Remove session folders and announcements of dead mpiruns and segments of dead ranks; returns what was removed."""
    stale = _stale_folders(temporary or Path(tempfile.gettempdir()))
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return stale + _remove_unmapped({path for path in segments(memory) if _age_s(path) > YOUNG_S})


def segments(folder: Path = SHARED_MEMORY) -> set[Path]:
    """The files that Open MPI's ranks of this user on this host hold in shared memory."""
    return {path for path in folder.glob(f"sm_segment.{HOST}.{os.geteuid()}.*") if _is_mine(path)}


def remove_segments(before: set[Path], folder: Path = SHARED_MEMORY) -> None:
    """Remove the segments that appeared since ``before`` and that no process has mapped: their ranks were killed."""
    _remove_unmapped(segments(folder) - before)


def _remove_unmapped(paths: set[Path]) -> list[Path]:
    """A segment is mapped by its maker for as long as that lives."""
    if not paths:
        return []
    mapped = ""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                mapped += Path(entry.path, "maps").read_text()
    gone = sorted(path for path in paths if f"{path}\n" not in mapped)
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def _stale_folders(temporary: Path) -> list[Path]:
    found = []
    for path in temporary.iterdir() if temporary.is_dir() else ():
        match = _SESSION.fullmatch(path.name) or _ANNOUNCEMENTS.fullmatch(path.name)
        if match and not Path("/proc", match["pid"]).exists() and _is_mine(path) and path.is_dir():
            # Another machine's or container's mpirun has its own name in a session folder on a shared disk.
            others = [one for one in path.glob("pmix.*.tool") if one.name != f"pmix.{HOST}.tool"]
            if not others:
                found.append(path)
    return sorted(found)


def _is_mine(path: Path) -> bool:
    with contextlib.suppress(OSError):
        status = path.lstat()
        return status.st_uid == os.geteuid() and not path.is_symlink()
    return False


def _age_s(path: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


if __name__ == "__main__":
    for removed in remove_leftovers():
        print(f"removed {removed}")
