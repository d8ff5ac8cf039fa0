"""This process among the ranks of its job, for scripts: joined once, by whoever comes first, and left once, at the end.

A Trainer, another one after it and a loop of the user's own share the group and the watchdog. How a group is made is
comm's; what is done with it, the caller's."""

from __future__ import annotations

import atexit
import os
import sys
from dataclasses import dataclass
from types import TracebackType

from ddl.comm import Group, mpi
from ddl.errors import DdlError, UserCodeError
from ddl.fault.watchdog import Heartbeat


@dataclass
class Session:
    """group: the newest generation. heartbeat: the watchdog's, where a death is survived. refusal: what all ranks alike
    were told last: where the script does not catch it, one of them tells of it and all end with its status."""

    group: Group
    heartbeat: Heartbeat | None = None
    refusal: DdlError | None = None

    def __post_init__(self) -> None:
        self._previous = sys.excepthook
        sys.excepthook = self._uncaught

    def leave(self) -> None:
        """At the interpreter's end: all ranks part together, so that nobody takes it for a death."""
        if self.heartbeat is not None:
            self.heartbeat.end()
        mpi.part(self.group)

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if error is self.refusal and self.group.tolerant:
            self.end_with(self.refusal)
        self._previous(kind, error, trace)

    def end_with(self, refusal: DdlError) -> None:
        """Each rank ends with the error's status; one of them tells of it. Called by all, where deaths are survived."""
        if self.group.is_leader:
            if isinstance(refusal, UserCodeError) and refusal.traceback:
                print(refusal.traceback.rstrip(), file=sys.stderr)
            print(f"{os.path.basename(sys.argv[0])}: {refusal}", file=sys.stderr, flush=True)
        if self.heartbeat is not None:
            self.heartbeat.part()
        mpi.finish(self.group, refusal.exit_status)


_session: Session | None = None


def current() -> Session | None:
    """What this process has joined so far; None before the first."""
    return _session


def hold(group: Group, heartbeat: Heartbeat | None = None) -> Session:
    """Keep ``group``, the first or a later generation of it, for all who follow in this process."""
    global _session
    if _session is None:
        _session = Session(group, heartbeat)
        atexit.register(_session.leave)
    else:
        _session.group = group
    return _session
