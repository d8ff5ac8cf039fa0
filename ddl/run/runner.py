"""A job from its settings to its exit status, on one rank: start, resume, train, end.

The settings come from a door (``python -m ddl.train``) or the Python API; the loop is loop.py's."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NoReturn

from ddl.arrays import Device, device
from ddl.arrays.namespace import limit_memory, ranks_on
from ddl.checkpoint.memory import FOLDER_VARIABLE
from ddl.comm import Group, Member, can_respawn, ending, fault_tolerance, mpi, no_probe
from ddl.comm.group import nobody_watches
from ddl.config import Job
from ddl.environment import launched_rank, launched_size, linger
from ddl.errors import ConfigError, DdlError, JobEnded, PeerLost, UserCodeError, UserError
from ddl.fault import inject, startup
from ddl.fault.decision import Death
from ddl.fault.recover import Settings as RecoverySettings
from ddl.fault.recover import survive
from ddl.fault.session import Session
from ddl.fault.watchdog import Heartbeat, read_note, start_companion
from ddl.kernels.backend import use_compiled
from ddl.metrics import Console, Sink, Trace, merge
from ddl.metrics.tensorboard import TensorBoard, writer_class
from ddl.run.agreement import disagreement, essentials
from ddl.run.folder import RunFolder
from ddl.run.log import Journal
from ddl.run.plots import draw_pictures
from ddl.run.setup import announce, set_up
from ddl.train.build import build_task
from ddl.train.loop import Loop
from ddl.train.signals import Signals, Wishes
from ddl.train.state import State
from ddl.train.step import no_span
from ddl.train.task import Task


def run(job: Job, make_task: Callable[[Job], Task] = build_task) -> int:
    """Train ``job``; the exit status that this process should end with.

    Where failures are tolerated, and the job ran under mpirun, ``finish`` has to end the process with it."""
    runner = Runner(job, make_task)
    status = runner.run()
    runner.leave(status)
    return status


class Runner:
    """One rank's way through a job. What it opened is closed when ``run`` returns."""

    def __init__(
        self,
        job: Job,
        make_task: Callable[[Job], Task] = build_task,
        before: Session | None = None,
        in_script: bool = False,
    ):
        """before: what this process has joined already: group and watchdog can be started only once.

        in_script: errors are raised by the script that runs this, and not printed here; the watchdog stays."""
        self.job, self.make_task = job, make_task
        self.wishes = Wishes(
            checkpoint_every_s=job.checkpoint.every_s,
            checkpoint_every_steps=job.checkpoint.every_steps,
            checkpoint_every_epochs=job.checkpoint.every_epochs,
            keep_best=job.checkpoint.keep_best,
            replica=job.checkpoint.replica and bool(os.environ.get(FOLDER_VARIABLE)),
        )
        self._in_script = in_script
        self.heartbeat: Heartbeat | None = before.heartbeat if before is not None else None
        self._running: Group | None = before.group if before is not None else None
        self.group: Group
        self.failure: DdlError | None = None
        self.loop: Loop | None = None
        self._joins = False  # this process was started to replace one that died
        self.journal: Journal | None = None
        self.folder: RunFolder | None = None
        self._lost: list[Member] = []  # in the set-up
        self._trace: Trace | None = None
        self._warnings: list[str] = []

    @property
    def has_started(self) -> bool:
        """Whether there is a group."""
        return hasattr(self, "group")

    def run(self) -> int:
        job = self.job
        task, chaos, problem = self._make_task()
        if job.fault.tolerance != "off" and self._running is None:
            # Before MPI: a process that MPI has set up should not fork.
            self.heartbeat = start_companion(
                launched_rank(),
                hang_timeout_s=job.fault.hang_timeout_s,
                recovery_timeout_s=job.fault.recovery_timeout_s,
            )
        _survival()
        try:
            self._check_joined()
            if self._running is None:
                startup.announce(job.fault.startup_timeout_s, job.run.dir)
                startup.joining()
            self.group = self._running or mpi.start(job.fault.spares, job.fault.tolerance)
            startup.joined()
        except UserError as error:
            return self._refuse(error)
        self._joins = self._running is None and self.group.generation > 0
        if self.heartbeat is not None:
            self.group.waits = self.heartbeat.wait
            if self._running is not None:
                self.heartbeat.wait(False)
                self.heartbeat.limits(job.fault.hang_timeout_s, job.fault.recovery_timeout_s)
        with Signals(self.wishes):
            try:
                return self._train(task, chaos, problem)
            except JobEnded as ended:  # by another rank, for a reason that it has told
                self.end()
                mpi.fail(self._newest_group, ended.exit_status)
                return ended.exit_status
            except Exception as error:
                self._die(error)
            finally:
                self._close()

    def _check_joined(self) -> None:
        """Raises ConfigError where the group that this process is in is not what the settings ask for."""
        if self._running is not None and self.job.fault.tolerance == "on" and not self._running.tolerant:
            raise ConfigError(
                "fault.tolerance is on, but this script has joined its ranks without it (by ddl.init(), or a first "
                "Trainer): let the Trainer that asks for it come first"
            )

    def _make_task(self) -> tuple[Task | None, inject.Script, DdlError | None]:
        """The task and the faults to inject, or why there is no task.

        All ranks talk before one of them ends for that: the others would wait for it in MPI."""
        use_compiled(self.job.train.compiled)
        try:
            if self.job.fault.respawn and fault_tolerance()[0] and not can_respawn():
                raise ConfigError(
                    "fault.respawn is true, but this mpirun would call the job a failure for it: start it with "
                    "`python -m ddl.launch`, or in an environment that `python -m ddl.doctor "
                    "--enable-fault-tolerance` has prepared"
                )
            if self.job.metrics.tensorboard:
                writer_class()  # now, and on every rank: any of them may have to write
            task = self.make_task(self.job)
            ranks = None if self.job.fault.respawn else launched_size() or 1  # respawned ones get higher numbers
            return task, inject.parse(self.job.fault.chaos, ranks, task.total_steps), None
        except UserError as error:
            return None, inject.Script(), error
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            return None, inject.Script(), UserCodeError(f"the job could not be made: {error!r}", text)

    def leave(self, status: int) -> None:
        """Part from the others at the agreed end, and end this process with ``status`` where that is how it is done."""
        if self.has_started:
            if self.heartbeat is not None:
                self.heartbeat.part()  # its companion watches to the very end
            mpi.finish(self.group, status)
            self.group.waits = nobody_watches
        if self.heartbeat is not None:
            self.heartbeat.close()

    def end(self) -> None:
        """All know that the job ends: nobody's death needs a note from here on."""
        if self.heartbeat is not None:
            self.heartbeat.end()

    def _train(self, task: Task | None, chaos: inject.Script, problem: DdlError | None) -> int:
        problem = self._settled(problem, {} if task is None else essentials(self.job, task))
        if problem is not None or task is None:
            return self._refuse(problem)
        local = self.group.local_ranks.index(self.group.rank) if not self.group.is_spare else 0
        try:
            where, problem = device(self.job.comm.device, local), None
        except LookupError as error:
            where, problem = Device(), ConfigError(f"comm.device = {self.job.comm.device!r}: {error}")
        problem = self._settled(problem)
        if problem is not None:
            return self._refuse(problem)
        neighbours = sum(member.node == self.group.me.node for member in self.group.members)
        limit_memory(where, ranks_on(where, neighbours), self.job.comm.gpu_memory)
        state = State(task.model, task.optimizer.slots, task.dtype, task.seed, where)
        if self.job.metrics.trace:
            self._open_trace()
        journal = self.journal = Journal(task, self._sinks, self._say, self.job.metrics.jsonl)
        journal.on_known = self._leave_notes
        folder = self.folder = RunFolder(self.job, journal, self._say)
        loop = self.loop = Loop(
            task,
            self.group,
            where,
            state,
            journal,
            wishes=self.wishes,
            open_writer=lambda: folder.open_writer(loop.group),
            claim=folder.hold,
            look=folder.look,
            announce=lambda: self._announce(where),
            recovery=self._recovery_settings(state),
            beat=self._beat,
            on_error=self._note_error,
            span=self._trace.span if self._trace else no_span,
            respawn=self.job.fault.respawn,
        )
        if self._running is not None:
            self.group.probe = no_probe  # what was to strike the run before this one is over
        if chaos.faults:
            # Before training no step is committed, not even none.
            step: Callable[[], int] = lambda: state.progress.step if loop.is_running else -1  # noqa: E731
            self.group.probe = chaos.probe(self.group.me.identity, step, self._strike)
        if not self._joins:  # a newcomer gets all of that from the others
            resume = self.job.checkpoint.resume
            problem = self._survive(lambda group: set_up(group, loop, folder, resume, self._say))
        if problem is not None:
            return self._refuse(problem)
        journal.lost_at_start(self._lost, state.progress.step)
        loop.start(self.group, self._joins)
        if self.group.is_leader:
            journal.lead()
            self.group.probe("setup.announce")
            self._announce(where)
        failure = loop.run()
        self.group = loop.group
        self._merge_traces()
        if failure is not None:
            return self._refuse(failure)
        if self.job.metrics.plots and self.group.is_leader:
            self._beat(state.progress.step, "plots")
            draw_pictures(loop)
        return loop.status_of(failure)

    def _settled(self, problem: DdlError | None, mine: Mapping[str, Any] | None = None) -> DdlError | None:
        """Why the job cannot begin, on all ranks: the problem of any of them, or essentials (``mine``) that differ."""
        if self._joins and problem is not None:
            raise problem
        if self._joins:
            return None
        return self._survive(lambda group: disagreement(group, problem, mine or {}), problem)

    def _survive(self, action: Callable[[Group], DdlError | None], mine: DdlError | None = None) -> DdlError | None:
        before = self.group.members
        self.group, problem = survive(self.group, action, mine)
        left = {member.identity for member in self.group.members}
        self._lost += [member for member in before if member.identity not in left]
        return problem

    def _announce(self, where: Device) -> None:
        assert self.loop is not None and self.journal is not None
        reason = "fault.tolerance is off" if self.job.fault.tolerance == "off" else _survival()
        if self._running is not None and not self._running.tolerant and fault_tolerance()[0]:
            reason = "the script joined its ranks without tolerance"
        announce(self.loop, self.job, where, reason)
        for line in self._warnings:
            self.journal.warn(line)
        self._warnings.clear()

    def _strike(self, fault: inject.Fault) -> None:
        """An injected fault: the folder is told first, once this rank knows it; a spare does when it steps in."""
        known = self.folder is not None and self.folder.path is not None
        act = inject.told_in(self.folder.notes) if self.folder is not None and known else inject.perform
        act(fault)

    def _recovery_settings(self, state: State) -> RecoverySettings:
        folder = self.folder
        assert folder is not None
        return RecoverySettings(
            min_ranks=self.job.fault.min_ranks,
            # A spare does not know the folder until it steps in; what it would read the others tell it.
            notes=lambda identity: read_note(folder.notes, identity) if folder.path is not None else None,
            beat=lambda phase: self._beat(state.progress.step, f"recover {phase}"),
            recovering=self.heartbeat.recovering if self.heartbeat else nullcontext,
        )

    def _leave_notes(self) -> None:
        if self.heartbeat is not None and self.folder is not None:
            self.heartbeat.leave_notes_in(self.folder.notes, self.group.me.identity)

    @property
    def _newest_group(self) -> Group:
        """Up to the first step that of the set-up, from there on that of the loop."""
        return self.loop.group if self.loop is not None and self.loop.is_running else self.group

    @property
    def _step(self) -> int:
        return 0 if self.loop is None else self.loop.state.progress.step

    def _beat(self, step: int, phase: str) -> None:
        if self.heartbeat is not None:
            self.heartbeat.beat(step, phase)

    def _sinks(self) -> list[Sink]:
        assert self.journal is not None and self.journal.folder is not None
        task, metrics = self.journal.task, self.job.metrics
        sinks: list[Sink] = []
        if metrics.console_every_s:
            per_epoch = task.order.steps_per_epoch
            sinks.append(Console(metrics.console_every_s, steps=task.total_steps, steps_per_epoch=per_epoch))
        if metrics.tensorboard:
            try:
                sinks.append(TensorBoard(self.journal.folder / "tensorboard"))
            except OSError as error:
                self._say(f"there are no files for TensorBoard: {error}")
        return sinks

    def _say(self, message: str) -> None:
        """A line that people should see; before the journal speaks it waits for the banner."""
        if self.journal is not None and self.journal.leads:
            self.journal.warn(message)
        else:
            self._warnings.append(message)

    def _refuse(self, error: DdlError | None) -> int:
        """One line from one rank, and the status that goes with the error.

        The leader speaks, and a spare that alone knows of something; without a group the first process."""
        assert error is not None
        self.failure = error
        one = self.group.is_leader or self.group.is_spare if self.has_started else launched_rank() == 0
        if one and not isinstance(error, JobEnded) and not self._in_script:
            if isinstance(error, UserCodeError) and error.traceback:
                sys.stderr.write(error.traceback.rstrip() + "\n")
            print(f"ddl.train: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        if not self.has_started:  # nobody has met yet
            linger()
        return error.exit_status

    def _note_error(self, error: Exception) -> Death:
        """Leave a note that this rank's own code raised; the note is what the others will know of it."""
        loop, me = self.loop, self.group.me
        assert loop is not None
        death = loop.describe(error)
        if self.heartbeat is None:
            return death
        note = self.heartbeat.note_exception(error, loop.state.progress.step, death.shards)
        told = {name: note[name] for name in ("error", "traceback", "phase")}
        return replace(death, identity=me.identity, **told)

    def _die(self, error: Exception) -> NoReturn:
        """An exception of this rank alone: it ends, and the others go on where that is possible."""
        group, status = self._newest_group, 1
        if self._in_script and len(group.members) == 1:
            raise error
        if isinstance(error, DdlError):
            status = error.exit_status
        text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)).rstrip()
        print(f"rank {group.me.identity}: {text}", file=sys.stderr, flush=True)
        alone = self._joins or (self.loop is not None and self.loop.is_running)
        if group.tolerant and len(group.members) > 1 and alone:
            ending.die()
        self.end()
        mpi.fail(group, status)  # before the first step the others are told to end as well
        raise SystemExit(status)

    def _open_trace(self) -> None:
        """Spans of this rank, waits included; in a group that follows as well, since it takes ``waits`` along."""
        me, told = self.group.me, self.group.waits
        try:
            trace = self._trace = Trace(self.job.metrics.trace, me.identity, me.host)
        except OSError as error:
            self._say(f"there will be no trace of rank {me.identity}: {error}")
            return

        def waits(waiting: bool) -> None:
            told(waiting)
            trace.waits(waiting)

        self.group.waits = waits

    def _merge_traces(self) -> None:
        """The leader makes one file of all ranks', once all are written."""
        if self._trace is None:
            return
        self._beat(self._step, "trace")
        self._trace.close()
        with contextlib.suppress(PeerLost):  # what a rank has written is there, whether it lives or not
            if not self.group.is_spare:
                self.group.barrier()
        if self.group.is_leader:
            merge(self.job.metrics.trace)

    def _close(self) -> None:
        self._beat(self._step, "close")
        if self.loop is not None:
            self.loop.close()
        if self.journal is not None:
            self.journal.close()
        if self._trace is not None:
            self._trace.close()
        if self.heartbeat is not None and self._in_script:
            self.heartbeat.wait(True)  # what the script does now may take as long as it takes


@functools.cache
def _survival() -> str:
    """Why a death is survived in this launch, or not; asked once, since starting MPI changes what tells it."""
    return fault_tolerance()[1]
