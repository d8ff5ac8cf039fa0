"""Work for the ranks that are fast: which shards move to which rank, from the seconds that each rank takes for its own.

Pure arithmetic, from times that all ranks have, so that all decide the same. work.py moves the shards."""

from __future__ import annotations

import numpy as np

from ddl.data import Plan

WINDOW = 4  # steps between two decisions
MOST = 12  # at a time one of so many shards moves, so that one wrong estimate does little harm
# A plan must make the slowest rank faster by this share of its time, or nothing moves.
LEAST_GAIN = 0.05


class Balancer:
    """Collects the seconds of ``ranks`` ranks in the steps of one generation.

    seconds: of each rank for one of its shards, at the last decision; NaN for a rank that has none."""

    def __init__(self, ranks: int):
        self.seconds = np.full(ranks, np.nan)
        self._times = np.empty((WINDOW, ranks))
        self._count = -1  # the first step compiles kernels and reads cold files

    def next(self, plan: Plan, seconds: np.ndarray) -> Plan | None:
        """The plan after this step if it should change; otherwise None. seconds: of each rank for this step."""
        if self._count >= 0:
            self._times[self._count] = seconds
        self._count += 1
        if self._count < WINDOW:
            return None
        self._count = 0
        counts = np.array(plan.counts(len(seconds)), float)
        counts[counts == 0] = np.nan
        times = self._times / counts
        self.seconds = np.median(times, axis=0)
        owners = balanced(plan.owners, times, max(plan.shards // MOST, 1))
        if owners == plan.owners:
            return None
        self._count = -1  # the first step with other shards may read cold files
        return Plan(owners)


def balanced(owners: tuple[int, ...], times: np.ndarray, most: int) -> tuple[int, ...]:
    """Owners with at most ``most`` shards moved from slower to faster ranks.

    times: (steps, ranks) seconds of each rank for one of its shards; NaN for a rank without one, which counts as the
    median of the others. Nothing moves unless the best plan pays even if the slowest rank is as fast as in its best
    step, and the others are as slow as in their worst: noise must not move shards to and fro. Every rank that has a
    shard keeps one, so that its speed stays known."""
    times = np.where(np.isnan(times), np.nanmedian(times, axis=1, keepdims=True), times)
    known, best, worst = np.median(times, axis=0), times.min(axis=0), times.max(axis=0)
    counts, moved, result = np.bincount(owners, minlength=times.shape[1]), list(owners), owners
    slowest = int((counts * known).argmax())
    before = float(counts[slowest] * best[slowest])
    for number in range(1, len(owners) + 1):
        slow, after = int((counts * known).argmax()), (counts + 1) * known
        fast = int(after.argmin())
        if counts[slow] < 2 or after[fast] >= counts[slow] * known[slow]:
            break
        shard = max(shard for shard, rank in enumerate(moved) if rank == slow)
        moved[shard] = fast
        counts[slow] -= 1
        counts[fast] += 1
        if number <= most:
            result = tuple(moved)
    pays = float((counts * worst).max()) <= (1 - LEAST_GAIN) * before
    return result if pays else owners
