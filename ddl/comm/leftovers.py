"""Files in shared memory that Open MPI's ranks have made and that nobody will remove once their maker was killed.

A rank's is ``/dev/shm/sm_segment.HOST.UID.JOB.NUMBER``: JOB is 16 bits that all processes of one mpirun have in common
and 16 bits that tell those it started from those that they have spawned. The launcher removes most of them at the end,
but none of a spawned rank that died while it was started. ddl.launch cleans up a whole launch (launcher/mpirun.py)."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_SEGMENT = re.compile(r"sm_segment\..+\.(?P<uid>\d+)\.(?P<family>[0-9a-f]{1,4})(?P<job>[0-9a-f]{4})\.\d+")


def remove_segments(folder: Path = SHARED_MEMORY, processes: Path = Path("/proc")) -> list[Path]:
    """Remove what is left of this process's mpirun; to be called when none of its ranks will talk to a new one.

    What this process has mapped is of its own job. A file of the same mpirun that it has not mapped goes where no
    process has: its maker is dead."""
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
        with contextlib.suppress(OSError):  # a neighbour was faster
            path.unlink()
    return gone


def _mapped(process: Path, folder: Path) -> set[Path]:
    """The segments that a process has mapped; none where it has ended or is somebody else's."""
    try:
        lines = (process / "maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    places = ("/" + line.partition("/")[2] for line in lines if not line.endswith("(deleted)"))
    return {Path(place) for place in places if place.startswith(f"{folder}/sm_segment.")}
