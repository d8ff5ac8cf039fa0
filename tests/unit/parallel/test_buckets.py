"""Buckets cover the gradient once, and leave in plan order only when they are whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddl.arrays import Layout
from ddl.parallel.buckets import Progress, buckets

sizes = st.lists(st.integers(0, 100), min_size=1, max_size=12)


@given(sizes=sizes, limit=st.integers(0, 2000), data=st.data())
def test_buckets_cover_the_buffer_once_whatever_the_order(sizes, limit, data):
    layout = Layout.of({f"p{i}": (size,) for i, size in enumerate(sizes)})
    order = data.draw(st.permutations(list(layout.shapes)))
    plan = buckets(layout, limit, order)
    assert sorted(i for b in plan for i in range(b.span.start, b.span.stop)) == list(range(layout.length))
    assert sorted(name for b in plan for name in b.names) == sorted(layout.shapes)
    for bucket in plan:
        for name in bucket.names:
            place = layout.slices[name]
            assert bucket.span.start <= place.start and place.stop <= bucket.span.stop


def test_backward_order_is_the_default_and_the_limit_closes_a_bucket():
    layout = Layout.of({"a": (16,), "b": (16,), "c": (16,)})
    assert [b.names for b in buckets(layout, 128)] == [("c", "b"), ("a",)]
    assert [b.names for b in buckets(layout, 1)] == [("c",), ("b",), ("a",)]
    assert [b.names for b in buckets(layout, 1e9)] == [("c", "b", "a")]


def test_an_order_that_misses_a_name_is_refused():
    with pytest.raises(ValueError, match="b"):
        buckets(Layout.of({"a": (1,), "b": (1,)}), 0, ["a"])


@given(sizes=sizes, data=st.data())
def test_buckets_leave_in_plan_order_when_whole_and_the_last_is_held(sizes, data):
    layout = Layout.of({f"p{i}": (size,) for i, size in enumerate(sizes)})
    plan = buckets(layout, 200)
    progress = Progress(plan)
    for _ in range(2):  # a flush begins a new step
        announced, left = set(), []
        for name in data.draw(st.permutations(list(layout.shapes))):
            announced.add(name)
            for number in progress.announce([name]):
                assert set(plan[number].names) <= announced
                left.append(number)
        assert left == list(range(len(plan) - 1))
        assert list(progress.flush()) == [len(plan) - 1]


def test_names_that_were_never_announced_leave_at_the_end():
    layout = Layout.of({"a": (16,), "b": (16,), "c": (16,)})
    progress = Progress(buckets(layout, 1))
    assert list(progress.announce(["b"])) == []
    assert list(progress.flush()) == [0, 1, 2]


def test_sums_of_averages_come_last_and_hold_no_gradient_up():
    params, averages = ["conv", "norm", "dense"], ["norm.mean", "norm.variance"]
    layout = Layout.of(dict.fromkeys([*params, *averages], (16,)))
    progress = Progress(buckets(layout, 1, [*reversed(params), *averages]))
    assert list(progress.announce(["dense"])) == [0]
    assert list(progress.announce(["norm", *averages])) == [1]
    assert list(progress.announce(["conv"])) == [2, 3]
    assert list(progress.flush()) == [4]
