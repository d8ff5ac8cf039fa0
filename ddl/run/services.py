"""The services of a real job for its training loop: run folder, watchdog, trace, notes about exceptions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from ddl.checkpoint import Writer
from ddl.comm import Group
from ddl.fault.decision import RankDeath
from ddl.fault.watchdog import Heartbeat
from ddl.metrics import Trace
from ddl.run.folder import RunFolder
from ddl.run.log import RunLog
from ddl.train.services import Services


class JobServices(Services):
    """announce: reports that the job begins. heartbeat: None without fault tolerance. trace: None without one."""

    def __init__(
        self,
        log: RunLog,
        folder: RunFolder,
        announce: Callable[[], None],
        heartbeat: Heartbeat | None = None,
        trace: Trace | None = None,
    ):
        super().__init__(log)
        self.folder, self._announce, self.heartbeat, self.trace = folder, announce, heartbeat, trace

    def beat(self, step: int, phase: str) -> None:
        if self.heartbeat is not None:
            self.heartbeat.beat(step, phase)

    def span(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self.trace is None else self.trace.span(name)

    def open_writer(self, group: Group) -> Writer:
        return self.folder.open_writer(group)

    def claim_folder(self, group: Group) -> None:
        self.folder.hold(group)

    def check_lease(self) -> None:
        self.folder.check_lease()

    def announce(self) -> None:
        self._announce()

    def note_exception(self, error: Exception, death: RankDeath) -> RankDeath:
        if self.heartbeat is None:
            return death
        note = self.heartbeat.note_exception(error, death.step, death.shards)
        return replace(death, error=note["error"], traceback=note["traceback"], phase=note["phase"])
