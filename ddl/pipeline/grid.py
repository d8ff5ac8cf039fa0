"""Which rank computes which stage of which replica. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IDLE = -1


@dataclass(frozen=True)
class Grid:
    """ranks: by replica and stage. Workers that are not in it are idle: they hold no stage and compute nothing."""

    ranks: tuple[tuple[int, ...], ...]
    workers: int

    @property
    def replicas(self) -> int:
        return len(self.ranks)

    @property
    def heads(self) -> list[int]:
        """The ranks of the first stage: what is counted once for each replica is theirs."""
        return [chain[0] for chain in self.ranks]

    def place(self, rank: int) -> tuple[int, int]:
        """(replica, stage) of a rank; (IDLE, IDLE) if it has none."""
        for replica, chain in enumerate(self.ranks):
            if rank in chain:
                return replica, chain.index(rank)
        return IDLE, IDLE

    def column(self, stage: int) -> list[int]:
        """The ranks that hold ``stage``, by replica."""
        return [chain[stage] for chain in self.ranks]

    @property
    def idle(self) -> list[int]:
        return [rank for rank in range(self.workers) if self.place(rank) == (IDLE, IDLE)]


def first_grid(workers: int, stages: int) -> Grid:
    """Neighbouring ranks make a replica: ranks of one node, which are numbered together, exchange activations."""
    return Grid(
        tuple(tuple(range(at, at + stages)) for at in range(0, workers - workers % stages, stages)),
        workers,
    )


def regrid(held: Sequence[int], stages: int) -> Grid:
    """A grid of as many replicas as the workers can make, in which as few ranks as possible change their stage.

    held: by rank, the stage that it holds now; IDLE if none. Every stage is held by a rank."""
    replicas = len(held) // stages
    columns: list[list[int]] = [[rank for rank, one in enumerate(held) if one == stage] for stage in range(stages)]
    spare = [rank for rank, stage in enumerate(held) if stage == IDLE]
    for column in columns:
        spare += column[replicas:]
        del column[replicas:]
    for column in columns:
        while len(column) < replicas:
            column.append(spare.pop(0))
    return Grid(tuple(tuple(column[replica] for column in columns) for replica in range(replicas)), len(held))
