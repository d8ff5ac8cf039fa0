"""The loop of one rank: steps, evaluations and checkpoints through one generation after another.

A step is step.py's, what it needs is work.py's, recovery is fault's; here stands what comes when, and what is done
again after a failure."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ddl.arrays import Device
from ddl.checkpoint import Writer
from ddl.comm import Group
from ddl.data import Plan, assign
from ddl.errors import (
    CheckpointError,
    DdlError,
    Diverged,
    Fenced,
    JobEnded,
    PeerLost,
    QuorumLost,
    Stop,
    UserCodeError,
    UserError,
)
from ddl.fault.decision import Death
from ddl.fault.recover import Leaves, Recovery, Report, detection_s
from ddl.fault.recover import Settings as RecoverySettings
from ddl.train.evaluate import evaluate
from ddl.train.replicas import compare, hardware
from ddl.train.signals import Wishes
from ddl.train.state import State
from ddl.train.step import Outcome, Span, no_span
from ddl.train.task import Task
from ddl.train.work import Work

if TYPE_CHECKING:  # the run log is handed in: this room does not know where it is kept
    from ddl.run.log import Journal

QUIET_S = 2.0  # for a communication thread to finish what it has begun
REFILLS_IN_VAIN = 2  # what ends each newcomer before it has come is not cured by another
LAST_REFILLED = 100  # what kills each newcomer is not cured by another: this generation is the last to be refilled


class _AllLeave(Exception):
    """Raised on every worker alike at the same place: the job ends with ``error``, in good order."""

    def __init__(self, error: DdlError):
        self.error = error


class Loop(Work):
    """Trains ``task`` on the ranks of a group and of the groups that follow it when ranks die.

    open_writer: makes what writes checkpoints (None: none are written). claim: makes the run folder a generation's,
    raises Fenced where it is in newer hands; look: raises it as soon as it is, at the cost of a glance. announce: tells
    that the job begins, which the first leader may not have come to. on_error: leaves a note about an exception.
    respawn: start a new rank for each dead one."""

    def __init__(
        self,
        task: Task,
        group: Group,
        device: Device,
        state: State,
        journal: Journal,
        *,
        open_writer: Callable[[], Writer] | None = None,
        claim: Callable[[Group], None] = lambda group: None,
        look: Callable[[], None] = lambda: None,
        announce: Callable[[], None] = lambda: None,
        wishes: Wishes | None = None,
        recovery: RecoverySettings | None = None,
        beat: Callable[[int, str], None] = lambda step, phase: None,
        on_error: Callable[[Exception], Death] | None = None,
        span: Span = no_span,
        respawn: bool = False,
    ):
        super().__init__(task, group, device, state, journal, beat=beat, span=span)
        self.wishes = wishes or Wishes()
        self._open_writer, self._claim, self._look, self._announce = open_writer, claim, look, announce
        self._writer: Writer | None = None
        self._on_error = on_error or self.describe
        self.recovery = Recovery(self, self.plan, group, recovery or RecoverySettings())
        self.reports: list[Report] = []
        self.status = "finished"
        self.samples, self.train_seconds, self._steps = 0, 0.0, 0
        self._stepped = time.monotonic()  # when the last step was committed
        self._called = self._called_epoch = -1  # the last steps of which this rank told the callbacks, as epochs' ends
        self._told_of_memory = False
        self._respawn, self._joins, self._wanted = respawn, False, len(group.members)
        self._in_vain = 0  # refills, the last so many, that brought nobody
        self.is_running = False  # from here on the others go on when this rank ends
        self._fenced: Fenced | None = None  # set on a leader that may write no more

    def start(self, group: Group, joins: bool = False) -> None:
        """The group that came out of setting up; from here on ``run`` looks after it.

        joins: the others have been training already, and this rank replaces one of theirs."""
        self.group, self._joins, self._wanted = group, joins, len(group.members)
        self.plan = assign(self.task.order.shards, group.size)
        self.recovery = Recovery(self, self.plan, group, self.recovery.settings)

    def run(self) -> DdlError | None:
        """Train to the end, through any number of failures; returns on every survivor after the agreed end.

        What is returned is why the job ended early: Stop, Diverged, UserCodeError or UserError, on all workers alike;
        JobEnded with the same status on spares. An exception that is raised is this rank's alone."""
        attached, failure, self.is_running = False, None, True
        while True:
            agreed = False
            try:
                if self._joins:
                    failure, attached = self._join(), True
                if self.group.is_spare:
                    status = self.group.wait_as_spare()
                    failure = JobEnded(status) if status else None
                else:
                    try:
                        if failure is None and not attached:
                            failure = self.attach(self.group, self.plan)
                            attached = True
                        if failure is None or isinstance(failure, Stop):
                            self._catch_up()
                        if failure is None:
                            self._train()
                            self._finish()
                    except _AllLeave as leave:
                        failure = leave.error
                    self.recovery.failure = failure  # when a rank dies now, those who do not know it yet must learn it
                    if failure is not None:
                        self._abandon(failure)
                    if self.group.is_leader:
                        self.group.release_spares(self.status_of(failure))
                self.group.probe("end.agree")
                agreed = True
                if self.group.agree(1):
                    return failure
                raise PeerLost([], self.group.generation, "the agreement on the end")
            except PeerLost as lost:
                failure = self._recover(lost, agreed)
                attached = not self.group.is_spare
            except JobEnded:
                raise
            except Exception as error:
                # Other ranks may have raised the same: they all tell each other before anybody ends.
                alone = len(self.group.members) == 1
                if not self.group.tolerant or alone or failure is not None:
                    if failure is None:
                        self._leave_word(error)
                    raise
                self.recovery.raised = self._on_error(error)
                if not self._may_talk():
                    raise  # the note is all that the others will know
                try:
                    failure = self._recover(PeerLost([], self.group.generation, "an exception"), agreed)
                except Leaves:
                    raise error from None

    def _leave_word(self, error: Exception) -> None:
        """Nobody goes on after this exception: the summary says what it was, unless another start may get around it."""
        if self._fenced is None and not isinstance(error, DdlError | OSError | MemoryError):
            death = self._on_error(error)
            what = f"rank {death.identity} raised {death.error} at step {death.step}"
            self.journal.end(self, "failed", UserCodeError(what, death.traceback))

    def _may_talk(self) -> bool:
        """Whether the communication thread has left MPI to this one. Where all raised, at least one thread soon has."""
        return self.total is None or self.total.is_quiet(QUIET_S)

    def status_of(self, failure: DdlError | None) -> int:
        """What all processes of the job end with, once ``run`` has returned that."""
        if failure is not None:
            return failure.exit_status
        return Stop.exit_status if self.status == "stopped" else 0

    def close(self) -> None:
        self.detach()
        if self._writer is not None:
            self._writer.close()

    def _recover(self, lost: PeerLost, agreed: bool) -> DdlError | None:
        """Bind to the next generation; what is returned is why all survivors must leave it again."""
        raised_s, longest_s = time.time(), time.monotonic() - self._stepped
        group, plan = self.group, self.plan
        self.detach()
        began_s = time.time()
        with self.span("recovery"):
            self.group, report = self.recovery.recover(self.group, lost, agreed)
        self.reports.append(report)
        if not isinstance(report.refusal, QuorumLost):
            if self.group.is_leader and self.recovery.has_state:
                self._take_word(group, plan)
            detect_s = {}
            for death in report.deaths:
                note = self.recovery.settings.notes(death.identity)  # only by now has the companion surely left it
                detect_s[death.identity] = detection_s(note, raised_s, began_s, longest_s)
            self.journal.recovered(report, detect_s)
        while self._respawn and report.refusal is None and len(self.group.members) < self._wanted:
            if self.group.generation > LAST_REFILLED:
                break
            self.detach()
            before = len(self.group.members)
            self.group, report = self.recovery.refill(self.group, self._wanted - before)
            self.reports.append(report)
            if self.group.is_leader and not isinstance(report.refusal, QuorumLost):
                self._take_word(group, plan)  # the one before may have died in this
            self.journal.recovered(report)
            self._in_vain = self._in_vain + 1 if len(self.group.members) <= before else 0
            if self._in_vain == REFILLS_IN_VAIN:
                self._respawn = False
                self.journal.warn(f"{REFILLS_IN_VAIN} times no new rank came: the dead are not replaced any more")
        self._stepped = time.monotonic()
        return report.refusal

    def _take_word(self, group: Group, plan: Plan) -> None:
        """Tell what the leader before, or this one, did not come to. group, plan: those that computed the last step."""
        progress, journal = self.state.progress, self.journal
        problem = self._claim_folder()
        journal.lead()
        if problem:
            journal.warn(problem)
        if not journal.has_started:
            self._announce()
        if self.last is not None:
            journal.missed(self.last, group, plan)
            journal.missed_epoch(self._epoch_of(progress.step), progress)

    def _catch_up(self) -> None:
        """Callbacks hear of each committed step at least once: a new leader tells the last one, since the leader before
        may have died in that; one that lagged behind a step tells it now. So it is with the end of an epoch."""
        if not self.group.is_leader or self.last is None:
            return
        if self.last.step > self._called:
            self._call(self.last)
        if self.state.progress.evaluated_at == self.last.step > self._called_epoch:
            self._call_epoch()

    def _call(self, outcome: Outcome) -> None:
        for callback in self.task.callbacks:
            callback(outcome)
        self._called = outcome.step

    def _call_epoch(self) -> None:
        progress = self.state.progress
        known = ("train", "validation") if progress.validated_at == progress.step else ("train",)
        for callback in self.task.callbacks:
            callback.on_epoch(self._epoch_of(progress.step), {name: dict(progress.results[name]) for name in known})
        self._called_epoch = progress.step

    def _epoch_of(self, step: int) -> int:
        """The epoch, from 1, that ends with ``step`` or is broken off there."""
        return -(-step // self.task.order.steps_per_epoch)

    def _join(self) -> DdlError | None:
        """Bind to the group that this rank was started for."""
        self._joins = False
        self.group, report = self.recovery.join(self.group)
        return report.refusal

    def _claim_folder(self) -> str:
        """Take the run folder for this generation; whoever finds it in newer hands leaves, with all others.

        What people should know is returned. A disk that takes nothing costs what would be written, and not the job."""
        try:
            self._claim(self.group)
        except Fenced as error:
            self._leave_folder(error)
        except OSError as error:
            return f"generation {self.group.generation} could not enter itself as the run folder's owner: {error}"
        return ""

    def _leave_folder(self, error: Fenced) -> None:
        """This rank writes nothing more; the next step tells the others."""
        self._fenced = error
        self.journal.fall_silent()

    def _train(self) -> None:
        """Steps until the last; after each, what is due by then. Which evaluations are due is told by the state,
        so that after a recovery exactly the missing ones are made; a checkpoint that a leader's death prevented
        comes with the next."""
        task, progress = self.task, self.state.progress
        self._tell_of_memory()
        self._after_epoch()
        self._stepped = time.monotonic()
        while progress.step < task.total_steps and not progress.ended and not progress.stopping:
            self.advance()

    def _tell_of_memory(self) -> None:
        """One line where sums have to do without the memory that they could use, which costs speed and nothing else."""
        if self._told_of_memory:
            return
        if self.task.gpu == "direct" and self.total is not None and self.total.staged_because:
            self.journal.warn(
                f"comm.gpu is direct, but gradients go through the host's memory: {self.total.staged_because}"
            )
            self._told_of_memory = True
        if self.total is not None and self.total.substitute:
            self.journal.warn(
                f"comm.algorithm is {self.task.algorithm}, but gradients are summed by {self.total.substitute}"
            )
            self._told_of_memory = True
        if self.task.sharded == "on" and self.total is not None and not self.total.replicas and self.group.size > 1:
            self.journal.warn(
                "optim.sharded is on, but each rank has a replica of its own: sharing one takes ranks of one node that "
                "compute on its CPUs and sum in its memory"
            )
            self._told_of_memory = True
        if self.group.why_not_shared:
            self.journal.warn(
                "the ranks of a node cannot share memory, so gradients are summed by messages, which is slower "
                f"({self.group.why_not_shared})"
            )
            self._told_of_memory = True

    def advance(self) -> None:
        """One step, and what is due after it."""
        assert self.step is not None
        due = self.group.is_leader and self.wishes.checkpoint_due()
        self._after_step(self.step.run(self.wishes.stop, due, self._fenced is not None))
        self._after_epoch()

    def _after_step(self, outcome: Outcome) -> None:
        wishes, task = self.wishes, self.task
        now = time.monotonic()
        if self._steps == 1:  # compiling and warming up went into the first step's time; it counts only when alone
            self.samples, self.train_seconds = 0, 0.0
        self._steps += 1
        self.samples, self.train_seconds = self.samples + outcome.samples, self.train_seconds + now - self._stepped
        self._stepped, self.last = now, outcome
        if self.group.is_leader:
            try:
                self._look()
            except Fenced as error:
                self._leave_folder(error)
            self.journal.step(outcome, self.group, self.plan)
            self._call(outcome)
        if outcome.fenced:
            raise _AllLeave(self._fenced or Fenced("a newer launch has taken over the run folder"))
        if outcome.skipped and self.state.progress.skipped_in_row >= task.skip_limit:
            raise _AllLeave(
                Diverged(
                    f"{self.state.progress.skipped_in_row} steps in a row were not finite, the last of them step "
                    f"{outcome.step} in shard(s) {list(outcome.bad_shards) or 'unknown'}; lower optim.lr, "
                    "clip gradients (optim.clip_norm) or look at these samples"
                )
            )
        if task.check_every and outcome.step % task.check_every == 0:
            self._compare_replicas()
        every = wishes.checkpoint_every_steps
        if outcome.checkpoint or (every and outcome.step % every == 0):
            self._checkpoint()

    def _after_epoch(self) -> None:
        """Evaluation and the epoch's checkpoint, where they are due and not yet done."""
        task, progress = self.task, self.state.progress
        epoch, rest = divmod(progress.step, task.order.steps_per_epoch)
        last = progress.step >= task.total_steps
        if (rest and not last) or progress.step == 0 or progress.evaluated_at == progress.step:
            return
        improved = False
        if task.validation is not None and (last or (task.evaluate_every and epoch % task.evaluate_every == 0)):
            found = self._evaluate(task.validation)
            score = found["loss"]
            improved = math.isfinite(score) and (progress.best is None or score < progress.best)
            progress.results["validation"], progress.validated_at = found, progress.step
            progress.best = score if improved else progress.best
            progress.stale = 0 if improved else progress.stale + 1
            progress.ended = bool(task.patience) and progress.stale >= task.patience
        progress.results["train"] = self.epoch_means()
        progress.evaluated_at = progress.step
        progress.stage += 1
        if self.group.is_leader:
            self.journal.epoch(self._epoch_of(progress.step), progress)
            self._call_epoch()
        every = self.wishes.checkpoint_every_epochs
        if (every and not rest and epoch % every == 0) or (improved and self.wishes.keep_best):
            self._checkpoint()

    def _finish(self) -> None:
        """The end's own work: last evaluation, checkpoint, summary; all of it done when the barrier returns."""
        progress = self.state.progress
        stopped = progress.stopping and progress.step < self.task.total_steps and not progress.ended
        self.status = "stopped" if stopped else "finished"
        if not stopped and self.task.test is not None and progress.tested_at != progress.step:
            progress.results["test"], progress.tested_at = self._evaluate(self.task.test), progress.step
            progress.stage += 1
        if "train" not in progress.results and any(progress.epoch_sums):
            progress.results["train"] = self.epoch_means()
        self.group.probe("end.checkpoint")
        problem: DdlError | None = None
        try:
            self._checkpoint(is_last=True)
        except (CheckpointError, Fenced) as error:
            problem, self.status = error, "failed"
        problem = self._fenced or problem
        if self.group.is_leader and not isinstance(problem, Fenced):
            self.group.probe("end.summary")
            problem = self.journal.end(self, self.status, problem) or problem
            for callback in self.task.callbacks:
                callback.on_end({name: dict(values) for name, values in progress.results.items()})
        self.group.probe("end.barrier")
        self.beat(progress.step, "end")
        # Whoever returns from this knows that the leader's work is done, or what it failed with.
        for found in self.group.gather_objects(problem):
            if found is not None:
                raise _AllLeave(found)

    def _abandon(self, failure: DdlError) -> None:
        """All leave before the end: what is newest is saved where this side may write at all."""
        if isinstance(failure, QuorumLost | CheckpointError | Fenced) or not self.recovery.has_state:
            return
        self.status = "stopped" if isinstance(failure, Stop) else "failed"
        if isinstance(failure, Stop):
            with contextlib.suppress(CheckpointError, Fenced):  # it has been said
                self._checkpoint(is_last=True)
        if self.group.is_leader and self._fenced is None:
            self.journal.end(self, self.status, failure)
        self.group.barrier()

    def _evaluate(self, source) -> dict[str, Any]:
        def lives() -> None:
            self.beat(self.state.progress.step, "evaluate")
            self.journal.touch()

        lives()
        try:
            with self.span("evaluate"):
                return evaluate(
                    self.task.model,
                    self.state,
                    source,
                    self.group,
                    rows=self.task.evaluate_rows,
                    transforms=self.transforms,
                    beat=lives,
                )
        except UserError as error:  # every rank has it
            raise _AllLeave(error) from error

    def _checkpoint(self, is_last: bool = False) -> None:
        """The leader, and where copies in memory are kept the first rank of each node, hands a copy of the state to
        its writer; writing goes on in the background, save for the last, which raises what kept it from being written.
        Called on all ranks."""
        self.wishes.last_checkpoint = time.monotonic()
        leads = self.group.is_leader
        copies = self.wishes.replica and self.group.rank == self.group.local_ranks[0]
        if self._open_writer is None or not (leads or copies):
            return
        if self._writer is not None and leads and self._writer.store is None:  # it has become the leader since
            self._writer.close()
            self._writer = None
        progress = self.state.progress
        meta = {"progress": progress.to_json(), **self.task.settings}
        score = progress.results["validation"]["loss"] if progress.validated_at == progress.step else math.nan
        try:
            if self._writer is None:
                self._writer = self._open_writer()
                self._writer.beat = lambda: self.beat(progress.step, "checkpoint")
            with self.span("checkpoint"):
                # The store keeps the highest score.
                self._writer.submit(
                    progress.step, self.state.to_named(), meta, -score if math.isfinite(score) else None
                )
            if is_last:
                self._writer.wait()
        except Fenced as error:
            self._leave_folder(error)
            if is_last:
                raise
        except OSError as error:  # the folder cannot be claimed
            if is_last:
                raise CheckpointError(f"a checkpoint was not written: {error}") from error
            self.journal.warn(f"a checkpoint was not written: {error}")

    def _compare_replicas(self) -> None:
        """A minority that differs is healed and named; without a majority all leave."""
        step = self.state.progress.step
        me = self.group.me
        replica = me.node if self.total is not None and self.total.replicas else f"of rank {me.identity}"
        found = compare(self.group, self, hardware(self.device), self.state.digest(), replica)
        if found is None:
            raise _AllLeave(Diverged(f"after step {step} no majority of ranks holds the same state"))
        if found and self.group.is_leader:
            self.journal.warn(f"after step {step} rank(s) {found} held a different state; healed from the majority")
