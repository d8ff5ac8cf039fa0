"""The recovery loop: fence, revoke, shrink, agree, level, reassign - until a generation of survivors stands.

What is levelled and reassigned belongs to the caller (a ``Recoverable``); what to do is decision.py's;
which calls may be made after a death is comm's."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ddl.comm import Group, Member
from ddl.comm.topology import start_time
from ddl.data import Plan, reassign
from ddl.errors import DdlError, JobEnded, PeerLost, QuorumLost, Stop, UserCodeError
from ddl.fault.decision import Action, Death, Situation, decide, fatal_error


class Recoverable(Protocol):
    """What recovery asks of the work that it saves."""

    def position(self) -> tuple[int, int]:
        """(committed step, stage): the largest among the survivors is the state that all will hold."""
        ...

    def flat_arrays(self) -> list[np.ndarray]:
        """The state's arrays in host memory, in a fixed order; only read."""
        ...

    def meta(self) -> Any:
        """The small rest of the state: picklable."""
        ...

    def take_over(self, arrays: list[np.ndarray], meta: Any) -> None:
        """Replace the whole state by another rank's, at once: nothing in here waits for anybody."""
        ...

    def attach(self, group: Group, plan: Plan) -> DdlError | None:
        """Bind to a new generation: open this rank's shards and the buffers of its sums. May raise PeerLost.

        Returns, on every worker alike, the reason why the job cannot go on, if there is one."""
        ...


@dataclass(frozen=True)
class Settings:
    """min_ranks: fewer survivors stop the job. say: gets one line for each noteworthy turn."""

    min_ranks: int = 1
    fence_timeout_s: float = 10.0
    notes: Callable[[int], dict[str, Any] | None] = lambda identity: None
    beat: Callable[[str], None] = lambda phase: None
    # Around each part of a recovery, named "meet", "" or "read": watched by the companion.
    recovering: Callable[[str], AbstractContextManager[Any]] = nullcontext
    clock: Callable[[], float] = time.monotonic


@dataclass
class Report:
    """What a recovery did: who died, how long each phase took (seconds), and who holds which shards now."""

    generation: int
    deaths: list[Death]
    survivors: list[int]
    step: int
    phases: dict[str, float] = field(default_factory=dict)
    moved: dict[int, list[int]] = field(default_factory=dict)  # identity -> shards it took over
    promoted: list[int] = field(default_factory=list)  # spares that became workers
    refusal: DdlError | None = None  # why the survivors, all of them, may not go on

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())


def fence(member: Member, timeout_s: float, node: str) -> bool:
    """Kill a process of this node and see it gone: True once it can touch nothing any more.

    node: where this process lives. False for a process of another node, whose process numbers mean nothing here
    and which nobody here can vouch for, or one that will not go."""
    if member.node != node:
        return False
    if member.pid == os.getpid():
        return True  # ranks as threads of one process: one that is gone has returned
    deadline = time.monotonic() + timeout_s
    while (started := start_time(member.pid)) and (not member.started or started == member.started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def detection_s(note: Mapping[str, Any] | None, raised_s: float, began_s: float, longest_s: float) -> float:
    """Seconds from a death to the beginning of recovery at ``began_s`` (all times are ``time.time()``).

    note: of the dead rank, which tells when it ended; where it hung or was stopped its last sign of life counts.
    raised_s: when a call of this rank failed, which is all that is known without a note; a rank that computes hears
    late. longest_s: no death is older, since the dead rank took part in what was then."""
    sign_s = raised_s
    if note is not None and isinstance(note.get("time"), int | float):
        sign_s = note["time"] - note.get("after_s", 0.0)
    return min(max(began_s - sign_s, 0.0), max(longest_s, 0.0))


class Leaves(Exception):
    """This rank raised, the others can go on without it: it must end now."""


@dataclass(frozen=True)
class _Word:
    """What each worker of a new generation tells the others."""

    identity: int
    position: tuple[int, int]
    confirmed: frozenset[int]
    deaths: tuple[Death, ...]
    raised: Death | None
    failure: DdlError | None
    has_state: bool
    history: tuple[Death, ...]


def survive(
    group: Group, action: Callable[[Group], DdlError | None], mine: DdlError | None = None
) -> tuple[Group, DdlError | None]:
    """Do what can be done again from its beginning, such as setting up, until all workers have done it.

    The group is that of the survivors afterwards. action: tells every worker why the job cannot begin, or None.
    A spare does nothing. mine: what a spare has found out by itself. Whoever has no reason of its own is told that of
    the others as JobEnded, with their status."""
    while True:
        problem, done = mine if group.is_spare else None, 1
        try:
            if not group.is_spare:
                problem = action(group)
        except PeerLost:
            group.revoke()
            done = 0
        # All are told the status that the workers end with, or else the spares: an agreement is an AND of bits.
        status = 0 if problem is None else problem.exit_status
        place = _SPARES if group.is_spare else _WORKERS
        told = group.agree(done | (~(status << place) & (_STATUS << _WORKERS | _STATUS << _SPARES)))
        if told & 1:
            of_workers, of_spares = ~told >> _WORKERS & _STATUS, ~told >> _SPARES & _STATUS
            if of_workers:
                return group, JobEnded(of_workers) if group.is_spare else problem
            return group, problem or (JobEnded(of_spares) if of_spares else None)
        group.revoke()
        survivors = group.shrink()
        group.close()
        group = survivors


_STATUS, _WORKERS, _SPARES = 0xFF, 1, 9  # where in the vote of ``survive`` the statuses stand, inverted


class Recovery:
    """Recovers again and again over a job's life; remembers the deaths so far and the plan by identity.

    owners: shard -> identity of the worker that holds it."""

    def __init__(self, work: Recoverable, plan: Plan, group: Group, settings: Settings):
        self.work, self.settings = work, settings
        self.owners = [group.members[rank].identity for rank in plan.owners]
        self.history: list[Death] = []
        self.has_state = not group.is_spare
        self.raised: Death | None = None  # set before recover() by a rank whose own code raised
        self._told: dict[int, Death] = {}  # what ranks that raised have said themselves, by identity
        self.failure: DdlError | None = None  # why the job must end, as soon as some rank knows it
        self._deadline = ExitStack()  # the watchdog's limit on the recovery in progress

    def recover(self, group: Group, cause: PeerLost, agreed: bool = False) -> tuple[Group, Report]:
        """A sealed group of the survivors, all holding the newest committed state, its shards spread among them.

        The failed group is closed. agreed: the caller has been through the generation's closing agreement already.
        ``report.refusal`` is QuorumLost, Stop (too few ranks left) or UserCodeError (the job itself is broken),
        the same on every worker, where the survivors may not go on; the state is levelled then only for Stop.
        A rank that raised takes part until all know of it, since they might all have raised; then Leaves is raised."""
        with self._deadline:
            return self._recover(group, group, cause, agreed)

    def refill(self, group: Group, count: int) -> tuple[Group, Report]:
        """A group with ``count`` new processes beside the members, all of them workers with the newest state.

        Called by all members after a recovery, whose time limit holds for this as well. When somebody dies in
        this, what is returned is the group that a recovery from that has left."""
        with self._deadline:
            self._within_limit()
            began = self.settings.clock()
            self.settings.beat("recover refill")
            group.probe("recover.refill")
            group.doing = "recovery"
            try:
                wider = group.refill(count)
            except PeerLost as lost:
                return self._recover(group, group, lost, False)
            group.close()
            refill_s = self.settings.clock() - began
            wider, report = self._recover(wider, group, None, True)
            report.phases = {"refill": refill_s, **report.phases}
            return wider, report

    def join(self, group: Group) -> tuple[Group, Report]:
        """The newcomer's side of ``refill``, in the group that it was started for."""
        self.has_state = False
        with self._deadline:
            return self._recover(group, group, None, True)

    def _within_limit(self, part: str = "") -> None:
        """The limit begins anew: that of this part."""
        self._deadline.close()
        self._deadline.enter_context(self.settings.recovering(part))

    def _recover(self, group: Group, last: Group, cause: PeerLost | None, agreed: bool) -> tuple[Group, Report]:
        """cause: None where ``group`` is whole, and only has to be bound to. last: the one of the plan so far."""
        clock = self.settings.clock
        phases: dict[str, float] = {}
        mark = clock()
        group.doing = "recovery"
        before = list(group.members)
        lost = None if cause is None else set(cause.ranks)

        def lap(phase: str) -> None:
            nonlocal mark
            now = clock()
            phases[phase] = phases.get(phase, 0.0) + now - mark
            mark = now

        def enter(phase: str) -> None:
            self.settings.beat(phase)
            group.probe(f"recover.{phase}")

        while True:
            # A rank that has not heard of the death yet may compute or hang first, for as long as any rank may.
            self._within_limit("" if agreed else "meet")
            if lost is not None:
                enter("fence")
                for rank in lost:
                    fence(group.members[rank], self.settings.fence_timeout_s, group.me.node)
                lap("fence")
                enter("revoke")
                group.revoke()
                lap("revoke")
                enter("shrink")
                if not agreed:  # every member leaves a generation through exactly one agreement: has it ended, or not
                    group.agree(0)
                    self._within_limit()
                survivors = group.shrink()
                group.close()
                group, lost = survivors, set()  # ranks are those of a group: the last one's mean nothing here
                lap("shrink")
            try:
                enter("agree")
                report = self._settle(group, last, before, lap, enter)
                done = 1
            except PeerLost as again:
                lost = set(again.ranks)
                group.revoke()
                done = 0
            agreed = True
            if group.agree(done):
                group.doing = "job"
                self.history.extend(report.deaths)
                self.raised, report.phases = None, phases
                return group, report

    def _settle(self, group: Group, last: Group, before: Sequence[Member], lap: Callable, enter: Callable) -> Report:
        """Everything between the shrink and the closing agreement; PeerLost means that it starts again."""
        alive = {member.identity for member in group.members}
        gone = [member for member in before if member.identity not in alive]
        confirmed = frozenset(m.identity for m in gone if fence(m, self.settings.fence_timeout_s, group.me.node))
        if group.is_spare:
            self._within_limit("read")  # it waits for those that do
            return Report(group.generation, [], sorted(alive), 0)
        deaths = tuple(self._death(m) for m in gone)
        word = _Word(
            group.me.identity,
            self.work.position(),
            confirmed,
            deaths,
            self.raised,
            self.failure,
            self.has_state,
            tuple(self.history),
        )
        words: list[_Word] = group.gather_objects(word)
        holders = [w for w in words if w.has_state]
        if not holders:
            lost = Stop("only spares are left and none holds the state: start again from the newest checkpoint")
            return Report(group.generation, list(deaths), sorted(alive), 0, refusal=lost)
        newest = max(w.position for w in holders)
        leader = next(rank for rank, w in enumerate(words) if w.has_state and w.position == newest)
        if not all(w.position[0] >= newest[0] - 1 for w in holders):
            raise AssertionError(f"committed steps differ by more than one: {[w.position for w in words]}")
        self.history = list(words[leader].history)  # a spare that steps in has not seen it
        raised = [w.raised for w in words if w.raised is not None]
        self._told.update((death.identity, death) for death in raised)
        deaths = (*words[leader].deaths, *raised)
        now = Situation(
            last=[m.identity for m in before],
            alive=alive,
            confirmed=frozenset().union(*(w.confirmed for w in words)),
            minimum=self.settings.min_ranks,
            committed=newest[0],
            deaths=deaths,
            history=self.history,
            leaving=[death.identity for death in raised],
        )
        lap("agree")
        action = decide(now)
        refusal = self._refusal(action, now, group)
        if refusal is None or action is Action.STOP:
            # What one rank came to know before the death holds for all of them.
            self.failure = next((w.failure for w in words if w.failure is not None), None)
            refusal = self.failure or refusal
        report = Report(group.generation, list(deaths), sorted(alive), newest[0], refusal=refusal)
        if refusal is not None and (action is not Action.STOP or self.failure is not None):
            return report
        if self.raised is not None:
            raise Leaves
        enter("level")
        self._level(group, words, newest, leader)
        lap("level")
        if refusal is None:  # otherwise the leader saves what is newest, and all leave
            enter("reassign")
            self._within_limit("read")
            self._reassign(group, last, leader, report)
            lap("reassign")
        return report

    def _death(self, member: Member) -> Death:
        if member.identity in self._told:
            return self._told[member.identity]
        note = self.settings.notes(member.identity) or {}
        return Death(
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
    def _refusal(action: Action, now: Situation, group: Group) -> DdlError | None:
        if action is Action.LEAVE:
            return QuorumLost(
                f"only {len(now.alive)} of {len(now.last)} ranks of the last generation can be reached and nobody "
                "saw the others end; the other side may be going on, so this one leaves and writes nothing"
            )
        if action is Action.FAIL:
            death = fatal_error(now)
            assert death is not None
            again = "" if now.committed == 0 else ", and it was not the first of its kind"
            return UserCodeError(
                f"rank {death.identity} raised {death.error} at step {death.step}{again}", death.traceback
            )
        if action is Action.STOP:
            left = len(now.alive) - len(now.leaving)
            return Stop(f"{left} ranks are left, fault.min_ranks is {now.minimum}")
        return None

    def _level(self, group: Group, words: Sequence[_Word], newest: tuple[int, int], leader: int) -> None:
        """The lowest survivor with the newest state gives it to those that are behind or have none."""
        if all(w.has_state and w.position == newest for w in words):
            return
        meta = group.gather_objects(self.work.meta() if group.rank == leader else None)[leader]
        # Received aside: when the leader dies in this, whoever is behind still holds its own, older state.
        arrays = [flat if group.rank == leader else flat.copy() for flat in self.work.flat_arrays()]
        for flat in arrays:
            group.broadcast(flat, leader)
        if not (words[group.rank].has_state and words[group.rank].position == newest):
            self.work.take_over(arrays, meta)
            self.has_state = True

    def _reassign(self, group: Group, last: Group, leader: int, report: Report) -> None:
        owners = group.gather_objects(self.owners if group.rank == leader else None)[leader]
        rank_of = {member.identity: rank for rank, member in enumerate(group.members)}
        old_rank = {identity: place for place, identity in enumerate(dict.fromkeys(owners))}
        new_rank = {old_rank[i]: rank_of[i] for i in old_rank if i in rank_of and rank_of[i] < group.size}
        plan = reassign(Plan(tuple(old_rank[i] for i in owners)), new_rank, group.size)
        report.refusal = self.work.attach(group, plan)
        now = [group.members[rank].identity for rank in plan.owners]
        for shard, (old, new) in enumerate(zip(owners, now, strict=True)):
            if old != new:
                report.moved.setdefault(new, []).append(shard)
        self.owners = now
        workers_before = {member.identity for member in last.members[: last.size]}
        report.promoted = [m.identity for m in group.members[: group.size] if m.identity not in workers_before]
