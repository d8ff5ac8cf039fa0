"""This process as a rank of its job, for scripts: joined once, by the first caller, and left once, at the end.

A Trainer, a later Trainer and the user's own training loop share the group and the watchdog."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ddl.comm import Group, ending, fault_tolerance, mpi
from ddl.environment import launched_rank
from ddl.errors import DdlError, DifferentCalls, UserCodeError
from ddl.fault import startup
from ddl.fault.watchdog import HANG_TIMEOUT_S, Heartbeat, start_companion


@dataclass
class Session:
    """group: the newest generation. heartbeat: of the watchdog, with fault tolerance. refusal: the last error that was
    raised alike on all ranks: if the script does not catch it, one rank prints it and all end with its status.
    before_leaving: waits at the end of the script until all ranks have come there."""

    group: Group
    heartbeat: Heartbeat | None = None
    refusal: DdlError | None = None
    before_leaving: Callable[[Group], None] = lambda group: None

    def __post_init__(self) -> None:
        self._replaced = ending.on_uncaught(self._uncaught)

    def leave(self) -> None:
        """At the interpreter's end: all ranks leave together, so that none of them looks dead to the others."""
        if self.heartbeat is not None:
            self.heartbeat.end()
        try:
            self.before_leaving(self.group)
        except DdlError:
            if not self.group.tolerant:
                ending.leave(1)  # another rank has failed, and this one is needed for its calls
        mpi.part(self.group)

    def _uncaught(self, error: BaseException) -> None:
        self.end_if_refused(error)
        if isinstance(error, DifferentCalls) and self.group.tolerant:
            # No single rank is at fault: otherwise the others would take this rank for lost and keep training.
            ending.show(error)
            mpi.fail(self.group, error.exit_status)
        self._replaced(error)

    def end_if_refused(self, error: BaseException) -> None:
        """If ``error`` was raised alike on all ranks: print it on one rank, and end all with its status. At a prompt it
        is an error like others."""
        if error is not self.refusal or sys.flags.interactive or "ps1" in vars(sys):
            return
        if self.group.is_leader:
            if isinstance(error, UserCodeError) and error.traceback:
                print(error.traceback.rstrip(), file=sys.stderr)
            print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr, flush=True)
        if not self.group.tolerant:
            raise SystemExit(self.refusal.exit_status)  # the interpreter leaves in order, by ``leave``
        if self.heartbeat is not None:
            self.heartbeat.part()
        mpi.finish(self.group, self.refusal.exit_status)


_session: Session | None = None


def current() -> Session | None:
    """The session of this process; None before it has joined a group."""
    return _session


def join(hang_timeout_s: float) -> Session:
    """Join the job with fault tolerance; this process must not have joined it before. It counts as waiting for others
    (``Heartbeat.wait``) until its caller says that it works."""
    # Before MPI: a process that has started MPI should not fork.
    heartbeat = start_companion(launched_rank(), hang_timeout_s=hang_timeout_s)
    heartbeat.wait(True)
    reason = fault_tolerance()[1]  # before MPI changes the environment
    with startup.meeting(startup.OF_SCRIPTS_S):
        group = mpi.start()
    group.waits = heartbeat.wait
    if group.size > 1 and group.is_leader and not group.tolerant:
        print(f"ddl: a rank's death ends this job ({reason})", file=sys.stderr, flush=True)
    return hold(group, heartbeat)


def joined() -> Group:
    """The group of this process, which joins the job if no caller has done so yet."""
    return (_session or join(HANG_TIMEOUT_S)).group


def hold(group: Group, heartbeat: Heartbeat | None = None) -> Session:
    """Make ``group``, the first or a later generation, the one that later callers in this process use."""
    global _session
    if _session is None:
        _session = Session(group, heartbeat)
        atexit.register(_session.leave)
    else:
        _session.group = group
    return _session
