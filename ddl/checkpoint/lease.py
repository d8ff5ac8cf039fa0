"""The fence of a run folder: who may write there, so that an older launch or generation cannot.

One small file names the newest owner. Whoever is older, and still alive somewhere, finds it and stops."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ddl.checkpoint.file import replace_file
from ddl.errors import Fenced

FILE = "owner.json"


@dataclass(frozen=True)
class Owner:
    """``serial`` counts the launches on this folder; ``leader`` is the identity of the rank that writes."""

    launch: str
    serial: int
    generation: int
    leader: int


def owner_of(folder: Path) -> Owner | None:
    """Who may write to a run folder; None where nobody has claimed it, or the file cannot be understood."""
    try:
        return Owner(**json.loads((folder / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


class Fence:
    """This process's right to write to a run folder.

    A new launch supersedes older ones; within a launch a higher generation supersedes lower ones, and of
    two leaders of one generation (the two sides of a partition) the second is refused."""

    def __init__(
        self, folder: str | Path, launch: str, generation: int = 0, leader: int = 0, serial: int | None = None
    ):
        """Claim the folder. serial: the number that this launch has already; without it the launch is a new one.

        Raises Fenced if a newer launch, or a newer generation of this one, holds the folder."""
        self.folder = Path(folder)
        found = owner_of(self.folder)
        if serial is None:
            serial = 1 if found is None else found.serial + (found.launch != launch)
        self.owner = Owner(launch, serial, generation, leader)
        self._mark = (0, 0)  # of the file that ``look`` has seen
        self._refuse(found)
        self._write()

    def advance(self, generation: int, leader: int) -> None:
        """Hold the folder for the next generation; called by its leader after a recovery."""
        self.owner = Owner(self.owner.launch, self.owner.serial, generation, leader)
        self._refuse(owner_of(self.folder))
        self._write()

    def check(self) -> None:
        """Raises Fenced if somebody newer owns the folder; called right before anything is made visible in it."""
        self._refuse(owner_of(self.folder))

    def look(self) -> None:
        """``check``, where the file is not the one that was seen last: cheap enough for every step."""
        try:
            found = (self.folder / FILE).stat()
        except OSError:
            return
        mark = (found.st_ino, found.st_mtime_ns)
        if mark != self._mark:
            self.check()
            self._mark = mark

    def _refuse(self, found: Owner | None) -> None:
        mine = self.owner
        if found is None or found == mine or (found.serial, found.generation) < (mine.serial, mine.generation):
            return
        raise Fenced(
            f"{self.folder} belongs to generation {found.generation} of launch {found.launch}; generation "
            f"{mine.generation} of launch {mine.launch} writes nothing more"
        )

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / FILE, json.dumps(asdict(self.owner)).encode())
