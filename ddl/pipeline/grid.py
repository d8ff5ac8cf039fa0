"""Which rank computes which stage of which replica. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IDLE = -1


@dataclass(frozen=True)
class Grid:
    """ranks: by replica and stage. standbys: (rank, stage) of the workers that are left over. They compute nothing, but
    hold a stage and commit its steps, so that they can take a dead rank's place."""

    ranks: tuple[tuple[int, ...], ...]
    standbys: tuple[tuple[int, int], ...] = ()

    @property
    def replicas(self) -> int:
        return len(self.ranks)

    @property
    def heads(self) -> list[int]:
        """The ranks of the first stage: what is counted once for each replica is theirs."""
        return [chain[0] for chain in self.ranks]

    def place(self, rank: int) -> tuple[int, int]:
        """(replica, stage) of a rank; the replica of a standby is IDLE, and the stage of a rank that has none."""
        for replica, chain in enumerate(self.ranks):
            if rank in chain:
                return replica, chain.index(rank)
        return IDLE, dict(self.standbys).get(rank, IDLE)

    def computing(self, stage: int) -> list[int]:
        """The ranks that compute ``stage``, by replica."""
        return [chain[stage] for chain in self.ranks]

    def column(self, stage: int) -> list[int]:
        """The ranks that hold ``stage``, standbys last."""
        return [*self.computing(stage), *(rank for rank, held in self.standbys if held == stage)]


def first_grid(workers: int, stages: int) -> Grid:
    """Neighbouring ranks make a replica: ranks of one node, which are numbered together, exchange activations."""
    replicas = workers // stages
    chains = tuple(tuple(range(at * stages, (at + 1) * stages)) for at in range(replicas))
    return Grid(chains, tuple((rank, rank % stages) for rank in range(replicas * stages, workers)))


def regrid(held: Sequence[int], stages: int) -> Grid:
    """A grid of as many replicas as the workers can make, in which as few ranks as possible change their stage.

    held: by rank, the stage that it holds now; IDLE if none. Every stage is held by a rank."""
    replicas = len(held) // stages
    columns: list[list[int]] = [[rank for rank, one in enumerate(held) if one == stage] for stage in range(stages)]
    free = [rank for rank, stage in enumerate(held) if stage == IDLE]
    for column in columns:
        free += column[replicas:]
        del column[replicas:]
    for column in columns:
        while len(column) < replicas:
            column.append(free.pop(0))
    chains = tuple(tuple(column[replica] for column in columns) for replica in range(replicas))
    # What is left over are fewer ranks than stages: each keeps its stage, or takes one that no other stands by for.
    kept = {rank: held[rank] for rank in free if held[rank] != IDLE}
    others = iter([*(stage for stage in range(stages) if stage not in kept.values()), *range(stages)])
    return Grid(chains, tuple((rank, kept[rank] if rank in kept else next(others)) for rank in sorted(free)))
