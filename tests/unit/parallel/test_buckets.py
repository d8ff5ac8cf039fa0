"""Buckets cover the gradient once, and are sent in plan order once they are complete."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddl.arrays import Layout
from ddl.parallel.buckets import BucketTracker, buckets

sizes = st.lists(st.integers(0, 100), min_size=1, max_size=12)


@given(sizes=sizes, limit=st.integers(0, 2000), data=st.data())
def test_buckets_cover_the_buffer_once_in_any_order(sizes, limit, data):
    layout = Layout.of({f"p{i}": (size,) for i, size in enumerate(sizes)})
    order = data.draw(st.permutations(list(layout.shapes)))
    plan = buckets(layout, limit, order)
    assert sorted(i for b in plan for i in range(b.span.start, b.span.stop)) == list(range(layout.length))
    assert sorted(name for b in plan for name in b.names) == sorted(layout.shapes)
    for bucket in plan:
        for name in bucket.names:
            cut = layout.slices[name]
            assert bucket.span.start <= cut.start and cut.stop <= bucket.span.stop


def test_backward_order_is_the_default_and_the_limit_closes_a_bucket():
    layout = Layout.of({"a": (16,), "b": (16,), "c": (16,)})
    assert [b.names for b in buckets(layout, 128)] == [("c", "b"), ("a",)]
    assert [b.names for b in buckets(layout, 1)] == [("c",), ("b",), ("a",)]
    assert [b.names for b in buckets(layout, 1e9)] == [("c", "b", "a")]


def test_an_order_that_misses_a_name_raises():
    with pytest.raises(ValueError, match="b"):
        buckets(Layout.of({"a": (1,), "b": (1,)}), 0, ["a"])


@given(sizes=sizes, data=st.data())
def test_buckets_are_sent_in_plan_order_once_complete_and_the_last_is_held(sizes, data):
    layout = Layout.of({f"p{i}": (size,) for i, size in enumerate(sizes)})
    plan = buckets(layout, 200)
    progress = BucketTracker(plan)
    for _ in range(2):  # a flush begins a new step
        announced, sent = set(), []
        for name in data.draw(st.permutations(list(layout.shapes))):
            announced.add(name)
            for number in progress.announce([name]):
                assert set(plan[number].names) <= announced
                sent.append(number)
        assert sent == list(range(len(plan) - 1))
        assert list(progress.flush()) == [len(plan) - 1]


def test_names_never_announced_are_sent_at_the_end():
    layout = Layout.of({"a": (16,), "b": (16,), "c": (16,)})
    progress = BucketTracker(buckets(layout, 1))
    assert list(progress.announce(["b"])) == []
    assert list(progress.flush()) == [0, 1, 2]


def test_sums_of_averages_come_last_and_delay_no_gradient():
    params, averages = ["conv", "norm", "dense"], ["norm.mean", "norm.variance"]
    layout = Layout.of(dict.fromkeys([*params, *averages], (16,)))
    progress = BucketTracker(buckets(layout, 1, [*reversed(params), *averages]))
    assert list(progress.announce(["dense"])) == [0]
    assert list(progress.announce(["norm", *averages])) == [1]
    assert list(progress.announce(["conv"])) == [2, 3]
    assert list(progress.flush()) == [4]
