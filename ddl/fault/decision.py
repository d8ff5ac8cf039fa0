"""What to do about a failure: a pure function from what the survivors know to what they do.

recover.py carries it out."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

_NUMBER = re.compile(r"\d+")


class Action(Enum):
    CONTINUE = "continue"  # take over the shards of the dead ranks and keep training
    LEAVE = "leave"  # the other side of a partition may be training: status 75, write nothing
    RESTART = "restart"  # no survivor holds a part of the state: status 75, without a checkpoint
    STOP = "stop"  # too few ranks are left: status 75, after a checkpoint
    FAIL = "fail"  # the job itself is broken: status 1, with the cause


@dataclass(frozen=True)
class RankDeath:
    """One rank that died. ``kind``: "crash", "exception", "hang", "stopped" or "recovery".

    step: the step it was computing, -1 if unknown. shards: those it held. error: an exception's type, message and
    location without addresses, or the name of the fatal signal of a native crash; "" for a crash without a trace
    (SIGKILL, power loss). phase: of the step."""

    identity: int
    host: str
    kind: str
    step: int = -1
    shards: frozenset[int] = frozenset()
    error: str = ""
    traceback: str = ""
    phase: str = ""


@dataclass(frozen=True)
class FailedCall:
    """A communication call that failed on a rank: its name and the error's text."""

    identity: int
    name: str
    error: str


@dataclass(frozen=True)
class Situation:
    """What all survivors know after they have agreed on the list of survivors.

    last: identities of the last generation's workers and spares, by rank. alive: survivors.
    confirmed: dead ranks whose end a survivor has observed. committed: the newest committed step.
    deaths: of this failure; history: earlier ones of this launch. leaving: alive, but about to end because of an
    exception that is among ``deaths``. without_death: recoveries in a row at this step, this one included, in which no
    rank had died although a call had failed; calls: the calls that failed this time. lost_parts: parts of the
    state that are held by no survivor that stays."""

    last: Sequence[int]
    alive: Collection[int]
    confirmed: Collection[int]
    minimum: int
    committed: int
    deaths: Sequence[RankDeath] = ()
    history: Sequence[RankDeath] = ()
    leaving: Collection[int] = ()
    without_death: int = 0
    calls: Sequence[FailedCall] = ()
    lost_parts: Sequence[int] = ()


def has_quorum(last: Sequence[int], alive: Collection[int], confirmed: Collection[int]) -> bool:
    """Whether this side may continue: it has the larger half of the ranks that may still be running.

    Ranks that are confirmed dead have no vote, since they cannot be on the other side. In a tie the side with the
    lowest voter wins."""
    voters = [identity for identity in last if identity not in confirmed]
    present = [identity for identity in voters if identity in alive]
    if 2 * len(present) == len(voters):
        return not voters or voters[0] in alive
    return 2 * len(present) > len(voters)


def repeats(death: RankDeath, earlier: RankDeath) -> bool:
    """Whether two deaths have the same cause in the job's own code, so that further ranks would die of it too.

    Exceptions: the same step and shard, or the same error on another rank. Numbers in a message are ignored: they are
    mostly steps, samples and values. Native crashes: the same signal at the same step and phase on another rank."""
    if death.kind != earlier.kind:
        return False
    others = death.identity != earlier.identity
    if death.kind == "exception":
        same_work = earlier.step == death.step and bool(earlier.shards & death.shards)
        return same_work or (others and _NUMBER.sub("0", earlier.error) == _NUMBER.sub("0", death.error))
    if death.kind == "crash" and death.error:
        return others and (death.error, death.step, death.phase) == (earlier.error, earlier.step, earlier.phase)
    return False


def repeated_death(deaths: Sequence[RankDeath], history: Sequence[RankDeath]) -> RankDeath | None:
    """The first of ``deaths`` that repeats an earlier one; None if there is none."""
    seen = list(history)
    for death in deaths:
        if any(repeats(death, earlier) for earlier in seen):
            return death
        seen.append(death)
    return None


def fatal_death(now: Situation) -> RankDeath | None:
    """The death that makes it pointless to continue: repeated, or an exception raised by all ranks that are left, or
    before the first commit, or on the last rank that held a part of the state."""
    repeated = repeated_death(now.deaths, now.history)
    if repeated is None and (now.committed == 0 or now.lost_parts or set(now.alive) <= set(now.leaving)):
        return next((death for death in now.deaths if death.kind == "exception"), None)
    return repeated


def decide(now: Situation) -> Action:
    """What to do after the survivors have agreed on the list of survivors."""
    if not has_quorum(now.last, now.alive, now.confirmed):
        return Action.LEAVE
    # An MPI error without a death may be a network error that does not return; at the second one it will.
    if fatal_death(now) is not None or now.without_death > 1:
        return Action.FAIL
    if now.lost_parts:
        return Action.RESTART
    if len(now.alive) - len(now.leaving) < now.minimum:
        return Action.STOP
    return Action.CONTINUE
