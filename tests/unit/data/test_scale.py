"""Planning, reassigning and auditing do not grow with the samples: a billion of them over 4,096 ranks."""

import tracemalloc

from ddl.data import Order, Record, Start, assign, audit, reassign

RANKS, SHARDS, SAMPLES = 4096, 8192, 10**9
LIMIT_BYTES = 16 << 20


def test_a_billion_samples_over_4096_ranks_are_planned_reassigned_and_audited_in_a_few_mib():
    tracemalloc.start()
    try:
        order = Order(SAMPLES, SHARDS, 1 << 17, seed=1)
        first = assign(SHARDS, RANKS)
        dead = {7, 1023, 4095}
        alive = [rank for rank in range(RANKS) if rank not in dead]
        second = reassign(first, {old: new for new, old in enumerate(alive)}, len(alive))
        entries: list[Start | Record] = [Start("a", 0, 0, order)]
        for step in range(2 * order.steps_per_epoch):
            plan = first if step < 1000 else second
            samples = order.step_samples(step % order.steps_per_epoch)
            entries.append(Record("a", int(step >= 1000), step, plan.owners, False, samples))
        found = audit(entries)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert first.counts(RANKS) == [2] * RANKS
    assert sorted(set(second.counts(len(alive)))) == [2, 3]
    moved = sum(alive[new] != old for old, new in zip(first.owners, second.owners, strict=True))
    assert moved == 2 * len(dead)  # only what the dead ranks had
    assert found.is_exact and found.used == found.expected == 2 * SAMPLES
    assert sum(len(order.shard_range(shard)) for shard in range(SHARDS)) == SAMPLES
    assert peak < LIMIT_BYTES
