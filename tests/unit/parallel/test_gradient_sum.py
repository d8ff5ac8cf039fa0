"""One sum per step: every rank gets the same gradient, header and norm, whatever the topology and algorithm."""

from types import SimpleNamespace

import numpy as np
import pytest

from ddl.arrays import Layout
from ddl.collectives import TABLE
from ddl.comm.threads import ThreadGroup, run_ranks
from ddl.errors import ConfigError, PeerLost
from ddl.parallel import Backward, GradientSum, SumOptions, sums

LAYOUT = Layout.of({"w1": (30, 7), "b1": (7,), "w2": (7, 3), "b2": (3,)})
TOPOLOGIES = [[0], [0, 0], [0, 0, 0, 0, 0], [0, 1], [0, 0, 1], [0, 1, 0, 1], [0, 1, 2, 2, 1]]


def gradients(rank, step, dtype=np.float32):
    return np.random.default_rng([rank, step]).integers(-9, 10, LAYOUT.length).astype(dtype)


def steps(group, count, layout=LAYOUT, **how):
    """Run ``count`` steps as training does; returns copies of their totals."""
    reducer = GradientSum(group, layout, 5, SumOptions(**how))
    found = []
    for step in range(count):
        for name in reversed(list(layout.shapes)):
            place = layout.slices[name]
            reducer.local.flat[place] = gradients(group.rank, step, layout.dtype)[place]
            reducer.announce([name])
        reducer.header[:] = group.rank + step
        total = reducer.finish()
        found.append((total.gradient.copy(), total.header.copy(), total.squared_norm))
    reducer.close()
    return found


def expected(size, step, layout=LAYOUT):
    covered = np.zeros(layout.length, bool)
    for place in layout.slices.values():
        covered[place] = True
    whole = sum(gradients(rank, step, np.float64) for rank in range(size)) * covered
    return whole, np.full(5, sum(rank + step for rank in range(size)), float), float((whole**2).sum())


@pytest.mark.parametrize("nodes", TOPOLOGIES, ids=str)
@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("overlap", ["auto", "on", "off"])
def test_every_step_gives_every_rank_the_sums(nodes, can_share, overlap):
    results = run_ranks(
        len(nodes),
        lambda group: steps(group, 3, overlap=overlap, bucket_mib=1e-4),
        nodes=nodes,
        can_share=can_share,
    )
    for got in results:
        for step, (gradient, header, norm) in enumerate(got):
            want = expected(len(nodes), step)
            assert np.array_equal(gradient, want[0]) and np.array_equal(header, want[1])
            assert norm == pytest.approx(want[2], rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("algorithm", ["auto", "ring", "native", "shared", "hierarchical"])
@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 1]], ids=str)
def test_every_dtype_and_algorithm(dtype, algorithm, nodes):
    layout = Layout(LAYOUT.shapes, np.dtype(dtype))
    for got in run_ranks(3, lambda group: steps(group, 1, layout, algorithm=algorithm), nodes=nodes):
        assert np.array_equal(got[0][0], expected(3, 0)[0]) and got[0][0].dtype == dtype


@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 1]], ids=str)
def test_an_algorithm_added_to_the_registry_sums_the_gradients(nodes, can_share, monkeypatch):
    calls = []

    def counted(x, group):
        calls.append(x.size)
        TABLE["native"](x, group)

    monkeypatch.setitem(TABLE, "counted", counted)
    results = run_ranks(3, lambda group: steps(group, 1, algorithm="counted"), nodes=nodes, can_share=can_share)
    assert sum(calls) == 3 * LAYOUT.length
    for got in results:
        assert np.array_equal(got[0][0], expected(3, 0)[0])


@pytest.mark.parametrize("size", [1, 2])
def test_an_algorithm_that_is_not_in_the_registry_is_refused_by_name(size):
    for error in run_ranks(size, lambda group: steps(group, 1, algorithm="tree")):
        assert isinstance(error, ConfigError) and "comm.algorithm = 'tree' is unknown" in str(error)


@pytest.mark.parametrize(
    ("algorithm", "nodes", "can_share", "substitute"),
    [
        ("shared", [0, 0], True, ""),
        ("shared", [0, 0, 1], True, "hierarchical: the ranks are on 2 nodes"),
        ("shared", [0, 0], False, "an algorithm chosen by size: the ranks of a node cannot share memory"),
        ("hierarchical", [0, 0], True, "shared: the ranks are on one node"),
        ("hierarchical", [0, 0, 1], True, ""),
        ("hierarchical", [0, 0, 1], False, "an algorithm chosen by size: the ranks of a node cannot share memory"),
        ("hierarchical", [0], True, ""),
        ("auto", [0, 0], False, ""),
        ("ring", [0, 0], False, ""),
    ],
)
def test_an_algorithm_that_cannot_run_here_names_its_substitute(algorithm, nodes, can_share, substitute):
    results = run_ranks(
        len(nodes),
        lambda group: GradientSum(group, LAYOUT, 1, SumOptions(algorithm)).substitute,
        nodes=nodes,
        can_share=can_share,
    )
    assert results == [substitute] * len(nodes)


@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 1]], ids=str)
def test_a_nan_on_one_rank_reaches_the_norm_of_all(nodes):
    def work(group):
        reducer = GradientSum(group, LAYOUT, 1)
        reducer.local["w1"][3, 3] = np.nan if group.rank == 1 else 0
        return reducer.finish().squared_norm

    assert not np.isfinite(run_ranks(3, work, nodes=nodes)).any()


def test_in_shared_memory_the_local_gradient_survives_the_sum():
    def work(group):
        reducer = GradientSum(group, LAYOUT, 1)
        reducer.local.flat[:] = group.rank
        reducer.finish()
        return set(reducer.local.flat.tolist())

    assert run_ranks(3, work) == [{0.0}, {1.0}, {2.0}]


@pytest.mark.parametrize("nodes", [[0, 0], [0, 0, 1], [0, 1, 0, 1]], ids=str)
@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("flushes", [True, False])
def test_sums_are_the_same_with_and_without_flushing(monkeypatch, nodes, overlap, flushes):
    monkeypatch.setattr(sums, "Trial", lambda: SimpleNamespace(next=lambda: flushes))
    monkeypatch.setattr(sums, "can_flush", lambda x: True)
    for got in run_ranks(len(nodes), lambda group: steps(group, 3, overlap=overlap, bucket_mib=1e-4), nodes=nodes):
        for step, (gradient, header, _) in enumerate(got):
            want = expected(len(nodes), step)
            assert np.array_equal(gradient, want[0]) and np.array_equal(header, want[1])


def test_a_failure_of_the_communication_thread_surfaces_in_finish(monkeypatch):
    def lost(*_):
        raise PeerLost([1], 0, "allreduce")

    def work(group):
        reducer = GradientSum(group, LAYOUT, 1, SumOptions("ring", overlap="on", bucket_mib=0))
        assert reducer.overlaps
        monkeypatch.setattr(ThreadGroup, "stream", lost)
        reducer.announce(["b2"])
        with pytest.raises(PeerLost):
            reducer.finish()
        reducer.close()
        return "raised"

    assert run_ranks(2, work) == ["raised"] * 2


@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 1]], ids=str)
def test_all_ranks_end_with_the_same_bits(nodes):
    def work(group):
        reducer = GradientSum(group, LAYOUT, 1)
        reducer.local.flat[:] = np.random.default_rng(group.rank).normal(size=LAYOUT.length)
        total = reducer.finish()
        return total.gradient.copy(), total.squared_norm

    (first, norm), *others = run_ranks(3, work, nodes=nodes)
    assert all(np.array_equal(first, other) and norm == theirs for other, theirs in others)


def test_a_model_without_parameters_still_exchanges_headers():
    def work(group):
        reducer = GradientSum(group, Layout.of({}), 2)
        reducer.header[:] = 1
        return reducer.finish().header.tolist()

    assert run_ranks(3, work) == [[3.0, 3.0]] * 3


@pytest.mark.parametrize("nodes", [[0] * 4 + [1] * 8, [0] * 7 + [1] * 12])
def test_nodes_of_different_sizes_compute_the_same_norm(nodes):
    """To the last bit, so that clipping by the norm keeps replicas equal."""

    def norms(group):
        random = np.random.default_rng(group.rank)
        reducer = GradientSum(group, Layout.of({"w": (301,)}, "float64"), 1)
        found = []
        for _ in range(40):
            reducer.local.flat[:] = random.normal(size=reducer.local.flat.shape)
            found.append(reducer.finish().squared_norm)
        reducer.close()
        return found

    found = run_ranks(len(nodes), norms, nodes=nodes)
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("nodes", [[0, 1], [0, 0, 1], [0, 1, 0, 1], [0, 1, 2, 2, 1]], ids=str)
@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("wire", ["bfloat16", "float16", "int8"])
def test_compressed_between_nodes_the_sums_are_nearly_right_on_average_right_and_equal(nodes, overlap, wire):
    """b2 is not a gradient but an average of the model, which is never rounded."""

    def work(group):
        options = SumOptions(overlap=overlap, bucket_mib=1e-4, wire=wire)
        reducer = GradientSum(group, LAYOUT, 1, options, Backward(["b1", "w1", "w2", "b2"], exact=["b2"]))
        found = []
        for _ in range(8):
            for name in ("b1", "w1", "w2", "b2"):
                reducer.local[name][...] = mine[group.rank][name]
                reducer.announce([name])
            views = LAYOUT.views(reducer.finish().gradient)
            found.append({name: views[name].copy() for name in LAYOUT.shapes})
        assert reducer.wire == wire
        reducer.close()
        return found

    rng = np.random.default_rng(5)
    mine = [{name: rng.standard_normal(shape) for name, shape in LAYOUT.shapes.items()} for _ in nodes]
    results = run_ranks(len(nodes), work, nodes=nodes)
    for name in LAYOUT.shapes:
        whole = sum(one[name] for one in mine)
        for got in results:
            assert all(np.array_equal(a[name], b[name]) for a, b in zip(got, results[0], strict=True))
            near = 1e-5 if name == "b2" else 0.3 if wire == "int8" else 0.05
            assert np.abs(got[0][name] - whole).max() < near
            assert np.abs(sum(step[name] for step in got) / 8 - whole).max() < max(near / 4, 1e-5)
