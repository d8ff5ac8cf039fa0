"""The ranks of a node flush exactly the cache lines that one rank writes and another has read."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from ddl.arrays import Layout
from ddl.comm.threads import run_ranks
from ddl.parallel import Backward, GradientSum, SumOptions, reducer, sums

LAYOUT = Layout.of({"w1": (30, 7), "b1": (7,), "w2": (7, 3), "b2": (3,)})


class Always:
    """A trial that has been decided."""

    def next(self):
        return True


@pytest.fixture(autouse=True)
def recorders(monkeypatch):
    """By thread, which is a rank: what is called instead of ``flush``, with the flushed elements."""
    recorders = {}

    def flush(x, start, stop):
        recorders[threading.get_ident()](x, start, stop)

    def flush_rows(x, start, width, rows, first, last):
        for low in start + width * np.flatnonzero(rows):
            flush(x, low, min(low + width, first))
            flush(x, max(low, last), low + width)

    monkeypatch.setattr(sums, "Trial", Always)
    monkeypatch.setattr(sums, "can_flush", lambda x: True)
    monkeypatch.setattr(sums, "flush", flush)
    monkeypatch.setattr(sums, "flush_rows", flush_rows)
    return recorders


def flush_counts(recorders, group, layout, count, before=lambda total, step: None, replica=(), by_rows=(), **how):
    """How often ``count`` sums have flushed each element of this rank's gradient and of the result; its shares."""
    total = GradientSum(group, layout, 1, SumOptions(**how), Backward(by_rows=by_rows), replica=replica)
    gradient, result, shares = (np.zeros(layout.length, int) for _ in range(3))

    def record(x, start, stop):
        times = gradient if np.shares_memory(x, total.local.flat) else result
        times[start : max(start, stop)] += 1

    recorders[threading.get_ident()] = record
    for step in range(count):
        before(total, step)
        total.finish()
    for share in total.shares:
        shares[share] = 1
    total.close()
    return gradient, result, shares


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_flushes_the_sums_it_writes_and_the_gradients_that_others_sum(recorders, ranks):
    counts = run_ranks(ranks, lambda group: flush_counts(recorders, group, LAYOUT, 4, bucket_mib=1e-4))
    assert (sum(result for _, result, _ in counts) == 3).all()  # the first sum has no earlier sum to flush
    for gradient, result, _ in counts:
        assert result.any() and set(result) <= {0, 3}
        assert np.array_equal(gradient, np.where(result, 0, 4))


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_result_that_only_its_writer_reads_is_not_flushed(recorders, ranks):
    """The ranks update one replica together, each its share."""

    def work(group):
        return flush_counts(recorders, group, LAYOUT, 3, replica=[np.zeros(LAYOUT.length, np.float32)])

    for gradient, result, shares in run_ranks(ranks, work):
        assert shares.any() and np.array_equal(gradient, 3 * (1 - shares)) and not result.any()


@pytest.mark.parametrize("few", [True, False])
def test_a_rank_flushes_the_sparse_rows_it_wrote_and_another_rank_summed(recorders, monkeypatch, few):
    """Few rows are dealt to the ranks in blocks of 16; many are summed by lanes."""
    layout = Layout.of({"table": (64, 16), "w": (40,)})
    monkeypatch.setattr(reducer, "SPARSE_BYTES", 0)

    def rows(rank):
        return (np.array([1, 20, 41]) if few else np.arange(0, 60, 3)) + rank

    def before(total, step):
        total.local["table"][...] = 0
        total.local["table"][rows(total.group.rank)] = 1
        total.local.views.zero_outside["table"] = rows(total.group.rank)

    counts = run_ranks(2, lambda group: flush_counts(recorders, group, layout, 2, before, by_rows=["table"]))
    for rank, (gradient, result, _) in enumerate(counts):
        others = (result == 0).astype(int)  # a rank flushes the lanes that it sums
        if few:
            others[layout.slices["table"]] = (np.arange(64) // 16 % 2 != rank).repeat(16)
        written = np.zeros((64, 16), int)
        written[rows(rank)] = 1
        others[layout.slices["table"]] &= written.reshape(-1)
        assert np.array_equal(gradient, 2 * others) and others[layout.slices["table"]].any()


@pytest.mark.parametrize("can", [True, False])
def test_the_first_rank_of_a_node_decides_for_all(monkeypatch, can):
    answers = [True, False, False, True, True]
    monkeypatch.setattr(sums, "can_flush", lambda x: can)
    monkeypatch.setattr(sums, "Trial", lambda: SimpleNamespace(next=iter(answers).__next__))
    monkeypatch.setattr(sums, "flush", lambda x, start, stop: None)

    def work(group):
        share = group.share

        def used(*sizes):
            memory = share(*sizes)
            memory.common[:] = 1  # memory may come from an earlier user
            group.barrier()
            return memory

        group.share = used
        total = GradientSum(group, LAYOUT, 1)
        flushed = []
        for _ in answers:
            total.finish()
            flushed.append(total.flushes)
        return flushed

    for flushed in run_ranks(3, work):
        assert flushed == (answers if can else [False] * len(answers))
