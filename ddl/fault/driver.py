"""The recovery driver: run the work of a rank, recover when a rank is lost, and leave together with the others.

Everything that survives failures goes through ``Driver.run``. The steps of one recovery are in recover.py, what to do
is decided in decision.py, and the work itself is a ``Program`` (work.py)."""

from __future__ import annotations

import time

from ddl.comm import Group
from ddl.data import Plan
from ddl.errors import DdlError, JobEnded, PeerLost
from ddl.fault.recover import Leaves, Recovery, RecoverySettings, Report, detection_s
from ddl.fault.work import EndJob, Program


class Driver:
    """Runs ``program`` through one generation after another.

    plan: which rank of ``group`` computes which shards. group: the newest generation.
    reports: what each recovery did. is_running: from here on the other ranks continue if this one ends."""

    def __init__(
        self,
        program: Program,
        group: Group,
        plan: Plan,
        settings: RecoverySettings | None = None,
    ):
        self.program, self.group, self.plan = program, group, plan
        self.recovery = Recovery(program.work, plan, group, settings or RecoverySettings())
        self.reports: list[Report] = []
        self.is_running = False
        self._attached = False
        self._failure: DdlError | None = None

    def run(self) -> DdlError | None:
        """Run the program to its end through any number of failures; returns on every survivor after the agreed end.

        Returns why the job ended early: the same error on all workers, JobEnded with the same status on spares.
        Raises JobEnded if another rank ended the job. Any other exception is this rank's own and ends it alone:
        Leaves if the others continue without it, otherwise the exception itself."""
        self.is_running = True
        while True:
            agreed = False
            try:
                self._run_generation()
                self.group.probe("end.agree")
                # Every member leaves a generation through exactly one agreement. A death before it is recovered from;
                # after it, no rank needs another one any more.
                agreed = True
                if self.group.agree(1):
                    return self._failure
                lost = PeerLost([], self.group.generation, "the agreement on the end")
            except PeerLost as error:
                lost = error
            except JobEnded:
                raise
            except Exception as error:
                lost = self._raised(error)
            try:
                self._recover(lost, agreed)
            except Leaves as leaves:
                assert isinstance(lost.__cause__, Exception)
                leaves.error = lost.__cause__
                raise

    def _run_generation(self) -> None:
        if self.group.is_spare:
            status = self.group.wait_as_spare()
            self._failure = JobEnded(status) if status else None
            return
        try:
            if self._failure is None and not self._attached:
                self._failure, self._attached = self.program.work.attach(self.group, self.plan), True
            if self._failure is None:
                self.program.run()
        except EndJob as end:
            self._failure = end.error
        # If a rank dies from here on, survivors that have not heard of the failure learn it in the recovery.
        self.recovery.failure = self._failure
        if self._failure is not None:
            self.program.abandon(self._failure)
        if self.group.is_leader:
            self.group.release_spares(self.program.exit_status(self._failure))

    def _raised(self, error: Exception) -> PeerLost:
        """Turn an exception of this rank's own code into a failure that all ranks recover from.

        All ranks may have raised the same, so they exchange what they raised before any of them ends."""
        if not self.group.tolerant or len(self.group.members) == 1 or self._failure is not None:
            if self._failure is None:
                self.program.raised_alone(error)
            raise error
        self.recovery.raised = self.program.describe(error)
        if not self.program.work.is_quiet():
            raise error  # two threads in MPI at once would be undefined: the note has to do
        lost = PeerLost([], self.group.generation, "an exception")
        lost.__cause__ = error
        return lost

    def _recover(self, lost: PeerLost, agreed: bool) -> None:
        """Bind to the next generation, whose workers may have to leave at once because of ``self._failure``."""
        raised_s, longest_s = time.time(), self.program.seconds_since_commit()
        failed, owners = self.group.generation, tuple(self.recovery.owners)
        self.program.work.detach()
        began_s = time.time()
        with self.program.span("recovery"):
            self.group, report = self.recovery.recover(self.group, lost, agreed)
        for death in report.deaths:
            # Read only now: by this time the dead rank's companion has written its note.
            note = self.recovery.settings.notes(death.identity)
            report.detect_s[death.identity] = detection_s(note, raised_s, began_s, longest_s)
        self.reports.append(report)
        self.program.recovered(report, failed, owners)
        self._failure, self._attached = report.refusal, not self.group.is_spare
