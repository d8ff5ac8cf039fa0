"""Gradients with sparse rows: the sums equal those of whole gradients, and only touched rows are sent."""

import functools
from contextlib import closing
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddl.arrays import Layout, Views
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.errors import PeerLost
from ddl.kernels.sparse_rows import TouchedRows, add_touched, pack_sums
from ddl.kernels.sums import add_rows
from ddl.parallel import Backward, GradientSum, SumOptions, reducer

LAYOUT = Layout.of({"in": (5, 3), "table": (40, 3), "mid": (7,), "other": (50, 4), "out": (9,)})
TABLES = ("table", "other")
TOPOLOGIES = [[0, 0], [0, 0, 0], [0, 1], [0, 0, 1, 1], [0, 1, 1, 0, 1]]


@pytest.fixture(autouse=True)
def small_gradients_count():
    with mock.patch.multiple(reducer, SPARSE_BYTES=0, SPARSE_BYTES_BETWEEN_NODES=0):
        yield


def rows_of(name, rank, step):
    """A few rows, some, nearly all, none, or None: rank 1 does not know its rows."""
    random = np.random.default_rng([len(name), rank, step])
    entries = LAYOUT.shapes[name][0]
    if step % 6 == 4 and rank == 1:
        return None
    share = (0.05, 0.2, 0.9, 0.0, 0.1, 0.1)[step % 6]
    return random.integers(0, entries, int(share * entries))


@functools.cache
def gradients(rank, step):
    """name -> (values, the rows outside which they are zero or None); cached for the sweeps."""
    random = np.random.default_rng([rank, step])
    whole = {}
    for name, shape in LAYOUT.shapes.items():
        values = random.integers(-9, 10, shape).astype(np.float32)
        rows = rows_of(name, rank, step) if name in TABLES else None
        if rows is not None:
            values[np.setdiff1d(np.arange(shape[0]), rows)] = 0
            rows.flags.writeable = False
        values.flags.writeable = False
        whole[name] = values, rows
    return whole


def write(local, rank, step):
    """Write a step's gradients as a model does; returns them whole."""
    for name, (values, rows) in gradients(rank, step).items():
        if name in TABLES:
            table = local.views.clear(name)
            if rows is not None:
                local.views.zero_outside[name] = rows.copy()
            assert not table.any()
        local.views[name][...] = values
    return {name: values for name, (values, _) in gradients(rank, step).items()}


def train(group, steps, **how):
    found = []
    with closing(GradientSum(group, LAYOUT, 2, SumOptions(**how), Backward(by_rows=TABLES))) as total:
        for step in range(steps):
            write(total.local, group.rank, step)
            for name in reversed(list(LAYOUT.shapes)):
                total.announce([name])
            total.header[:] = group.rank + step
            summed = total.finish()
            found.append((summed.gradient.copy(), summed.header.copy(), summed.squared_norm))
    return found


def expected(size, step):
    layout = Layout(LAYOUT.shapes, np.dtype(np.float64))
    flat = np.zeros(layout.length)
    for rank in range(size):
        own = np.zeros(LAYOUT.length, np.float32)
        views = LAYOUT.views(own)
        for name, values in write(_Local(views), rank, step).items():
            views[name][...] = values
        flat += own
    return flat


class _Local:
    def __init__(self, views):
        self.views = Views({name: np.zeros_like(view) for name, view in views.items()})


@pytest.mark.parametrize("nodes", TOPOLOGIES, ids=str)
@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("overlap", ["on", "off"])
def test_every_step_gives_the_sums_of_whole_gradients(nodes, can_share, overlap):
    size = len(nodes)
    how = {"overlap": overlap, "bucket_mib": 1e-4}
    for found in run_ranks(size, lambda group: train(group, 8, **how), nodes=nodes, can_share=can_share):
        for step, (gradient, header, norm) in enumerate(found):
            want = expected(size, step)
            assert np.array_equal(gradient, want)
            assert norm == pytest.approx(float((want**2).sum()), rel=1e-6)
            assert header.tolist() == [size * step + size * (size - 1) / 2] * 2


@pytest.mark.parametrize("can_share", [True, False])
def test_small_gradients_are_summed_whole(can_share):
    with mock.patch.object(reducer, "SPARSE_BYTES", 1 << 20):
        for found in run_ranks(2, lambda group: train(group, 4), can_share=can_share):
            for step, (gradient, _, _) in enumerate(found):
                assert np.array_equal(gradient, expected(2, step))


@pytest.mark.parametrize("nodes", TOPOLOGIES, ids=str)
def test_on_a_node_and_between_two_ranks_the_bits_equal_those_of_whole_gradients(nodes):
    def work(group, by_rows):
        with closing(GradientSum(group, LAYOUT, 1, backward=Backward(by_rows=by_rows))) as total:
            for name in TABLES:
                rows = np.random.default_rng([3, group.rank]).integers(0, LAYOUT.shapes[name][0], 6)
                total.local[name][rows] = np.random.default_rng(group.rank).normal(size=(6, LAYOUT.shapes[name][1]))
                total.local.views.zero_outside[name] = rows
            return total.finish().gradient.copy()

    sparse = run_ranks(len(nodes), lambda group: work(group, TABLES), nodes=nodes)
    dense = run_ranks(len(nodes), lambda group: work(group, ()), nodes=nodes)
    assert all(np.array_equal(sparse[0], other) for other in sparse)
    if len(set(nodes)) == 1 or max(map(nodes.count, nodes)) == 1:  # otherwise lanes start at different nodes
        assert np.array_equal(sparse[0], dense[0])


@pytest.mark.parametrize("nodes", [[0, 1], [0, 0, 1, 1]], ids=str)
@pytest.mark.parametrize("can_share", [True, False])
def test_only_touched_rows_travel_between_nodes(nodes, can_share):
    layout = Layout.of({"table": (4000, 16)})

    def work(group, by_rows):
        sent, stream = [], group.stream
        group.stream = lambda outgoing, *rest: (sent.extend(x.nbytes for x in outgoing), stream(outgoing, *rest))
        total = GradientSum(group, layout, 0, SumOptions("auto" if can_share else "ring"), Backward(by_rows=by_rows))
        rows = np.arange(200) + 100 * group.rank
        total.local["table"][rows] = 1
        total.local.views.zero_outside["table"] = rows
        total.finish()
        return sum(sent)

    few = sum(run_ranks(len(nodes), lambda g: work(g, ["table"]), nodes=nodes, can_share=can_share))
    whole = sum(run_ranks(len(nodes), lambda g: work(g, []), nodes=nodes, can_share=can_share))
    assert 0 < few < whole / 7


@pytest.mark.parametrize(("nodes", "can_share"), [([0, 0, 0], True), ([0, 0, 1], True), ([0, 0, 1], False)], ids=str)
def test_a_death_anywhere_never_corrupts_a_sum(nodes, can_share):
    def work(group):
        try:
            for step, (gradient, _, _) in enumerate(train(group, 2)):
                assert np.array_equal(gradient, wanted[step])
        except PeerLost:
            group.revoke()
        return "right"

    wanted = [expected(3, step) for step in range(2)]
    for victim in range(3):
        for count in range(1, 300):
            results = run_ranks(3, work, nodes=nodes, can_share=can_share, death=Death(victim, count))
            assert all(got == "right" or isinstance(got, Killed) for got in results), (victim, count, results)
            if results[victim] == "right":
                break
        else:
            raise AssertionError("the job never ends")


def test_an_infinity_in_a_touched_row_reaches_the_norm_of_all():
    def work(group):
        total = GradientSum(group, LAYOUT, 1, backward=Backward(by_rows=TABLES))
        total.local.views.zero_outside.update(dict.fromkeys(TABLES, np.array([7])))
        total.local["table"][7] = np.inf if group.rank == 1 else 0
        return total.finish().squared_norm

    for nodes in ([0, 0], [0, 1], [0, 0, 1, 1]):
        assert not np.isfinite(run_ranks(len(nodes), work, nodes=nodes)).any()


shapes = st.tuples(st.integers(1, 60), st.integers(1, 9))


@settings(deadline=None)
@given(
    shape=shapes,
    ranks=st.integers(1, 4),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    seed=st.integers(0, 99),
    data=st.data(),
)
@pytest.mark.parametrize("is_plain", [True, False])
def test_kernels_agree_with_add_rows(is_plain, shape, ranks, dtype, seed, data):
    rows, width = shape
    random, start = np.random.default_rng(seed), 5
    length = start + rows * width + 2
    touched = random.integers(0, 2, rows).astype(np.uint8)
    before = random.integers(0, 2, rows).astype(np.uint8)
    arrays = random.normal(size=(ranks, length)).astype(dtype)
    tables = arrays[:, start : start + rows * width].reshape(ranks, rows, width)
    tables[:, touched == 0] = 0
    whole = np.zeros(length, dtype)
    add_rows.plain(whole, arrays, 0, length, False)
    squares = float((whole[start : start + rows * width].astype(np.float64) ** 2).sum())

    add, pack = (add_touched.plain, pack_sums.plain) if is_plain else (add_touched, pack_sums)
    out = np.full(length, 3, dtype)
    old = out[start : start + rows * width].reshape(rows, width)
    old[before == 0] = 0
    norm = sum(add(out, arrays, start, width, touched, before, me, ranks) for me in range(ranks))
    assert np.array_equal(old, whole[start : start + rows * width].reshape(rows, width))
    assert (out[:start] == 3).all() and (out[-2:] == 3).all()
    assert norm == pytest.approx(squares, rel=1e-2 if dtype == np.float16 else 1e-5, abs=1e-6)

    picked = np.flatnonzero(touched)
    packed = np.full(len(picked) * width, 9, dtype)
    edges = sorted(data.draw(st.lists(st.integers(0, packed.size), min_size=2, max_size=2)))
    pack(packed, arrays, start, width, picked, *edges)
    wanted = whole[start : start + rows * width].reshape(rows, width)[picked].reshape(-1)
    assert np.array_equal(packed[slice(*edges)], wanted[slice(*edges)])
    assert (packed[: edges[0]] == 9).all() and (packed[edges[1] :] == 9).all()


def test_clearing_a_view_writes_only_rows_that_may_be_nonzero():
    views = Views({"a.w": np.ones((4, 2)), "b.w": np.ones((4, 2))}, {"a.w": np.array([1])})
    assert views.at("a").clear("w")[:, 0].tolist() == [1, 0, 1, 1]
    assert not views.at("b").clear("w").any() and not views.zero_outside
    assert not views.at("a").clear("w").any()


def test_touched_rows_keep_their_rows_under_a_scope_and_format_as_the_plain_name():
    touched = TouchedRows("weight", np.array([1]))
    outer = touched.below("embedding")
    assert outer.name == "embedding.weight" and outer.rows is touched.rows
    assert f"decoder.{outer}" == "decoder.embedding.weight"
