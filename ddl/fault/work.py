"""The contract between recovery and the work that it protects: what a rank holds, and what it runs.

Training (train/loop.py) and ``ddl.elastic`` implement it; driver.py and recover.py call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from ddl.comm import Group
from ddl.data import Plan, reassign
from ddl.errors import DdlError
from ddl.fault.decision import RankDeath

if TYPE_CHECKING:
    from ddl.fault.recover import Report


class EndJob(Exception):
    """Raised by ``Program.run`` on every worker at the same point: the job ends early because of ``error``."""

    def __init__(self, error: DdlError):
        self.error = error


class Recoverable:
    """Replicated state, and what binds it to a generation.

    parts: of the state, numbered from 0. Every rank holds all of it (one part), or each rank one of them."""

    parts: int = 1

    @property
    def part(self) -> int:
        """The part that this rank holds; below 0 if none."""
        return 0

    def position(self) -> tuple[int, int]:
        """(committed step, stage). After a failure every survivor gets the state with the largest position."""
        raise NotImplementedError

    def flat_arrays(self) -> list[np.ndarray]:
        """The state's arrays in host memory, in a fixed order. Callers only read them."""
        raise NotImplementedError

    def meta(self) -> Any:
        """The rest of the state: small and picklable."""
        raise NotImplementedError

    def take_over(self, arrays: list[np.ndarray], meta: Any) -> None:
        """Replace the whole state with another rank's. Must not communicate: either all of it changes or nothing."""
        raise NotImplementedError

    def level(self, group: Group, is_newest: Sequence[bool], root: int) -> None:
        """Give every worker the newest state. is_newest: by rank, whether it has that; root: the first that does."""
        if all(is_newest):
            return
        meta, arrays = received(group, self, root)
        if not is_newest[group.rank]:
            self.take_over(arrays, meta)

    def reassign(self, plan: Plan, new_rank: Mapping[int, int], group: Group) -> Plan:
        """The plan of a new generation; arguments as for ``ddl.data.reassign``."""
        return reassign(plan, new_rank, group.size)

    def attach(self, group: Group, plan: Plan) -> DdlError | None:
        """Bind to a new generation: open this rank's shards and allocate its buffers. May raise PeerLost.

        Returns the reason why the job cannot continue, the same on every worker, or None."""
        raise NotImplementedError

    def detach(self) -> None:
        """Release what ``attach`` opened. Called before every recovery, and possibly twice."""

    def is_quiet(self) -> bool:
        """Whether no other thread of this rank is inside a communication call."""
        return True


def received(group: Group, work: Recoverable, root: int) -> tuple[Any, list[np.ndarray]]:
    """The ``meta`` and ``flat_arrays`` of rank ``root``, on all ranks; there not copied. Raises PeerLost.

    Received into copies: if ``root`` dies meanwhile, the others still have their own state."""
    mine = group.rank == root
    arrays = work.flat_arrays() if mine else []
    sent = (work.meta(), [(array.shape, array.dtype) for array in arrays]) if mine else None
    meta, kinds = group.gather_objects(sent)[root]
    arrays = arrays or [np.empty(shape, dtype) for shape, dtype in kinds]
    for array in arrays:
        group.broadcast(array, root)
    return meta, arrays


class Program:
    """What a rank runs in every generation."""

    work: Recoverable

    def run(self) -> None:
        """Do the rest of the work; called again after each recovery. Raises PeerLost, or EndJob on all workers."""
        raise NotImplementedError

    def abandon(self, failure: DdlError) -> None:
        """All workers end the job early. Called in place of ``run``, again if a rank dies during it."""

    def exit_status(self, failure: DdlError | None) -> int:
        """The status with which all processes end after ``Driver.run`` returned ``failure``."""
        return 0 if failure is None else failure.exit_status

    def describe(self, error: Exception) -> RankDeath:
        """Describe an exception of this rank's own code, and leave a note about it for the other ranks."""
        raise NotImplementedError

    def raised_alone(self, error: Exception) -> None:
        """This rank raised, and no other rank continues without it. The exception is raised again afterwards."""

    def recovered(self, report: Report, failed: int, owners: tuple[int, ...]) -> None:
        """The rank belongs to the next generation. failed: number of the generation that lost a rank;
        owners: shard -> identity of the rank that computed it there."""

    def seconds_since_commit(self) -> float:
        """Seconds since every rank of this generation was last known to be alive."""
        return float("inf")

    def span(self, name: str) -> AbstractContextManager[None]:
        """Wraps a recovery, for tracing."""
        return nullcontext()
