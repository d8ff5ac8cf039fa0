"""Assign shards to ranks: pure arithmetic.

order.py defines the samples of a shard and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ddl.errors import ConfigError

# Numbers of shards with many divisors, so that they spread evenly over most numbers of ranks.
AUTO_COUNTS = (120, 60, 48, 24, 12, 6, 4, 2, 1)


def auto_shards(global_batch: int, samples: int, least: int = 2) -> int:
    """The number of shards of a job: depends on the batch, the dataset and the model alone, never on ranks.

    The largest of AUTO_COUNTS that leaves each shard ``least`` samples of a step (two, since statistics of one sample
    are worth nothing) and is not above ``samples``; 1 at least.
    Raises ConfigError for an empty batch or dataset."""
    if global_batch < 1 or samples < 1:
        raise ConfigError(f"a global batch of {global_batch} from {samples} samples is empty")
    # The batch cannot hold more than the dataset has.
    most = min(global_batch, samples) // least
    return next((count for count in AUTO_COUNTS if count <= most), 1)


@dataclass(frozen=True)
class Plan:
    """The assignment of shards in one generation. ``owners[shard]`` is the shard's rank."""

    owners: tuple[int, ...]

    @property
    def shards(self) -> int:
        return len(self.owners)

    @cached_property
    def _by_rank(self) -> dict[int, list[int]]:
        by_rank: dict[int, list[int]] = {}
        for shard, rank in enumerate(self.owners):
            by_rank.setdefault(rank, []).append(shard)
        return by_rank

    def shards_of(self, rank: int) -> list[int]:
        """The shards of a rank, ascending; empty for an idle one."""
        return list(self._by_rank.get(rank, ()))

    def counts(self, ranks: int) -> list[int]:
        """How many shards each of ``ranks`` ranks has."""
        return [len(self._by_rank.get(rank, ())) for rank in range(ranks)]


def quotas(shards: int, ranks: Sequence[int]) -> dict[int, int]:
    """How many shards each of ``ranks`` should have: they differ by at most one, the first named have more."""
    base, more = divmod(shards, len(ranks))
    return {rank: base + (place < more) for place, rank in enumerate(ranks)}


def assign(shards: int, ranks: int) -> Plan:
    """The first plan of a job: contiguous runs whose lengths differ by at most one.

    With more ranks than shards the last ranks are idle."""
    share = quotas(shards, range(ranks))
    return Plan(tuple(rank for rank in range(ranks) for _ in range(share[rank])))


def moved_shards(before: Sequence[int], after: Sequence[int]) -> dict[int, list[int]]:
    """new owner -> the shards that it got, where ``before`` and ``after`` are the owners by shard."""
    moved: dict[int, list[int]] = {}
    for shard, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            moved.setdefault(new, []).append(shard)
    return moved


def reassign(plan: Plan, new_rank: Mapping[int, int], ranks: int) -> Plan:
    """The plan of the next generation.

    new_rank: surviving old rank -> its number among the ``ranks`` of the new generation; the other numbers are new
    ranks. Counts differ by at most one, and no plan that is so balanced moves fewer shards: a survivor keeps its
    shards, up to its quota."""
    held: dict[int, list[int]] = {rank: [] for rank in range(ranks)}
    free: list[int] = []
    for shard, old in enumerate(plan.owners):
        if old in new_rank:
            held[new_rank[old]].append(shard)
        else:
            free.append(shard)
    # The ranks that hold most get the larger quotas, so that as few shards as possible move.
    share = quotas(plan.shards, sorted(range(ranks), key=lambda rank: (-len(held[rank]), rank)))
    for rank in range(ranks):
        free.extend(held[rank][share[rank] :])
        del held[rank][share[rank] :]
    free.sort()
    owners = [0] * plan.shards
    taken = 0
    for rank in range(ranks):
        lacking = share[rank] - len(held[rank])
        for shard in (*held[rank], *free[taken : taken + lacking]):
            owners[shard] = rank
        taken += lacking
    return Plan(tuple(owners))
