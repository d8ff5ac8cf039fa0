"""Lines that the ranks of a node let go of: those that this rank writes and others have read."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from ddl.arrays import Layout
from ddl.comm.threads import run_ranks
from ddl.parallel import GradientSum, reducer, sums

LAYOUT = Layout.of({"w1": (30, 7), "b1": (7,), "w2": (7, 3), "b2": (3,)})


class Always:
    """A trial that has been decided."""

    def next(self):
        return True


@pytest.fixture(autouse=True)
def marks(monkeypatch):
    """By thread, which is a rank: what is called in place of ``evict``, with the places that go."""
    marks = {}

    def evict(x, start, stop):
        marks[threading.get_ident()](x, start, stop)

    def evict_rows(x, start, width, rows, first, last):
        for low in start + width * np.flatnonzero(rows):
            evict(x, low, min(low + width, first))
            evict(x, max(low, last), low + width)

    monkeypatch.setattr(sums, "Trial", Always)
    monkeypatch.setattr(sums, "can_evict", lambda x: True)
    monkeypatch.setattr(sums, "evict", evict)
    monkeypatch.setattr(sums, "evict_rows", evict_rows)
    return marks


def watched(marks, group, layout, count, before=lambda reducer, step: None, **how):
    """How often ``count`` sums have evicted each place of this rank's gradient and of the result; its lanes."""
    found = GradientSum(group, layout, 1, **how)
    gradient, result, lanes = (np.zeros(layout.length, int) for _ in range(3))

    def mark(x, start, stop):
        times = gradient if np.shares_memory(x, found.local.flat) else result
        times[start : max(start, stop)] += 1

    marks[threading.get_ident()] = mark
    for step in range(count):
        before(found, step)
        found.finish()
    for lane in found._sum._way.lanes:
        lanes[lane] = 1
    found.close()
    return gradient, result, lanes


@pytest.mark.parametrize("ranks", [2, 3])
def test_of_the_gradient_goes_what_others_sum_and_of_the_result_what_this_rank_does(marks, ranks):
    found = run_ranks(ranks, lambda group: watched(marks, group, LAYOUT, 4, bucket_mib=1e-4))
    assert (sum(lanes for *_, lanes in found) == 1).all()
    for gradient, result, lanes in found:
        assert np.array_equal(gradient, 4 * (1 - lanes))
        assert np.array_equal(result, 3 * lanes)  # the first sum found nothing of its own kind before it


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_result_that_only_its_writer_reads_stays(marks, ranks):
    """The ranks update one replica together, each its share."""

    def work(group):
        return watched(marks, group, LAYOUT, 3, replica=[np.zeros(LAYOUT.length, np.float32)])

    for gradient, result, lanes in run_ranks(ranks, work):
        assert np.array_equal(gradient, 3 * (1 - lanes)) and not result.any()


@pytest.mark.parametrize("few", [True, False])
def test_of_a_table_go_the_rows_that_this_rank_has_written_and_another_summed(marks, monkeypatch, few):
    """Few rows are the ranks' by blocks of 16 in turn, of many each sums those in its lane."""
    layout = Layout.of({"table": (64, 16), "w": (40,)})
    monkeypatch.setattr(reducer, "TABLE_BYTES", 0)

    def rows(rank):
        return (np.array([1, 20, 41]) if few else np.arange(0, 60, 3)) + rank

    def before(found, step):
        found.local["table"][...] = 0
        found.local["table"][rows(found.group.rank)] = 1
        found.local.views.zero_outside["table"] = rows(found.group.rank)

    found = run_ranks(2, lambda group: watched(marks, group, layout, 1, before, by_rows=["table"]))
    for rank, (gradient, _, lanes) in enumerate(found):
        theirs = 1 - lanes
        if few:
            theirs[layout.slices["table"]] = (np.arange(64) // 16 % 2 != rank).repeat(16)
        written = np.zeros((64, 16), int)
        written[rows(rank)] = 1
        theirs[layout.slices["table"]] &= written.reshape(-1)
        assert np.array_equal(gradient, theirs) and theirs[layout.slices["table"]].any()


@pytest.mark.parametrize("can", [True, False])
def test_the_first_rank_of_a_node_decides_for_all(monkeypatch, can):
    words = [True, False, False, True, True]
    monkeypatch.setattr(sums, "can_evict", lambda x: can)
    monkeypatch.setattr(sums, "Trial", lambda: SimpleNamespace(next=iter(words).__next__))
    monkeypatch.setattr(sums, "evict", lambda x, start, stop: None)

    def work(group):
        found = GradientSum(group, LAYOUT, 1)
        found._sum._word[0] = 1  # memory may have been somebody else's before
        group.barrier()
        heard = []
        for _ in words:
            found.finish()
            heard.append(found._sum.evicts)
        return heard

    for heard in run_ranks(3, work):
        assert heard == (words if can else [False] * len(words))
