"""Every sample once per epoch, whatever the sizes; steps do not depend on who computes which shard."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddl.data import Order, assign
from ddl.errors import ConfigError


@st.composite
def orders(draw):
    samples = draw(st.integers(1, 300))
    return Order(
        samples,
        draw(st.integers(1, min(samples, 30))),
        draw(st.integers(1, 350)),
        draw(st.integers(0, 3)),
        draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(0, 3), st.integers(1, 4))
def test_an_epoch_uses_every_sample_once(order, epoch, parts):
    seen = [
        order.indices(epoch, step, range(order.shards), part, parts)[0]
        for step in range(order.steps_per_epoch)
        for part in range(parts)
    ]
    assert sorted(np.concatenate(seen)) == list(range(order.samples))


@settings(max_examples=60, deadline=None)
@given(orders())
def test_steps_are_full_and_shares_differ_by_at_most_one(order):
    for step in range(order.steps_per_epoch):
        shares = [len(order.share(step, shard)) for shard in range(order.shards)]
        assert sum(shares) == order.step_samples(step)
        assert max(shares) - min(shares) <= 1
        last = step == order.steps_per_epoch - 1
        assert last or sum(shares) == order.global_batch


@settings(max_examples=60, deadline=None)
@given(orders())
def test_shards_are_ranges_that_cover_the_samples(order):
    covered = [number for shard in range(order.shards) for number in order.shard_range(shard)]
    assert covered == list(range(order.samples))
    assert [len(order.shard_range(s)) for s in range(order.shards)] == [
        order.shard_size(s) for s in range(order.shards)
    ]


@settings(max_examples=40, deadline=None)
@given(orders(), st.integers(0, 2), st.integers(1, 3), st.data())
def test_a_shards_samples_are_the_same_in_any_company(order, epoch, parts, data):
    ranks = data.draw(st.integers(1, 6))
    plan = assign(order.shards, ranks)
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    part = data.draw(st.integers(0, parts - 1))
    together, segments = order.indices(epoch, step, range(order.shards), part, parts)
    for rank in range(ranks):
        own = plan.shards_of(rank)
        numbers, own_segments = order.indices(epoch, step, own, part, parts)
        assert len(own_segments) == len(own)
        for shard, segment in zip(own, own_segments, strict=True):
            assert list(numbers[segment]) == list(together[segments[shard]])
            assert set(numbers[segment]) <= set(order.shard_range(shard))
        assert sum(s.stop - s.start for s in own_segments) == len(numbers)


@settings(max_examples=40, deadline=None)
@given(orders(), st.integers(0, 2))
def test_the_table_agrees_with_the_definition(order, epoch):
    """Position p of the epoch belongs to shard p mod S, and is its (p // S)-th."""
    for step in range(order.steps_per_epoch):
        numbers, segments = order.indices(epoch, step, range(order.shards))
        for shard in range(order.shards):
            shuffled = order.permutation(epoch, shard) + order.shard_range(shard).start
            positions = range(step * order.global_batch, min((step + 1) * order.global_batch, order.samples))
            want = [shuffled[p // order.shards] for p in positions if p % order.shards == shard]
            assert list(numbers[segments[shard]]) == want


def test_parts_together_are_the_step():
    order = Order(100, 6, 40, seed=1)
    whole, segments = order.indices(2, 1, [1, 4])
    pieces = [order.indices(2, 1, [1, 4], part, 3) for part in range(3)]
    for place in range(2):
        joined = np.concatenate([numbers[cut[place]] for numbers, cut in pieces])
        assert list(joined) == list(whole[segments[place]])


def test_epochs_and_seeds_shuffle_differently_and_no_shuffle_is_in_order():
    order = Order(60, 2, 10, seed=0)
    assert not np.array_equal(order.permutation(0, 0), order.permutation(1, 0))
    assert not np.array_equal(order.permutation(0, 0), Order(60, 2, 10, seed=1).permutation(0, 0))
    assert list(Order(60, 2, 10, 0, shuffle=False).indices(5, 0, [0])[0]) == [0, 1, 2, 3, 4]


def test_the_shuffle_is_pinned():
    """A resumed job must meet the same order, whatever version of NumPy it runs on."""
    assert Order(8, 1, 4, seed=7).permutation(3, 0).tolist() == PINNED


PINNED = [4, 5, 1, 6, 3, 7, 2, 0]


def test_a_rank_without_shards_has_empty_steps():
    numbers, segments = Order(10, 2, 4, 0).indices(0, 0, [])
    assert len(numbers) == 0
    assert segments == []


@pytest.mark.parametrize(("samples", "shards", "batch"), [(0, 1, 1), (5, 6, 1), (5, 0, 1), (5, 1, 0)])
def test_impossible_orders_are_refused(samples, shards, batch):
    with pytest.raises(ConfigError):
        Order(samples, shards, batch, 0)
