"""This process among the ranks of its job, for scripts: joined once, by whoever comes first, and left once, at the end.

A Trainer, another one after it and a loop of the user's own share the group and the watchdog. How a group is made is
comm's; what is done with it, the caller's."""

from __future__ import annotations

import atexit
from dataclasses import dataclass

from ddl.comm import Group, mpi
from ddl.fault.watchdog import Heartbeat


@dataclass
class Session:
    """group: the newest generation. heartbeat: the watchdog's, where a death is survived."""

    group: Group
    heartbeat: Heartbeat | None = None

    def leave(self) -> None:
        """At the interpreter's end: all ranks part together, so that nobody takes it for a death."""
        if self.heartbeat is not None:
            self.heartbeat.end()
        mpi.part(self.group)


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
