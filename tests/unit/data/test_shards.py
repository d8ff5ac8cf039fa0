"""Shards are spread evenly over ranks, and after deaths and joins as few as possible move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddl.data import Plan, assign, auto_shards, reassign
from ddl.errors import ConfigError


@pytest.mark.parametrize(
    ("batch", "samples", "shards"),
    [
        (256, 1437, 120),
        (240, 1437, 120),
        (239, 1437, 60),
        (64, 1437, 24),
        (8, 100, 4),
        (3, 100, 1),
        (1, 1, 1),
        (256, 5, 2),
    ],
)
def test_auto_shards_is_the_largest_of_its_list_up_to_half_the_batch(batch, samples, shards):
    assert auto_shards(batch, samples) == shards


@pytest.mark.parametrize(("batch", "samples"), [(0, 10), (10, 0), (-1, 5)])
def test_nothing_cannot_be_sharded(batch, samples):
    with pytest.raises(ConfigError):
        auto_shards(batch, samples)


@given(st.integers(1, 130), st.integers(1, 20))
def test_assign_gives_contiguous_runs_that_differ_by_at_most_one(shards, ranks):
    plan = assign(shards, ranks)
    assert list(plan.owners) == sorted(plan.owners)
    counts = plan.counts(ranks)
    assert sum(counts) == shards
    assert max(counts) - min(counts) <= 1
    assert [shard for rank in range(ranks) for shard in plan.shards_of(rank)] == list(range(shards))


def fewest_moves(plan, new_rank, ranks):
    """By trying: how many shards must change hands so that counts differ by at most one."""
    held = [0] * ranks
    for owner in plan.owners:
        if owner in new_rank:
            held[new_rank[owner]] += 1
    base, more = divmod(len(plan.owners), ranks)
    kept = sum(min(count, base) for count in held)
    # ``more`` ranks may keep one beyond the base.
    kept += min(more, sum(count > base for count in held))
    return len(plan.owners) - kept


@given(st.data())
def test_reassign_stays_balanced_and_moves_the_fewest_after_any_deaths_and_joins(data):
    ranks = data.draw(st.integers(1, 8))
    plan = assign(data.draw(st.integers(1, 60)), ranks)
    for _ in range(data.draw(st.integers(1, 5))):
        survivors = sorted(data.draw(st.sets(st.integers(0, ranks - 1), min_size=1)))
        joined = data.draw(st.integers(0, 3))
        # Newcomers may come anywhere among the numbers.
        ranks_after = len(survivors) + joined
        numbers = data.draw(st.permutations(range(ranks_after)))[: len(survivors)]
        new_rank = dict(zip(survivors, sorted(numbers), strict=True))
        after = reassign(plan, new_rank, ranks_after)
        counts = after.counts(ranks_after)
        assert sum(counts) == plan.shards
        assert max(counts) - min(counts) <= 1
        moved = sum(new_rank.get(old) != new for old, new in zip(plan.owners, after.owners, strict=True))
        assert moved == fewest_moves(plan, new_rank, ranks_after)
        plan, ranks = after, ranks_after


def test_nothing_moves_when_no_rank_died():
    plan = Plan((0, 1, 0, 1, 2))
    assert reassign(plan, {0: 0, 1: 1, 2: 2}, 3) == plan


def test_shards_of_a_dead_rank_are_spread():
    after = reassign(assign(24, 4), {0: 0, 2: 1, 3: 2}, 3)
    assert after.counts(3) == [8, 8, 8]
    assert set(range(6)) <= set(after.shards_of(0))
