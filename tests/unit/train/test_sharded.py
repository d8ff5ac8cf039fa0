"""Ranks of a node that update a shared replica get bitwise the results of one replica per rank."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from ddl import nn
from ddl.arrays import Device, Layout, generator
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.config import Job, override
from ddl.data import Arrays, Order
from ddl.errors import ConfigError
from ddl.models import build as build_model
from ddl.optim import LAMB, OPTIMIZERS, SGD, Adam, AdamW, Groups, Momentum, Pruning, Rule
from ddl.parallel import reducer, sums
from ddl.train import step
from ddl.train.build import build_task
from ddl.train.loop import Loop
from ddl.train.state import TrainingState
from ddl.train.task import Task

ROWS, SHARDS, BATCH, STEPS = 26, 6, 12, 7
ELEMENTWISE = sorted(name for name in OPTIMIZERS if name not in ("lamb", "lars"))


def dense():
    return nn.Sequential(nn.Dense(7, "relu"), nn.BatchNorm(sync=False), nn.Dense(5), nn.Dense(3))


def embedding():
    return nn.Sequential(nn.Embedding(40, 4), nn.TokenMean(), nn.Dense(3))


def train(
    group, sharded="on", *, network=dense, optimizer=None, rules=(), pruning=None, spoiled=(), said=None, **changes
):
    """The loop of a short training, left open. spoiled: samples that are not finite. said: takes what it warns of."""
    dtype = changes.setdefault("dtype", "float32")
    random = generator(4, "test")
    x = random.integers(1, 40, (ROWS, 5)) if network is embedding else random.normal(size=(ROWS, 4)).astype(dtype)
    y = random.integers(0, 3, ROWS)
    if spoiled:
        x[list(spoiled)] = np.nan
    source = Arrays(x, y)
    model = build_model(network(), source.fields, "cross_entropy", None)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, dtype)
    task = Task(
        model=model,
        train=source,
        validation=None,
        test=None,
        order=Order(ROWS, SHARDS, BATCH, 2),
        optimizer=Groups(layout, optimizer or Adam(lr=0.01), rules, pruning=pruning and pruning(layout)),
        lr=lambda step: 0.01 / (1 + step),
        prefetch=0,
        sharded=sharded,
        **{"total_steps": STEPS, **changes},
    )
    loop = Loop(task, group, Device(), TrainingState(model, task.optimizer.slots, dtype, 0, Device()))
    if said is not None:
        loop.log.warn = said.append
    failure = loop.train()
    assert failure is None, failure
    return loop


def bits(loop):
    return {name: np.array(value) for name, value in loop.state.to_named().items()}


def assert_same(loops, others):
    for loop, other in zip(loops, others, strict=True):
        assert not isinstance(loop, BaseException), repr(loop)
        mine, theirs = bits(loop), bits(other)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name].tobytes() == theirs[name].tobytes(), name
        assert loop.work.last == other.work.last or loop.work.last.skipped


def both(size, **how):
    """Loops that share a replica, and loops with one replica per rank."""
    nodes = how.pop("nodes", None)
    shared, own = (run_ranks(size, partial(train, sharded=word, **how), nodes=nodes) for word in ("on", "off"))
    for loop, wanted in ((shared[0], True), (own[0], False)):
        assert not isinstance(loop, BaseException), repr(loop)
        assert bool(loop.work.total.replicas) is wanted
    return shared, own


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_elementwise_optimizer(name, dtype):
    assert_same(*both(3, optimizer=OPTIMIZERS[name](lr=0.01), dtype=dtype))


def test_float16():
    assert_same(*both(2, optimizer=Momentum(lr=0.01), dtype="float16"))


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"clip_norm": 0.05}, id="clipped"),
        pytest.param({"parts": 2}, id="accumulated"),
        pytest.param({"rules": [Rule("dense1*", frozen=True)], "clip_norm": 0.05}, id="frozen"),
        pytest.param({"rules": [Rule("dense3*", Momentum(lr=0.1)), Rule("*bias", AdamW(lr=0.02))]}, id="groups"),
        pytest.param({"bucket_mib": 1e-4}, id="many parts"),
        pytest.param({"network": embedding}, id="whole tables"),
    ],
)
@pytest.mark.parametrize("nodes", [(0, 0, 0), (0, 0, 1, 1), (0, 1, 1)])
def test_every_way_to_step(how, nodes):
    assert_same(*both(len(nodes), nodes=nodes, **how))


@pytest.mark.parametrize("nodes", [(0, 0, 0), (0, 0, 1, 1)])
def test_tables_with_few_touched_rows(nodes, monkeypatch):
    monkeypatch.setattr(reducer, "SPARSE_BYTES", 0)
    monkeypatch.setattr(reducer, "SPARSE_BYTES_BETWEEN_NODES", 0)
    assert_same(*both(len(nodes), nodes=nodes, network=embedding))


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_a_step_that_is_skipped_leaves_no_trace(clip_norm):
    shared, own = both(3, spoiled=[5], clip_norm=clip_norm)
    assert_same(shared, own)
    assert shared[0].state.progress.skipped == own[0].state.progress.skipped >= 2  # one per epoch
    assert all(np.isfinite(value).all() for value in bits(shared[0]).values())


def test_the_replica_is_one_and_outlives_its_sharing():
    loops = run_ranks(3, train)
    arrays = [loop.state.params.flat for loop in loops]
    assert all(np.shares_memory(arrays[0], array) for array in arrays[1:])
    before = bits(loops[0])
    for loop in loops:
        loop.close()
    for loop in loops:
        after = bits(loop)
        assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    for loop in loops:
        loop.work.take_over([np.zeros_like(flat) for flat in loop.state.flat_arrays()], loop.work.meta())
        assert not np.shares_memory(arrays[0], loop.state.params.flat)
    assert arrays[0].any()


def test_one_rank_and_ranks_of_one_a_node_have_a_replica_each():
    assert not run_ranks(1, train)[0].work.total.replicas
    assert not run_ranks(2, train, nodes=[0, 1])[0].work.total.replicas


def test_training_continues_when_memory_cannot_be_shared():
    shared, own = (run_ranks(2, partial(train, sharded=word), can_share=False) for word in ("on", "off"))
    assert_same(shared, own)
    assert not shared[0].work.total.replicas


def test_small_models_and_two_ranks_do_not_share_a_replica():
    assert not run_ranks(3, partial(train, sharded="auto"))[0].work.total.replicas


def test_large_models_on_three_ranks_are_not(monkeypatch):
    monkeypatch.setattr("ddl.train.work.SHARDED_BYTES", 16)
    assert not run_ranks(2, partial(train, sharded="auto"))[0].work.total.replicas
    assert run_ranks(3, partial(train, sharded="auto"))[0].work.total.replicas
    assert not run_ranks(3, partial(train, sharded="auto", optimizer=LAMB(lr=0.01)))[0].work.total.replicas


def test_an_optimizer_that_looks_at_layers_is_refused():
    job = override(Job(), {"optim.name": "lamb", "optim.sharded": "on"})
    with pytest.raises(ConfigError, match=r"optim\.sharded"):
        build_task(job)


@pytest.mark.parametrize(("rank", "clip_norm"), [(0, 0.05), (2, 0.0)])
def test_a_death_at_any_point_leaves_the_committed_replica(rank, clip_norm):
    """The committed state is complete even if other ranks are halfway through their share when a rank dies."""
    short, passed = partial(train, dtype="float64", clip_norm=clip_norm, total_steps=2), [0]
    calm = bits(run_ranks(1, short)[0])

    def counting(number):
        def probe(point):
            passed[0] += number == rank

        return probe

    run_ranks(3, short, probe=counting)
    assert passed[0] > 20
    for count in range(1, passed[0] + 1):
        for loop in run_ranks(3, short, death=Death(rank, count)):
            if isinstance(loop, Killed):
                continue
            assert not isinstance(loop, BaseException), (count, repr(loop))
            for name, value in bits(loop).items():
                assert np.allclose(value, calm[name], rtol=1e-9, atol=1e-12), (count, name)


@pytest.mark.parametrize("count", range(5, 50, 9))
def test_one_after_another_dies_on_two_nodes(count):
    short = partial(train, dtype="float64")
    calm = bits(run_ranks(1, short)[0])
    deaths = [Death(0, count), Death(4, 2 * count), Death(3, 2 * count + 3)]
    nodes = [0, 0, 1, 1, 1]  # each node keeps a survivor, since only that can confirm its deaths
    survivors = [r for r in run_ranks(5, short, nodes=nodes, death=deaths) if not isinstance(r, Killed)]
    assert survivors
    for loop in survivors:
        assert not isinstance(loop, BaseException), repr(loop)
        for name, value in bits(loop).items():
            assert np.allclose(value, calm[name], rtol=1e-9, atol=1e-12), name


class Clamped(SGD):
    """A user's rule with its own ``update``."""

    def update(self, params, grads, slots, lr, step, scale):
        super().update(params, grads, slots, lr, step, scale)
        np.clip(params, -0.05, 0.05, out=params)


def test_an_optimizer_with_its_own_update_keeps_it_and_is_not_sharded():
    for loop in run_ranks(3, partial(train, optimizer=Clamped(lr=0.5))):
        assert not loop.work.total.replicas and np.abs(loop.state.params.flat).max() <= 0.05


@pytest.mark.parametrize("steps", [1, 2])
def test_slots_that_no_update_writes_are_kept(steps, monkeypatch):
    """A job may resume from a state in which parameters that are frozen now were trained."""
    first = TrainingState.__init__

    def trained_before(self, *arguments):
        first(self, *arguments)
        for slot in self.slots.values():
            slot[...] = 0.5

    monkeypatch.setattr(TrainingState, "__init__", trained_before)
    shared, own = both(3, rules=[Rule("dense1*", frozen=True)], total_steps=steps)
    assert_same(shared, own)
    assert (bits(shared[0])["mean/dense1.weight"] == 0.5).all()


def test_a_request_for_one_replica_that_cannot_be_met_is_reported():
    said = []
    run_ranks(2, partial(train, said=said), can_share=False)
    assert [line for line in said if line.startswith("optim.sharded is on, but")]


def test_an_algorithm_that_cannot_run_here_is_reported_with_its_substitute():
    said = []
    run_ranks(2, partial(train, said=said, sharded="off", algorithm="shared"), can_share=False)
    start = "comm.algorithm is shared, but gradients are summed by an algorithm chosen by size"
    assert len([line for line in said if line.startswith(start)]) == 2  # once by each rank


@pytest.mark.parametrize("flushes", [True, False])
def test_a_rank_flushes_only_its_own_share_of_the_next_replica(monkeypatch, flushes):
    gone = []
    monkeypatch.setattr(sums, "Trial", lambda: SimpleNamespace(next=lambda: flushes))
    monkeypatch.setattr(sums, "can_flush", lambda x: True)
    monkeypatch.setattr(step, "flush", lambda *call: gone.append(call))
    loops = run_ranks(3, train)
    assert_same(loops, run_ranks(3, partial(train, sharded="off")))
    if not flushes:
        assert not gone
        return
    steps = {}
    for flat, start, stop in gone:
        written = next(
            k for k, replica in enumerate(loops[0].work.total.replicas) if np.shares_memory(flat, replica[0])
        )
        assert 0 <= start <= stop <= flat.size  # averages of the network are no parameters
        steps.setdefault(written, []).append((start, stop))
    length = loops[0].state.layout.length
    shares = sorted(
        (min(share.start, length), min(share.stop, length)) for loop in loops for share in loop.work.total.shares
    )
    times = (STEPS - 1) // 2  # a replica; the first step knows of nothing yet
    assert {replica: sorted(cuts) for replica, cuts in steps.items()} == dict.fromkeys((0, 1), sorted(shares * times))


def weights_pruned(layout):
    places = [layout.slices[name] for name, shape in layout.shapes.items() if len(shape) > 1]
    return Pruning(0.6, places, begin=1, end=4, every=2)


def test_pruned_weights_are_zero_on_every_rank():
    shared, own = both(3, pruning=weights_pruned)
    assert_same(shared, own)
    saved = bits(shared[1])
    zeros = [not saved[f"params/{name}"][saved[f"pruned/{name}"] != 0].any() for name in shared[1].state.layout.shapes]
    assert all(zeros) and sum((saved[name] != 0).sum() for name in saved if name.startswith("pruned/")) == 46
