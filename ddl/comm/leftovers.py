"""Remove shared memory files of Open MPI that stay behind when the rank that made them is killed.

A rank's file is ``/dev/shm/sm_segment.HOST.UID.JOB.NUMBER``. The upper 16 bits of JOB are common to all processes of an
mpirun; the lower 16 bits distinguish the ranks it started from ranks spawned later. The launcher removes most files at
the end, but not those of a spawned rank that died while starting. launcher/mpirun.py cleans up a whole launch."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_SEGMENT = re.compile(r"sm_segment\..+\.(?P<uid>\d+)\.(?P<family>[0-9a-f]{1,4})(?P<job>[0-9a-f]{4})\.\d+")


def remove_segments(folder: Path = SHARED_MEMORY, processes: Path = Path("/proc")) -> list[Path]:
    """Remove the files of this process's mpirun; call it when no rank will open another connection.

    Files that this process has mapped belong to its job. Another file of the same mpirun is removed if no process has
    mapped it, since then the rank that made it is dead."""
    ours = _mapped(processes / "self", folder)
    families = {match["family"] for path in ours if (match := _SEGMENT.fullmatch(path.name))}
    strange = []
    for path in folder.glob("sm_segment.*") if families else ():
        match = _SEGMENT.fullmatch(path.name)
        if match and match["family"] in families and int(match["uid"]) == os.geteuid() and path not in ours:
            strange.append(path)
    if strange:
        used = set[Path]()
        for entry in processes.iterdir():
            if entry.name.isdecimal():
                used |= _mapped(entry, folder)
        strange = [path for path in strange if path not in used]
    gone = sorted([*ours, *strange])
    for path in gone:
        with contextlib.suppress(OSError):  # another rank of the node was faster
            path.unlink()
    return gone


def _mapped(process: Path, folder: Path) -> set[Path]:
    """The segments that a process has mapped; none if it has ended or belongs to another user."""
    try:
        lines = (process / "maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    places = ("/" + line.partition("/")[2] for line in lines if not line.endswith("(deleted)"))
    return {Path(place) for place in places if place.startswith(f"{folder}/sm_segment.")}
