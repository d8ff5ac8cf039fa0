"""The run folder of one rank's job: choosing it, the right to write to it, and the paths in it.

ddl/config interprets the settings that name the folder; log.py writes the log in it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from ddl.checkpoint import RunFolderLease, Store, Writer, open_memory_checkpoint, owner_of
from ddl.comm import Group
from ddl.config import Job
from ddl.config import write as write_config
from ddl.config.folder import holds_run, run_folder
from ddl.errors import ConfigError
from ddl.run.log import RunLog, notes_of


def new_launch() -> str:
    """This launch's id: given by the supervisor, if there is one, so that it recognises its own summary.json."""
    return os.environ.get("DDL_LAUNCH") or f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


class RunFolder:
    """The folder and the launch id. The first leader chooses them, and all workers know them before anything is
    written, so that later leaders continue in the same folder, under the same id.

    say: called with a line about what was skipped or could not be written."""

    def __init__(self, job: Job, log: RunLog, say: Callable[[str], None]):
        self.job, self.log, self._say = job, log, say
        self._chosen: tuple[Path, str] | None = None  # until set-up has entered it in the run log
        self._lease: RunFolderLease | None = None

    @property
    def path(self) -> Path | None:
        return self.log.folder or (self._chosen[0] if self._chosen else None)

    @property
    def launch(self) -> str:
        return self.log.launch or (self._chosen[1] if self._chosen else "")

    @property
    def notes(self) -> Path:
        """The folder for notes about the deaths of this launch's ranks."""
        assert self.path is not None
        return notes_of(self.path, self.launch)

    def choose(self, group: Group) -> None:
        """Choose the folder; called by all workers of ``group``. Raises PeerLost.

        The survivors then choose the same folder if any of them knows it, else nothing has been written to it."""
        mine = self._chosen or ((self._first_choice(), new_launch()) if group.is_leader else None)
        choices = group.gather_objects((self._chosen is not None, mine))
        self._chosen = next((choice for is_old, choice in choices if is_old), choices[0][1])
        group.barrier()  # after it all workers know the choice

    def _first_choice(self) -> Path:
        try:
            return run_folder(self.job)
        except OSError:  # ``claim`` will report why
            return Path(self.job.run.dir or Path("runs", self.job.run.name))

    def claim(self, group: Group) -> None:
        """Acquire the lease for this launch, on the leader. Raises ConfigError if the folder has another run."""
        assert self.path is not None
        owner = owner_of(self.path)
        is_ours = owner is not None and owner.launch == self.launch  # acquired by an earlier leader
        if self.job.run.dir and self.job.checkpoint.resume == "none" and holds_run(self.path) and not is_ours:
            raise ConfigError(
                f"run.dir = {str(self.path)!r} holds a run already, and checkpoint.resume is none; "
                "choose another folder, or checkpoint.resume = auto to continue it"
            )
        self._lease = RunFolderLease(self.path, self.launch, group.generation, group.me.identity)
        write_config(self.job, self.path / "config.toml")
        log = self.log
        log.folder, log.launch = self.path, self.launch
        log.run, log.serial = self._lease.owner.run, self._lease.owner.serial

    def hold(self, group: Group) -> None:
        """Acquire the lease for this generation. Raises LeaseLost if a newer one holds it."""
        assert self.path is not None
        if self._lease is None:
            me, log = group.me.identity, self.log
            self._lease = RunFolderLease(self.path, self.launch, group.generation, me, log.serial, log.run)
        else:
            self._lease.advance(group.generation, group.me.identity)

    def check_lease(self) -> None:
        """Raises LeaseLost if a newer generation or launch holds the folder; costs one ``stat``."""
        if self._lease is not None:
            try:
                if self._lease.check_if_changed():
                    write_config(self.job, self._lease.folder / "config.toml")
                    self._say(f"{self._lease.folder} was deleted and is made again; the lines of its files are lost")
            except OSError:  # it is tried again after the next step
                return

    def open_writer(self, group: Group) -> Writer:
        """The writer of checkpoints: to disk on the leader, and to memory if that is asked for. Raises LeaseLost."""
        assert self.path is not None
        settings, store = self.job.checkpoint, None
        if group.is_leader:
            self.hold(group)
            store = Store(
                self.path / "checkpoints",
                settings.keep,
                settings.keep_best,
                lease=self._lease,
                say=self._say,
                probe=group.probe,
            )
        return Writer(
            store,
            open_memory_checkpoint(self.log.run, say=self._say) if settings.replica else None,
            say=self.log.warn,
            saved=self.log.checkpointed,
        )
