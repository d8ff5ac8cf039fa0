"""One recovery: kill, revoke, shrink, agree, level, reassign, repeated until a generation of survivors is complete.

The state that is levelled belongs to the caller (``Recoverable`` in work.py), decision.py decides what to do, and
driver.py calls this whenever a rank is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

from ddl.comm import Group, Member
from ddl.comm.topology import start_time
from ddl.data import Plan, moved_shards
from ddl.errors import CommError, DdlError, JobEnded, PeerLost, QuorumLost, Stop, UserCodeError
from ddl.fault.decision import Action, FailedCall, RankDeath, Situation, decide, fatal_death
from ddl.fault.work import Recoverable
from ddl.wording import counted, listed, numbered


@dataclass(frozen=True)
class RecoverySettings:
    """min_ranks: with fewer survivors the job stops. kill_timeout_s: how long a killed process may take to disappear.
    notes: identity -> the note about its death, if there is one. beat: called with each phase of a recovery."""

    min_ranks: int = 1
    kill_timeout_s: float = 10.0
    notes: Callable[[int], dict[str, Any] | None] = lambda identity: None
    beat: Callable[[str], None] = lambda phase: None
    # Entered for each part of a recovery, "meet", "" or "read"; the companion enforces that part's time limit.
    recovering: Callable[[str], AbstractContextManager[Any]] = nullcontext
    clock: Callable[[], float] = time.monotonic


@dataclass
class Report:
    """The result of a recovery: which ranks died, how long each phase took (seconds), and how shards moved."""

    generation: int
    deaths: list[RankDeath]
    survivors: list[int]
    step: int
    phases: dict[str, float] = field(default_factory=dict)
    moved: dict[int, list[int]] = field(default_factory=dict)  # identity -> shards it took over
    promoted: list[int] = field(default_factory=list)  # spares that became workers
    refusal: DdlError | None = None  # why all survivors must end the job
    without_death: tuple[tuple[int, int], int] = ((-1, -1), 0)  # position, recoveries in a row without a death
    detect_s: dict[int, float] = field(default_factory=dict)  # identity -> seconds from its death to this recovery

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())


def kill_and_confirm(member: Member, timeout_s: float, node: str) -> bool:
    """Kill a process of this node and wait until it is gone. True means that it can no longer write anything.

    node: the node of the calling process. False for a process of another node, where its pid means nothing and its
    end cannot be observed, or if it is still there after ``timeout_s``."""
    if member.node != node:
        return False
    if member.pid == os.getpid():
        return True  # ranks are threads of this process: a thread that is gone has returned
    deadline = time.monotonic() + timeout_s
    # The start time distinguishes the process from a later one with the same pid.
    while (started := start_time(member.pid)) and (not member.started or started == member.started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def detection_s(note: Mapping[str, Any] | None, raised_s: float, began_s: float, longest_s: float) -> float:
    """Seconds from a death to the beginning of recovery at ``began_s``. All times are ``time.time()``.

    note: of the dead rank; it has the time of its end, or of its last sign of life if it hung. raised_s: when a call of
    this rank failed, used if there is no note. longest_s: an upper bound, since the rank was alive that long ago."""
    sign_s = raised_s
    if note is not None and isinstance(note.get("time"), int | float):
        sign_s = note["time"] - note.get("after_s", 0.0)
    return min(max(began_s - sign_s, 0.0), max(longest_s, 0.0))


class Leaves(Exception):
    """This rank raised ``error`` and the other ranks continue without it: it must end now."""

    error: Exception  # set by the driver


@dataclass(frozen=True)
class _Ballot:
    """The information that each worker of a new generation sends to all others."""

    identity: int
    position: tuple[int, int]
    confirmed: frozenset[int]
    deaths: tuple[RankDeath, ...]
    raised: RankDeath | None
    failure: DdlError | None
    has_state: bool
    part: int  # of the state
    history: tuple[RankDeath, ...]
    call: FailedCall | None
    without_death: tuple[tuple[int, int], int]


def survive(
    group: Group, action: Callable[[Group], DdlError | None], mine: DdlError | None = None
) -> tuple[Group, DdlError | None]:
    """Repeat an action that can be restarted from its beginning, such as set-up, until all workers have completed it.

    Returns the group of the survivors. action: returns on every worker why the job cannot begin, or None; spares do not
    run it. mine: a problem that a spare found by itself. Ranks that have no problem get JobEnded with the status
    of the others."""
    while True:
        problem, done = mine if group.is_spare else None, 1
        try:
            if not group.is_spare:
                problem = action(group)
        except PeerLost:
            group.revoke()
            done = 0
        # One agreement carries both statuses, that of the workers and that of the spares. It is an AND of bits, so
        # they are inverted: a 0 from any rank survives.
        status = 0 if problem is None else problem.exit_status
        shift = _SPARES if group.is_spare else _WORKERS
        agreed = group.agree(done | (~(status << shift) & (_STATUS << _WORKERS | _STATUS << _SPARES)))
        if agreed & 1:
            of_workers, of_spares = ~agreed >> _WORKERS & _STATUS, ~agreed >> _SPARES & _STATUS
            if of_workers:
                return group, JobEnded(of_workers) if group.is_spare else problem
            return group, problem or (JobEnded(of_spares) if of_spares else None)
        group.revoke()
        survivors = group.shrink()
        group.close()
        group = survivors


_STATUS, _WORKERS, _SPARES = 0xFF, 1, 9  # mask of a status, and the bits where the two statuses begin


class Recovery:
    """Recovers as often as necessary during a job; remembers earlier deaths and which rank holds which shard.

    owners: shard -> identity of the worker that holds it. history: earlier deaths. has_state: False on a spare until
    it received the state. raised: set before ``recover`` by a rank whose own code raised.
    failure: why the job must end, as soon as any rank knows it."""

    def __init__(self, work: Recoverable, plan: Plan, group: Group, settings: RecoverySettings):
        self.work, self.settings = work, settings
        self.owners = [group.members[rank].identity for rank in plan.owners]
        self.history: list[RankDeath] = []
        self.has_state = not group.is_spare
        self.raised: RankDeath | None = None
        self.failure: DdlError | None = None
        self._raised: dict[int, RankDeath] = {}  # identity -> what a rank that raised reported before it ended
        # (position, number of recoveries in a row at that position in which no rank had died)
        self._without_death: tuple[tuple[int, int], int] = ((-1, -1), 0)
        self._deadline = ExitStack()  # the watchdog's limit on the recovery in progress

    def recover(self, group: Group, cause: PeerLost, agreed: bool = False) -> tuple[Group, Report]:
        """Return a group of the survivors, all with the newest committed state and with all shards distributed.

        The failed group is closed. agreed: the caller already took part in the generation's closing agreement.
        ``report.refusal`` is set, alike on every worker, where the survivors must end the job: QuorumLost, Stop (too
        few ranks), UserCodeError or CommError (repeating would not help); the state is then levelled only for Stop.
        A rank that raised takes part until all know it, since all may have raised the same; then it gets Leaves."""
        with self._deadline:
            return self._recover(group, cause, agreed)

    def _within_limit(self, part: str = "") -> None:
        """Restart the watchdog's clock, with the limit of this part."""
        self._deadline.close()
        self._deadline.enter_context(self.settings.recovering(part))

    def _recover(self, group: Group, cause: PeerLost, agreed: bool) -> tuple[Group, Report]:
        clock = self.settings.clock
        phases: dict[str, float] = {}
        mark = clock()
        group.doing = "recovery"
        last, lost = group, set(cause.ranks)

        def lap(phase: str) -> None:
            nonlocal mark
            now = clock()
            phases[phase] = phases.get(phase, 0.0) + now - mark
            mark = now

        def enter(phase: str) -> None:
            self.settings.beat(phase)
            group.probe(f"recover.{phase}")

        while True:
            # A rank that has not noticed the death yet may still compute, for as long as a step may take.
            self._within_limit("" if agreed else "meet")
            enter("fence")
            for rank in lost:
                kill_and_confirm(group.members[rank], self.settings.kill_timeout_s, group.me.node)
            lap("fence")
            enter("revoke")
            group.revoke()
            lap("revoke")
            enter("shrink")
            # Every member leaves a generation through exactly one agreement: ranks that reached its regular end have
            # passed it there, and all others vote 0 here, so that every rank makes the same number of calls.
            if not agreed:
                group.agree(0)
                self._within_limit()
            survivors = group.shrink()
            group.close()
            group, lost = survivors, set()  # ranks of the closed group mean nothing in this one
            lap("shrink")
            try:
                enter("agree")
                report = self._settle(group, last, _failed_call(cause, group.me), lap, enter)
                done = 1
            except PeerLost as again:
                lost = set(again.ranks)
                group.revoke()
                done = 0
            agreed = True
            if group.agree(done):
                group.doing = "job"
                self.history.extend(report.deaths)
                self.raised, report.phases, self._without_death = None, phases, report.without_death
                return group, report

    def _settle(self, group: Group, last: Group, call: FailedCall | None, lap: Callable, enter: Callable) -> Report:
        """Everything between the shrink and the closing agreement. If it raises PeerLost it is run again."""
        alive = {member.identity for member in group.members}
        gone = [member for member in last.members if member.identity not in alive]
        timeout_s = self.settings.kill_timeout_s
        confirmed = frozenset(m.identity for m in gone if kill_and_confirm(m, timeout_s, group.me.node))
        if group.is_spare:
            self._within_limit("read")  # it waits while the workers read their shards
            return Report(group.generation, [], sorted(alive), 0)
        ballots: list[_Ballot] = group.gather_objects(
            _Ballot(
                identity=group.me.identity,
                position=self.work.position(),
                confirmed=confirmed,
                deaths=tuple(self._death(m) for m in gone),
                raised=self.raised,
                failure=self.failure,
                has_state=self.has_state,
                part=self.work.part,
                history=tuple(self.history),
                call=call,
                without_death=self._without_death,
            )
        )
        holders = [ballot for ballot in ballots if ballot.has_state]
        if not holders:
            stop = Stop("only spares are left and none has the state: restart from the newest checkpoint")
            return Report(group.generation, list(ballots[0].deaths), sorted(alive), 0, refusal=stop)
        newest = max(ballot.position for ballot in holders)
        leader = next(rank for rank, b in enumerate(ballots) if b.has_state and b.position == newest)
        # A rank commits only behind the barrier of the step, so no other rank can be two steps behind it.
        if not all(ballot.position[0] >= newest[0] - 1 for ballot in holders):
            positions = listed((ballot.position for ballot in ballots), "and")
            raise AssertionError(f"committed steps differ by more than one: {positions}")
        self.history = list(ballots[leader].history)  # a spare that is promoted has not seen it
        raised = [ballot.raised for ballot in ballots if ballot.raised is not None]
        self._raised.update((death.identity, death) for death in raised)
        deaths = (*ballots[leader].deaths, *raised)
        # The newest ranks may not have seen earlier recoveries; the leader has.
        position, count = ballots[leader].without_death
        calls = [ballot.call for ballot in ballots if ballot.call is not None]
        repeats = 0 if deaths or not calls else 1 + (count if position == newest else 0)
        now = Situation(
            last=[member.identity for member in last.members],
            alive=alive,
            confirmed=frozenset().union(*(ballot.confirmed for ballot in ballots)),
            minimum=self.settings.min_ranks,
            committed=newest[0],
            deaths=deaths,
            history=self.history,
            leaving=[death.identity for death in raised],
            without_death=repeats,
            calls=calls,
            lost_parts=sorted(set(range(self.work.parts)) - {b.part for b in holders if b.raised is None}),
        )
        lap("agree")
        action = decide(now)
        refusal = self._refusal(action, now)
        if refusal is None or action is Action.STOP:
            # A failure that one rank knew before the death is valid for all of them.
            self.failure = next((ballot.failure for ballot in ballots if ballot.failure is not None), None)
            refusal = self.failure or refusal
        report = Report(group.generation, list(deaths), sorted(alive), newest[0], refusal=refusal)
        report.without_death = newest, repeats
        if now.lost_parts and self.work.parts > 1:  # ranks that have all raised still hold a state of one part
            self.has_state = False  # what is left is of no use to anyone
        if refusal is not None and (action is not Action.STOP or self.failure is not None):
            return report
        if self.raised is not None:
            raise Leaves
        enter("level")
        self._level(group, ballots, newest, leader)
        lap("level")
        if refusal is None:  # for Stop the leader still saves the newest state before all ranks end
            enter("reassign")
            self._within_limit("read")
            self._reassign(group, last, leader, report)
            lap("reassign")
        return report

    def _death(self, member: Member) -> RankDeath:
        if member.identity in self._raised:
            return self._raised[member.identity]
        note = self.settings.notes(member.identity) or {}
        return RankDeath(
            identity=member.identity,
            host=member.host,
            kind=note.get("kind", "crash"),
            step=note.get("step", -1),
            shards=frozenset(shard for shard, owner in enumerate(self.owners) if owner == member.identity),
            error=note.get("error", ""),
            traceback=note.get("traceback") or note.get("stack") or "",
            phase=note.get("phase", ""),
        )

    @staticmethod
    def _refusal(action: Action, now: Situation) -> DdlError | None:
        if action is Action.LEAVE:
            return QuorumLost(
                f"only {len(now.alive)} of {len(now.last)} ranks of the last generation are reachable and the end of "
                "the others is not confirmed; they may be training, so this side ends and writes nothing"
            )
        if action is Action.FAIL:
            death = fatal_death(now)
            if death is None:
                call = now.calls[0]
                return CommError(
                    f"{call.error} in {call.name} on rank {call.identity}; recovery found all ranks alive, and the "
                    f"error came back at step {now.committed}"
                )
            if death.kind == "crash":
                return UserCodeError(
                    f"rank {death.identity} crashed ({death.error}) at step {death.step} in {death.phase}, where "
                    "another rank had crashed before",
                    death.traceback,
                )
            again = "" if now.committed == 0 else ", and it was not the first of its kind"
            return UserCodeError(
                f"rank {death.identity} raised {death.error} at step {death.step}{again}", death.traceback
            )
        if action is Action.RESTART:
            held = f"{numbered('stage', [part + 1 for part in now.lost_parts])} of the model"
            return Stop(f"no rank is left that holds {held}: restart from the newest checkpoint")
        if action is Action.STOP:
            left = len(now.alive) - len(now.leaving)
            return Stop(
                f"{counted(left, 'rank')} {'is' if left == 1 else 'are'} left, fault.min_ranks is {now.minimum}"
            )
        return None

    def _level(self, group: Group, ballots: Sequence[_Ballot], newest: tuple[int, int], leader: int) -> None:
        """Broadcast the newest state from the lowest survivor that has it; ranks that are behind load it."""
        self.work.level(group, [ballot.has_state and ballot.position == newest for ballot in ballots], leader)
        self.has_state = True

    def _reassign(self, group: Group, last: Group, leader: int, report: Report) -> None:
        owners = group.gather_objects(self.owners if group.rank == leader else None)[leader]
        rank_of = {member.identity: rank for rank, member in enumerate(group.members)}
        old_rank = {identity: place for place, identity in enumerate(dict.fromkeys(owners))}
        new_rank = {old_rank[i]: rank_of[i] for i in old_rank if i in rank_of and rank_of[i] < group.size}
        plan = self.work.reassign(Plan(tuple(old_rank[i] for i in owners)), new_rank, group)
        report.refusal = self.work.attach(group, plan)
        now = [group.members[rank].identity for rank in plan.owners]
        report.moved = moved_shards(owners, now)
        self.owners = now
        workers_before = {member.identity for member in last.members[: last.size]}
        report.promoted = [m.identity for m in group.members[: group.size] if m.identity not in workers_before]


def _failed_call(cause: PeerLost, me: Member) -> FailedCall | None:
    """The call whose error made this rank recover; None if another rank revoked the group or MPI reported a death."""
    if cause.ranks or cause.__cause__ is None:
        return None
    text = str(cause.__cause__)
    if "REVOKED" in text or "PROC_FAILED" in text:
        return None
    return FailedCall(me.identity, cause.doing, text)
