"""A job on one rank, from its settings to its exit status: start, resume, train, end.

Settings come from a command (``python -m ddl.train``) or from the Python API; training is in train/loop.py."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NoReturn

from ddl.arrays import Device, device
from ddl.arrays.namespace import limit_memory, ranks_on
from ddl.checkpoint.memory import FOLDER_VARIABLE
from ddl.comm import Group, Member, ending, fault_tolerance, mpi, no_probe
from ddl.comm.group import no_watchdog
from ddl.config import Job
from ddl.environment import REGAINS_VARIABLE, launched_rank, launched_size, linger
from ddl.errors import ConfigError, DdlError, JobEnded, PeerLost, UserCodeError, UserError
from ddl.fault import inject, startup
from ddl.fault.recover import RecoverySettings, survive
from ddl.fault.session import Session
from ddl.fault.watchdog import BEFORE_STEPS, HANG_TIMEOUT_S, STOP_TIMEOUT_S, Heartbeat, read_note, start_companion
from ddl.kernels import compile_cache
from ddl.kernels.backend import is_compiled, on_compilation_progress, use_compiled
from ddl.metrics import Trace, merge
from ddl.metrics.tensorboard import writer_class
from ddl.output import print_past_launcher
from ddl.run.agreement import disagreement, essentials
from ddl.run.folder import RunFolder
from ddl.run.log import RunLog
from ddl.run.plots import draw_pictures
from ddl.run.services import JobServices
from ddl.run.setup import announce, set_up
from ddl.run.sinks import open_sinks
from ddl.train.build import build_task
from ddl.train.loop import Loop
from ddl.train.signals import Signals, StepRequest
from ddl.train.staged import first_state
from ddl.train.state import TrainingState
from ddl.train.task import Task


def run(job: Job, make_task: Callable[[Job], Task] = build_task) -> int:
    """Train ``job``; returns the exit status for this process.

    With fault tolerance under mpirun this does not return: the process ends here, with that status."""
    runner = Runner(job, make_task)
    status = runner.run()
    runner.leave(status)
    return status


class Runner:
    """Runs a job on one rank. Everything it opened is closed when ``run`` returns."""

    def __init__(
        self,
        job: Job,
        make_task: Callable[[Job], Task] = build_task,
        before: Session | None = None,
        in_script: bool = False,
    ):
        """before: the session that this process has joined already, since MPI and the watchdog start only once.

        in_script: the calling script raises errors, so they are not printed here; the watchdog keeps running."""
        self.job, self.make_task = job, make_task
        self.request = StepRequest(
            checkpoint_every_s=job.checkpoint.every_s,
            checkpoint_every_steps=job.checkpoint.every_steps,
            checkpoint_every_epochs=job.checkpoint.every_epochs,
            keep_best=job.checkpoint.keep_best,
            in_memory=job.checkpoint.replica and bool(os.environ.get(FOLDER_VARIABLE)),
            copy_every_s=job.checkpoint.replica_every_s,
            all_ranks=job.fault.respawn and bool(self._regains),
        )
        self._in_script = in_script
        self.heartbeat: Heartbeat | None = before.heartbeat if before is not None else None
        self._running: Group | None = before.group if before is not None else None
        self.group: Group  # once ``has_started``
        self.has_started = False
        self.failure: DdlError | None = None
        self.loop: Loop | None = None
        self.log: RunLog | None = None
        self.folder: RunFolder | None = None
        self._lost: list[Member] = []  # during set-up
        self._trace: Trace | None = None
        self._warnings: list[str] = []
        self._essentials: dict[str, Any] = {}

    @property
    def _regains(self) -> int | None:
        """How often the supervisor still starts all ranks again because one was lost; None without a supervisor."""
        return int(os.environ[REGAINS_VARIABLE]) if REGAINS_VARIABLE in os.environ else None

    def run(self) -> int:
        job = self.job
        if self._running is None:
            startup.announce(job.fault.startup_timeout_s, job.run.dir)
        task, chaos, problem = self._make_task()
        if self._limits()["hang_timeout_s"] and self._running is None:
            # Before MPI: a process that has started MPI should not fork.
            self.heartbeat = start_companion(launched_rank(), **self._limits())
            on_compilation_progress(self.heartbeat.progress)
        _survival()
        try:
            self._check_joined()
            with startup.meeting(job.fault.startup_timeout_s, job.run.dir) if self._running is None else nullcontext():
                self.group = self._running or mpi.start(job.fault.spares, job.fault.tolerance)
            self.has_started = True
        except UserError as error:
            return self._refuse(error)
        if self.heartbeat is not None:
            self.group.waits = self.heartbeat.wait
            if self._running is not None:
                self.heartbeat.wait(False)
                self.heartbeat.limits(**self._limits())
            self._beat(BEFORE_STEPS, "set-up")
        with Signals(self.request):
            try:
                return self._train(task, chaos, problem)
            except JobEnded as ended:  # by another rank, which printed the reason
                self.end()
                mpi.fail(self._newest_group, ended.exit_status)
                return ended.exit_status
            except Exception as error:
                self._die(error)
            finally:
                self._close()

    def _limits(self) -> dict[str, float]:
        """The watchdog's. A stopped rank need not be given up soon if no rank could train without it."""
        fault, tolerant = self.job.fault, self.job.fault.tolerance != "off"
        hang_s = fault.hang_timeout_s
        if hang_s == "auto":
            hang_s = HANG_TIMEOUT_S if tolerant else 0.0
        stop_s = STOP_TIMEOUT_S if tolerant else hang_s
        return {"hang_timeout_s": hang_s, "recovery_timeout_s": fault.recovery_timeout_s, "stop_timeout_s": stop_s}

    def _check_joined(self) -> None:
        """Raises ConfigError if the group that this process is in does not match the settings."""
        if self._running is not None and self.job.fault.tolerance == "on" and not self._running.tolerant:
            raise ConfigError(
                "fault.tolerance is on, but this script has joined its ranks without it (by ddl.init(), or an earlier "
                "Trainer): create the Trainer that needs it first"
            )

    def _make_task(self) -> tuple[Task | None, inject.Script, DdlError | None]:
        """The task and the faults to inject, or why there is no task.

        The error is returned, not raised: all ranks exchange it, since they would wait in MPI for one that ended."""
        use_compiled(self.job.train.compiled)
        if is_compiled() or compile_cache.notes:
            self._warnings += compile_cache.notes
        try:
            if self.job.fault.respawn and self._regains is None:
                raise ConfigError(
                    "fault.respawn is true, but mpirun cannot regain a lost rank: where the new process dies as it "
                    "starts, MPI_Comm_spawn and MPI_Comm_connect never return on the others (Open MPI 5.0, 5 of 5 "
                    "trials); start the job with `python -m ddl.launch`, which starts all ranks again at a checkpoint"
                )
            if self.job.metrics.tensorboard:
                writer_class()  # checked now, on every rank: each may become the leader
            task = self.make_task(self.job)
            self._essentials = essentials(self.job, task)
            return task, inject.parse(self.job.fault.chaos, launched_size() or 1, task.total_steps), None
        except UserError as error:
            return None, inject.Script(), error
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            return None, inject.Script(), UserCodeError(f"the job could not be made: {error!r}", text)

    def leave(self, status: int) -> None:
        """Leave the group at the agreed end; with fault tolerance this also ends the process, with ``status``."""
        if self.has_started:
            if self.heartbeat is not None:
                self.heartbeat.part()  # the companion watches until the process is gone
            mpi.finish(self.group, status)
            self.group.waits = no_watchdog
        if self.heartbeat is not None:
            self.heartbeat.close()

    def end(self) -> None:
        """All ranks know that the job ends: from here on a death needs no note."""
        if self.heartbeat is not None:
            self.heartbeat.end()

    def _train(self, task: Task | None, chaos: inject.Script, problem: DdlError | None) -> int:
        problem = self._settled(problem, self._essentials)
        if problem is not None or task is None:
            return self._refuse(problem)
        local = self.group.local_ranks.index(self.group.rank) if not self.group.is_spare else 0
        try:
            where, problem = device("cpu" if task.model.on_host or task.pipeline else self.job.comm.device, local), None
        except LookupError as error:
            where, problem = Device(), ConfigError(f"comm.device = {self.job.comm.device!r}: {error}")
        problem = self._settled(problem)
        if problem is not None:
            return self._refuse(problem)
        neighbours = sum(member.node == self.group.me.node for member in self.group.members)
        limit_memory(where, ranks_on(where, neighbours), self.job.comm.gpu_memory)
        state = first_state(task, where)
        if self.job.metrics.trace:
            self._open_trace()
        log = self.log = RunLog(task, lambda: open_sinks(self.job, log, self._say), self._say, self.job.metrics.jsonl)
        log.on_known = self._leave_notes
        folder = self.folder = RunFolder(self.job, log, self._say)
        loop = self.loop = Loop(
            task,
            self.group,
            where,
            state,
            JobServices(log, folder, self._announce, self.heartbeat, self._trace),
            request=self.request,
            recovery=self._recovery_settings(state),
        )
        if self._running is not None:
            self.group.probe = no_probe  # faults that were scripted for the previous run are over
        if chaos.faults:
            # -1 during set-up: a fault at step 0 is meant for the first step.
            step: Callable[[], int] = lambda: state.progress.step if loop.driver.is_running else -1  # noqa: E731
            self.group.probe = chaos.probe(self.group.me.identity, step, self._strike)
        resume = self.job.checkpoint.resume
        problem = self._survive(lambda group: set_up(group, loop, folder, resume, self._say))
        if problem is not None:
            return self._refuse(problem)
        log.lost_at_start(self._lost, state.progress.step)
        loop.start(self.group)
        if self.group.is_leader:
            log.lead()
            self.group.probe("setup.announce")
            self._announce()
        failure = loop.train()
        self.group = loop.group
        self._merge_traces()
        if failure is not None:
            return self._refuse(failure)
        if self.group.is_leader:
            self._beat(state.progress.step, "plots")
            draw_pictures(loop, log, self.job.metrics)
        if loop.status == "stopped" and self.request.interrupted and self.group.is_leader and launched_size():
            print_past_launcher(f"ddl.train: the state of step {self._step} is saved in {log.folder}")
        return loop.exit_status(failure)

    def _settled(self, problem: DdlError | None, mine: Mapping[str, Any] | None = None) -> DdlError | None:
        """On every rank, the problem that keeps any rank from starting: its own, another rank's, or different
        essentials (``mine``)."""
        return self._survive(lambda group: disagreement(group, problem, mine or {}), problem)

    def _survive(self, action: Callable[[Group], DdlError | None], mine: DdlError | None = None) -> DdlError | None:
        before = self.group.members
        self.group, problem = survive(self.group, action, mine)
        left = {member.identity for member in self.group.members}
        self._lost += [member for member in before if member.identity not in left]
        return problem

    def _announce(self) -> None:
        assert self.loop is not None and self.log is not None
        reason = "fault.tolerance is off" if self.job.fault.tolerance == "off" else _survival()
        if self._running is not None and not self._running.tolerant and fault_tolerance()[0]:
            reason = "the script joined its ranks without tolerance"
        announce(self.loop, self.log, self.job, reason)
        for line in self._warnings:
            self.log.warn(line)
        self._warnings.clear()

    def _strike(self, fault: inject.Fault) -> None:
        """Perform an injected fault, after an entry in the run folder if this rank knows it; a spare does not."""
        known = self.folder is not None and self.folder.path is not None
        act = inject.recorded_in(self.folder.notes) if self.folder is not None and known else inject.perform
        act(fault)

    def _recovery_settings(self, state: TrainingState) -> RecoverySettings:
        folder = self.folder
        assert folder is not None
        return RecoverySettings(
            min_ranks=self.job.fault.min_ranks,
            # A spare does not know the folder until it is promoted; the other ranks send it what they read.
            notes=lambda identity: read_note(folder.notes, identity) if folder.path is not None else None,
            beat=lambda phase: self._beat(state.progress.step, f"recover {phase}"),
            recovering=self.heartbeat.recovering if self.heartbeat else nullcontext,
        )

    def _leave_notes(self) -> None:
        if self.heartbeat is not None and self.folder is not None:
            self.heartbeat.leave_notes_in(self.folder.notes, self.group.me.identity)

    @property
    def _newest_group(self) -> Group:
        """The request of set-up until training begins, then that of the loop."""
        return self.loop.group if self.loop is not None and self.loop.driver.is_running else self.group

    @property
    def _step(self) -> int:
        return 0 if self.loop is None else self.loop.state.progress.step

    def _beat(self, step: int, phase: str) -> None:
        if self.heartbeat is not None:
            self.heartbeat.beat(step, phase)

    def _say(self, message: str) -> None:
        """Show the user a line; until the log is open, lines wait for the banner."""
        if self.log is not None and self.log.leads:
            self.log.warn(message)
        else:
            self._warnings.append(message)

    def _refuse(self, error: DdlError | None) -> int:
        """Print the error in one line on one rank; returns its exit status.

        The leader prints it, or a spare if only that has the error; without a group, the first process."""
        assert error is not None
        self.failure = error
        one = self.group.is_leader or self.group.is_spare if self.has_started else launched_rank() == 0
        if one and not isinstance(error, JobEnded) and not self._in_script:
            if isinstance(error, UserCodeError) and error.traceback:
                sys.stderr.write(error.traceback.rstrip() + "\n")
            print(f"ddl.train: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        if not self.has_started:  # mpirun kills the others when the first ends: let rank 0 print first
            linger()
        return error.exit_status

    def _die(self, error: Exception) -> NoReturn:
        """End this rank after an exception that only it raised; the others continue if possible."""
        group, status = self._newest_group, 1
        if self._in_script and len(group.members) == 1:
            raise error
        if isinstance(error, DdlError):
            status = error.exit_status
        text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)).rstrip()
        print(f"rank {group.me.identity}: {text}", file=sys.stderr, flush=True)
        is_training = self.loop is not None and self.loop.driver.is_running
        if group.tolerant and len(group.members) > 1 and is_training:
            ending.die()
        self.end()
        mpi.fail(group, status)  # before the first step the others end as well
        raise SystemExit(status)

    def _open_trace(self) -> None:
        """Record the spans of this rank, including waits; later generations inherit ``waits`` from this group."""
        me, watch = self.group.me, self.group.waits
        try:
            trace = self._trace = Trace(self.job.metrics.trace, me.identity, me.host)
        except OSError as error:
            self._say(f"no trace of rank {me.identity} is written: {error}")
            return

        def waits(waiting: bool) -> None:
            watch(waiting)
            trace.waits(waiting)

        self.group.waits = waits

    def _merge_traces(self) -> None:
        """The leader merges the files of all ranks, after all are written."""
        if self._trace is None:
            return
        self._beat(self._step, "trace")
        self._trace.close()
        with contextlib.suppress(PeerLost):  # a dead rank's file is merged as far as it was written
            if not self.group.is_spare:
                self.group.barrier()
        if self.group.is_leader:
            merge(self.job.metrics.trace)

    def _close(self) -> None:
        self._beat(self._step, "close")
        if self.loop is not None:
            self.loop.close()
        if self.log is not None:
            self.log.close()
        if self._trace is not None:
            self._trace.close()
        if self.heartbeat is not None and self._in_script:
            self.heartbeat.wait(True)  # the rest of the script has no time limit


@functools.cache
def _survival() -> str:
    """Why a death is survived in this launch, or not; determined once, before MPI changes the environment."""
    return fault_tolerance()[1]
