"""The lease of a run folder: only the newest launch and generation may write there.

A small file names the newest owner. An older leader that is still running somewhere finds it there and stops."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ddl.checkpoint.file import replace_file
from ddl.errors import LeaseLost
from ddl.reading import parse_object, read_regular, take

FILE = "owner.json"


@dataclass(frozen=True)
class Owner:
    """``serial`` counts the launches on this folder; ``leader`` is the identity of the rank that writes.

    run: an id that the folder keeps for all its launches, to recognise the run's checkpoints in memory."""

    launch: str
    serial: int
    generation: int
    leader: int
    run: str = ""


def owner_of(folder: Path) -> Owner | None:
    """The owner of a run folder; None if it has none, or if the file cannot be read."""
    try:
        values = parse_object(read_regular(folder / FILE))
        serial, generation, leader = (take(values, name, int) for name in ("serial", "generation", "leader"))
        return Owner(take(values, "launch", str), serial, generation, leader, take({"run": "", **values}, "run", str))
    except (OSError, ValueError):
        return None


class RunFolderLease:
    """This process's right to write to a run folder.

    A new launch supersedes older ones, and within a launch a higher generation supersedes lower ones. Of two leaders
    of the same generation (the two sides of a partition) the second is refused."""

    def __init__(
        self,
        folder: str | Path,
        launch: str,
        generation: int = 0,
        leader: int = 0,
        serial: int | None = None,
        run: str = "",
    ):
        """Acquire the lease. serial: this launch's number if it has one already; None for a new launch. run: the run's
        id if it is known; else that of the folder, or a new one.

        Raises LeaseLost if a newer launch, or a newer generation of this one, holds the folder."""
        self.folder = Path(folder)
        found = owner_of(self.folder)
        if serial is None:
            serial = 1 if found is None else found.serial + (found.launch != launch)
        run = run or (found.run if found is not None else "") or uuid.uuid4().hex
        self.owner = Owner(launch, serial, generation, leader, run)
        self._mark = (0, 0)  # of the file that was checked last
        self._refuse(found)
        self._write()

    def advance(self, generation: int, leader: int) -> None:
        """Renew the lease for the next generation; called by its leader after a recovery."""
        self.owner = replace(self.owner, generation=generation, leader=leader)
        self._refuse(owner_of(self.folder))
        self._write()

    def check(self) -> None:
        """Raises LeaseLost if a newer owner holds the folder; called right before anything becomes visible in it."""
        self._refuse(owner_of(self.folder))

    def check_if_changed(self) -> bool:
        """``check``, but only if the file has changed: cheap enough for every step.

        True where the folder has been deleted; it is then made again, with this lease in it."""
        try:
            status = (self.folder / FILE).stat()
        except FileNotFoundError:
            self._write()
            return True
        except OSError:
            return False
        mark = (status.st_ino, status.st_mtime_ns)
        if mark != self._mark:
            self.check()
            self._mark = mark
        return False

    def _refuse(self, found: Owner | None) -> None:
        mine = self.owner
        if found is None or found == mine or (found.serial, found.generation) < (mine.serial, mine.generation):
            return
        raise LeaseLost(
            f"{self.folder} belongs to generation {found.generation} of launch {found.launch}; generation "
            f"{mine.generation} of launch {mine.launch} writes nothing more"
        )

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / FILE, json.dumps(asdict(self.owner)).encode())
