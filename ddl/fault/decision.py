"""What to do about a failure: a pure function from what the survivors know to what they do.

Performing it is recover.py's."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

_NUMBER = re.compile(r"\d+")


class Action(Enum):
    CONTINUE = "continue"  # take over the shards of the dead and go on
    LEAVE = "leave"  # the right to go on may be with the other side: status 75, write nothing
    STOP = "stop"  # too few ranks are left: status 75, after a checkpoint
    FAIL = "fail"  # the job itself is broken: status 1 with the cause


@dataclass(frozen=True)
class Death:
    """One process that is gone. ``kind``: "crash", "exception", "hang", "stopped" or "recovery".

    step: the step it was computing, -1 where nobody knows. shards: those it held."""

    identity: int
    host: str
    kind: str
    step: int = -1
    shards: frozenset[int] = frozenset()
    error: str = ""  # an exception's type, message and place, without addresses
    traceback: str = ""
    phase: str = ""  # what it was at


@dataclass(frozen=True)
class Situation:
    """What all survivors know once they agree on who is left.

    last: identities of the last generation's workers and spares, by rank. alive: survivors.
    confirmed: dead that some survivor has seen to be gone. committed: the newest committed step.
    deaths: this failure's; history: earlier ones of this launch. leaving: alive, but about to die of an
    exception, which is among the deaths already."""

    last: Sequence[int]
    alive: Collection[int]
    confirmed: Collection[int]
    minimum: int
    committed: int
    deaths: Sequence[Death] = ()
    history: Sequence[Death] = ()
    leaving: Collection[int] = ()


def has_quorum(last: Sequence[int], alive: Collection[int], confirmed: Collection[int]) -> bool:
    """Whether this side may go on: nobody it lost can be running elsewhere, or it holds the larger half.

    Confirmed dead do not vote: they cannot be on the other side. On a tie the side of the lowest voter wins."""
    voters = [identity for identity in last if identity not in confirmed]
    present = [identity for identity in voters if identity in alive]
    if 2 * len(present) == len(voters):
        return not voters or voters[0] in alive
    return 2 * len(present) > len(voters)


def repeated_error(deaths: Sequence[Death], history: Sequence[Death]) -> Death | None:
    """An exception of user code that has now happened twice: same step and shard, or same error on another rank.

    Numbers in a message do not tell errors apart: they are mostly steps, samples and values."""
    seen = list(history)
    for death in deaths:
        if death.kind == "exception":
            for earlier in seen:
                if earlier.kind != "exception":
                    continue
                same_work = earlier.step == death.step and bool(earlier.shards & death.shards)
                same_error = _NUMBER.sub("0", earlier.error) == _NUMBER.sub("0", death.error)
                if same_work or (same_error and earlier.identity != death.identity):
                    return death
        seen.append(death)
    return None


def fatal_error(now: Situation) -> Death | None:
    """The exception that makes going on pointless: repeated, raised by all who are left, or before the first commit."""
    repeated = repeated_error(now.deaths, now.history)
    if repeated is None and (now.committed == 0 or set(now.alive) <= set(now.leaving)):
        return next((death for death in now.deaths if death.kind == "exception"), None)
    return repeated


def decide(now: Situation) -> Action:
    """What to do once the survivors agree on who is left."""
    if not has_quorum(now.last, now.alive, now.confirmed):
        return Action.LEAVE
    if fatal_error(now) is not None:
        return Action.FAIL
    if len(now.alive) - len(now.leaving) < now.minimum:
        return Action.STOP
    return Action.CONTINUE
