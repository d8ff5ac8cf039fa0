"""The training loop of one rank: the order of steps, evaluations, checkpoints and the end.

A step is in step.py, what is trained in work.py; the recovery driver (fault/driver.py) calls this in every
generation."""

from __future__ import annotations

import contextlib
import time
from contextlib import AbstractContextManager
from typing import Any

from ddl.arrays import Device
from ddl.comm import Group
from ddl.data import moved_shards
from ddl.errors import (
    CheckpointError,
    DdlError,
    Diverged,
    LeaseLost,
    QuorumLost,
    Stop,
    UserCodeError,
    UserError,
)
from ddl.fault.decision import RankDeath
from ddl.fault.driver import Driver
from ddl.fault.recover import Leaves, RecoverySettings, Report
from ddl.fault.work import EndJob, Program
from ddl.kernels.compiler_pages import drop_compiler_pages
from ddl.train.best import judge, restore_best
from ddl.train.saving import Saving
from ddl.train.services import Services
from ddl.train.signals import StepRequest
from ddl.train.staged import work_of
from ddl.train.state import TrainingState
from ddl.train.step import Outcome
from ddl.train.task import Task
from ddl.train.work import Work
from ddl.wording import numbered


class Loop(Program):
    """Trains ``task`` on the ranks of a group, and of the generations that follow it when ranks die.

    request: what signals and time limits ask of the next step. work: what is trained, bound to the current generation.
    samples, train_seconds: of all steps of this process but the first, in which kernels are compiled."""

    work: Work

    def __init__(
        self,
        task: Task,
        group: Group,
        device: Device,
        state: TrainingState,
        services: Services | None = None,
        *,
        request: StepRequest | None = None,
        recovery: RecoverySettings | None = None,
    ):
        self.task, self.state, self.services = task, state, services or Services()
        self.log = self.services.log
        self.work = work_of(task)(task, group, device, state, self.services)
        self.request = request or StepRequest()
        self.saving = Saving(self.work, self.request)
        self.status = "finished"
        self.samples, self.train_seconds, self._steps = 0, 0.0, 0
        self._committed_s = time.monotonic()  # when the last step was committed
        # The last steps for which this rank called the callbacks, and their on_epoch.
        self._called = self._called_epoch = -1
        self._warned_of_memory = False
        self._waited: dict[int, float] = {}  # in the last epoch
        self._recovery = recovery
        self.driver = Driver(self, group, self.work.plan, recovery)

    @property
    def group(self) -> Group:
        """The newest generation."""
        return self.driver.group

    @property
    def reports(self) -> list[Report]:
        return self.driver.reports

    def start(self, group: Group) -> None:
        """Use the group that set-up resulted in."""
        self.work.begin(group)
        self.driver = Driver(self, group, self.work.plan, self._recovery)

    def train(self) -> DdlError | None:
        """Train to the end, through any number of failures; returns on every survivor after the agreed end.

        Returns why the job ended early, alike on all workers: Stop, Diverged, UserCodeError, UserError or CommError;
        JobEnded with the same status on spares. An exception that is raised is this rank's alone."""
        try:
            return self.driver.run()
        except Leaves as leaves:
            raise leaves.error from None

    def close(self) -> None:
        self.work.detach()
        self.saving.close()

    def keep_state(self) -> None:
        """After ``close``: move the trained state to memory that no other rank uses."""
        self.state.own()
        self._show()

    # The driver's calls.

    def run(self) -> None:
        """Steps until the last, the evaluations and checkpoints that are due after each, and the end.

        Which evaluations are due follows from the state, so that after a recovery exactly the missing ones are made."""
        task, progress = self.task, self.state.progress
        self._call_missed()
        self._warn_of_memory()
        self._regain()
        self._after_epoch()
        self._committed_s = time.monotonic()
        while progress.step < task.total_steps and not progress.ended and not progress.stopping:
            self.advance()
        self._finish()

    def abandon(self, failure: DdlError) -> None:
        """All workers end before the last step. The newest state is saved if that is allowed and of use."""
        if isinstance(failure, QuorumLost | CheckpointError | LeaseLost) or not self.driver.recovery.has_state:
            return
        self.status = "stopped" if isinstance(failure, Stop) else "failed"
        if isinstance(failure, Stop):
            self._call_missed()
            with contextlib.suppress(CheckpointError, LeaseLost):  # the log has a line about it
                self.saving.save(self.group)
                self.saving.wait()
        if self.group.is_leader and self.saving.lease_lost is None:
            self._write_summary(failure)
        self.group.barrier()

    def exit_status(self, failure: DdlError | None) -> int:
        if failure is not None:
            return failure.exit_status
        return Stop.exit_status if self.status == "stopped" else 0

    def describe(self, error: Exception) -> RankDeath:
        me, shards = self.group.me, frozenset(self.work.plan.shards_of(self.group.rank))
        death = RankDeath(me.identity, me.host, "exception", self.state.progress.step, shards, repr(error))
        return self.services.note_exception(error, death)

    def raised_alone(self, error: Exception) -> None:
        """Write the exception to the summary, unless the next start may succeed in spite of it."""
        if self.saving.lease_lost is None and not isinstance(error, DdlError | OSError | MemoryError):
            death = self.describe(error)
            self.status = "failed"
            message = f"rank {death.identity} raised {death.error} at step {death.step}"
            self._write_summary(UserCodeError(message, death.traceback))

    def recovered(self, report: Report, failed: int, owners: tuple[int, ...]) -> None:
        self.saving.recovered()
        if not isinstance(report.refusal, QuorumLost):
            if self.group.is_leader and self.driver.recovery.has_state:
                self._take_over_reports(failed, owners)
            self.log.recovered(report)
        self._committed_s = time.monotonic()

    def _take_over_reports(self, failed: int, owners: tuple[int, ...]) -> None:
        """Report what the previous leader, or this one, did not report before the failure."""
        progress, problem = self.state.progress, ""
        try:
            self.services.claim_folder(self.group)
        except LeaseLost as error:
            self.saving.lose_lease(error)
        except OSError as error:  # costs the files, not the job
            problem = f"generation {self.group.generation} could not be entered as owner of the run folder: {error}"
        self.log.lead()
        if problem:
            self.log.warn(problem)
        if not self.log.has_started:
            self.services.announce()
        if self.work.last is not None:
            self.log.missed(self.work.last, failed, owners)
            self.log.missed_epoch(self._epoch_of(progress.step), progress, self._waited)

    def seconds_since_commit(self) -> float:
        return time.monotonic() - self._committed_s

    def span(self, name: str) -> AbstractContextManager[None]:
        return self.services.span(name)

    # Callbacks.

    def _call_missed(self) -> None:
        """Callbacks are called at least once for each committed step and each epoch.

        A new leader repeats the last step, since the previous leader may have died while it called them."""
        last = self.work.last
        if not self.group.is_leader or last is None:
            return
        if last.step > self._called:
            self._call(last)
        if self.state.progress.evaluated_at == last.step > self._called_epoch:
            self._call_epoch()

    def _call(self, outcome: Outcome) -> None:
        # A separate phase: ranks that crash in the same callback at the same step then leave the same note.
        self.services.beat(outcome.step, "callback")
        if self.task.callbacks:
            self._show()
        for callback in self.task.callbacks:
            callback(outcome)
        self._called = outcome.step

    def _call_epoch(self) -> None:
        self._show()
        progress = self.state.progress
        splits = ("train", "validation") if progress.validated_at == progress.step else ("train",)
        for callback in self.task.callbacks:
            callback.on_epoch(self._epoch_of(progress.step), {s: dict(progress.results[s]) for s in splits})
        self._called_epoch = progress.step

    def _show(self) -> None:
        self.task.model.show(self.state.params.views, self.state.buffers)

    def _epoch_of(self, step: int) -> int:
        """The epoch, counted from 1, that ends with ``step`` or is broken off there."""
        return -(-step // self.task.order.steps_per_epoch)

    # Steps, epochs, and the end.

    def _regain(self) -> None:
        """Stop after the next step if ranks were lost and the supervisor will start all of them again."""
        missing = self.log.ranks_started - len(self.group.members)
        if self.request.all_ranks and missing > 0 and not self.request.stop:
            self.request.stop = True
            self.log.warn("fault.respawn: the job stops at a checkpoint and starts again on all its ranks")

    def _warn_of_memory(self) -> None:
        """A line for each reason why gradients are not summed as fast as they could be; once."""
        problems = [] if self._warned_of_memory else self.work.substitutes()
        for problem in problems:
            self.log.warn(problem)
        self._warned_of_memory |= bool(problems)

    def advance(self) -> None:
        """One step, and whatever is due after it."""
        assert self.work.step is not None
        due = self.request.checkpoint_due(self.group.is_leader)
        self._after_step(self.work.step.run(self.request.stop, due, self.saving.lease_lost is not None))
        self._after_epoch()

    def _after_step(self, outcome: Outcome) -> None:
        task, progress = self.task, self.state.progress
        now = time.monotonic()
        if self._steps == 1:  # the first step includes compilation; it counts only if it is the only one
            self.samples, self.train_seconds = 0, 0.0
            drop_compiler_pages()
        self._steps += 1
        self.samples, self.train_seconds = self.samples + outcome.samples, self.train_seconds + now - self._committed_s
        self._committed_s, self.work.last = now, outcome
        if self.group.is_leader:
            try:
                self.services.check_lease()
            except LeaseLost as error:
                self.saving.lose_lease(error)
            self.log.step(outcome, self.group.generation, tuple(self.driver.recovery.owners))
            self._call(outcome)
        if outcome.lease_lost:
            raise EndJob(self.saving.lease_lost or LeaseLost("a newer launch has taken over the run folder"))
        if outcome.skipped and progress.skipped_in_row >= task.skip_limit:
            raise EndJob(
                Diverged(
                    f"{progress.skipped_in_row} steps in a row were not finite, the last of them step {outcome.step} "
                    f"in {numbered('shard', outcome.bad_shards)}; "
                    + (outcome.bad_value or "lower optim.lr, clip gradients (optim.clip_norm) or look at these samples")
                )
            )
        if task.check_every and outcome.step % task.check_every == 0:
            self._compare_replicas()
        self.saving.after_step(self.group, outcome)
        self._rebalance()

    def _rebalance(self) -> None:
        seconds = self.work.rebalance()
        if not seconds:
            return
        recovery, members = self.driver.recovery, self.group.members
        before, recovery.owners = recovery.owners, [members[rank].identity for rank in self.work.plan.owners]
        if self.group.is_leader:
            known = {members[rank].identity: own for rank, own in enumerate(seconds) if own == own}
            self.log.moved(self.state.progress.step, moved_shards(before, recovery.owners), known)

    def _after_epoch(self) -> None:
        """The evaluation and the checkpoint of an epoch, if they are due and not yet done."""
        task, progress = self.task, self.state.progress
        epoch, rest = divmod(progress.step, task.order.steps_per_epoch)
        last = progress.step >= task.total_steps
        if (rest and not last) or progress.step == 0 or progress.evaluated_at == progress.step:
            return
        if last:
            self.saving.save(self.group)  # before the evaluation, which may fail
        self._gather_waits()
        improved = False
        if task.validation is not None and (last or (task.evaluate_every and epoch % task.evaluate_every == 0)):
            improved = judge(progress, self._evaluate(task.validation), task.patience)
            task.optimizer.validated(progress.results["validation"]["loss"])
        progress.results["train"] = self.work.epoch_means()
        progress.evaluated_at = progress.step
        progress.stage += 1
        if self.group.is_leader:
            self.log.epoch(self._epoch_of(progress.step), progress, self._waited)
            self._call_epoch()
        every = self.request.checkpoint_every_epochs
        if (every and not rest and epoch % every == 0) or (improved and self.request.keep_best):
            self.saving.save(self.group)

    def _gather_waits(self) -> None:
        """Seconds that each rank has waited in sums since the last epoch, by its identity, on every rank."""
        seconds, members = self.group.gather_objects(self.work.count_waits()), self.group.members
        self.work.waited_s = 0.0  # only now: a death in the exchange repeats it
        self._waited = {members[rank].identity: round(own, 6) for rank, own in enumerate(seconds)}

    def _restore_best(self) -> None:
        progress = self.state.progress
        if not self.task.restore_best or progress.best is None or progress.final or self.saving.lease_lost is not None:
            return
        self.group.probe("end.restore")
        with self.services.span("restore"):
            problem = restore_best(self.work, self.group, self.saving)
        if problem and self.group.is_leader:
            self.log.warn(f"the best state, of step {progress.best_step}, was not restored: {problem}")

    def _finish(self) -> None:
        """Checkpoint, best state, test evaluation, summary. When the closing exchange returns, all of it is done."""
        progress = self.state.progress
        stopped = progress.stopping and progress.step < self.task.total_steps and not progress.ended
        self.status = "stopped" if stopped else "finished"
        self.group.probe("end.checkpoint")
        self.saving.save(self.group)
        if not stopped:
            self._restore_best()
        if not stopped and self.task.test is not None and progress.tested_at != progress.step:
            progress.results["test"], progress.tested_at = self._evaluate(self.task.test), progress.step
            progress.stage += 1
        if "train" not in progress.results and any(progress.epoch_sums):
            progress.results["train"] = self.work.epoch_means()
        if not stopped and progress.skipped == progress.step > 0:
            message = f"all {progress.step} steps were skipped because their values were not finite"
            cause = self.work.last.bad_value if self.work.last is not None else ""
            hint = cause or "look at the data, or lower optim.lr"
            raise EndJob(Diverged(f"{message}: nothing was learned; {hint}"))
        problem: DdlError | None = None
        try:
            self.saving.wait()
        except (CheckpointError, LeaseLost) as error:
            problem = error
        problem = self.saving.lease_lost or problem
        if problem is not None:
            self.status = "failed"
        if self.group.is_leader and not isinstance(problem, LeaseLost):
            self.group.probe("end.summary")
            problem = self._write_summary(problem) or problem
            self._show()
            for callback in self.task.callbacks:
                callback.on_end({name: dict(values) for name, values in progress.results.items()})
        self.group.probe("end.barrier")
        self.services.beat(progress.step, "end")
        # A rank that returns from this knows that the leader's work is done, or why it failed.
        for failure in self.group.gather_objects(problem):
            if failure is not None:
                raise EndJob(failure)

    def _write_summary(self, failure: DdlError | None) -> DdlError | None:
        speed = round(self.samples / self.train_seconds, 1) if self.train_seconds else 0.0
        return self.log.end(self.state, self.work.digest(), self.group.size, speed, self.status, failure)

    def _evaluate(self, source) -> dict[str, Any]:
        def alive() -> None:
            self.services.beat(self.state.progress.step, "evaluate")
            self.log.touch()

        alive()
        try:
            with self.services.span("evaluate"):
                return self.work.evaluate(source, alive)
        except UserError as error:  # the same on every rank
            self.saving.save(self.group)
            raise EndJob(error) from error

    def _compare_replicas(self) -> None:
        """Ranks in the minority get the majority's state and are named; without a majority the job ends."""
        step, different = self.state.progress.step, self.work.compare()
        if different is None:
            raise EndJob(Diverged(f"after step {step} no majority of ranks holds the same state"))
        if different and self.group.is_leader:
            self.log.warn(
                f"after step {step} {numbered('rank', different)} held a different state; copied from the majority"
            )
