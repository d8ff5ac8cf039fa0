"""The run folder, as one rank holds it: which one it is, the right to write to it, and what lies where in it.

Where a run's folder is by the settings is config's; what the leader writes there is journal.py's."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from ddl.checkpoint import Fence, Store, Writer, open_replica, owner_of
from ddl.comm import Group
from ddl.config import Job
from ddl.config import write as write_config
from ddl.config.folder import holds_run, run_folder
from ddl.errors import ConfigError
from ddl.run.log import Journal, notes_of


def new_launch() -> str:
    """This launch's id: the supervisor's, where there is one, so that it knows its own summary.json."""
    return os.environ.get("DDL_LAUNCH") or f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


class RunFolder:
    """Folder and launch are chosen once, by the first leader, and known to all workers before anything is written:
    whoever leads after it goes on in the same place, under the same name.

    say: told what was passed over, or could not be written."""

    def __init__(self, job: Job, journal: Journal, say: Callable[[str], None]):
        self.job, self.journal, self._say = job, journal, say
        self._chosen: tuple[Path, str] | None = None  # until the set-up has put it into the journal
        self._fence: Fence | None = None

    @property
    def path(self) -> Path | None:
        return self.journal.folder or (self._chosen[0] if self._chosen else None)

    @property
    def launch(self) -> str:
        return self.journal.launch or (self._chosen[1] if self._chosen else "")

    @property
    def notes(self) -> Path:
        """Where this launch's ranks leave word of how they died."""
        assert self.path is not None
        return notes_of(self.path, self.launch)

    def choose(self, group: Group) -> None:
        """All workers of ``group`` together. Raises PeerLost; then the next ones choose the same, if any of them knows
        it, and another one at most where nothing has been written."""
        mine = self._chosen or ((self._first_choice(), new_launch()) if group.is_leader else None)
        told = group.gather_objects((self._chosen is not None, mine))
        self._chosen = next((choice for is_old, choice in told if is_old), told[0][1])
        group.barrier()  # behind it all know

    def _first_choice(self) -> Path:
        try:
            return run_folder(self.job)
        except OSError:  # claiming it will tell why
            return Path(self.job.run.dir or Path("runs", self.job.run.name))

    def claim(self, group: Group) -> None:
        """The leader takes the folder for this launch. Raises ConfigError where it is another run's, OSError."""
        assert self.path is not None
        owner = owner_of(self.path)
        is_ours = owner is not None and owner.launch == self.launch  # an earlier leader has been here
        if self.job.run.dir and self.job.checkpoint.resume == "none" and holds_run(self.path) and not is_ours:
            raise ConfigError(
                f"run.dir = {str(self.path)!r} holds a run already, and checkpoint.resume is none; "
                "choose another folder, or checkpoint.resume = auto to go on"
            )
        self._fence = Fence(self.path, self.launch, group.generation, group.me.identity)
        write_config(self.job, self.path / "config.toml")
        journal = self.journal
        journal.folder, journal.launch, journal.serial = self.path, self.launch, self._fence.owner.serial

    def hold(self, group: Group) -> None:
        """This generation writes here from now on. Raises Fenced where a newer one does."""
        assert self.path is not None
        if self._fence is None:
            me, serial = group.me.identity, self.journal.serial
            self._fence = Fence(self.path, self.launch, group.generation, me, serial)
        else:
            self._fence.advance(group.generation, group.me.identity)

    def look(self) -> None:
        """Raises Fenced where a newer generation holds the folder; costs a glance at the file that says so."""
        if self._fence is not None:
            self._fence.look()

    def open_writer(self, group: Group) -> Writer:
        """What writes checkpoints: to disk on the leader, and to memory where copies are kept. Raises Fenced."""
        assert self.path is not None
        settings, store = self.job.checkpoint, None
        if group.is_leader:
            self.hold(group)
            store = Store(
                self.path / "checkpoints",
                settings.keep,
                settings.keep_best,
                fence=self._fence,
                say=self._say,
                probe=group.probe,
            )
        return Writer(
            store,
            open_replica(say=self._say) if settings.replica else None,
            say=self.journal.warn,
            saved=self.journal.checkpointed,
        )
