"""A network cut into stages on a grid of ranks trains as it does whole on one rank."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from ddl import nn
from ddl.arrays import Device, Layout
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.data import Arrays, Order
from ddl.fault.recover import survive
from ddl.models import build as build_model
from ddl.models.transformer import transformer
from ddl.optim import OPTIMIZERS, FineTuning, Groups
from ddl.pipeline import pipeline_of
from ddl.train.loop import Loop
from ddl.train.staged import first_state
from ddl.train.task import Task

ROWS, SHARDS, BATCH = 50, 6, 24


def vectors(random):
    return random.normal(size=(ROWS, 7)), random.integers(0, 3, ROWS)


def tokens(random):
    x = random.integers(0, 11, (ROWS, 6))
    x[:, 4:] = 0  # padding
    return x, random.integers(0, 3, ROWS)


def text(random):
    x = random.integers(0, 11, (ROWS, 6))
    return x, np.roll(x, -1, axis=1)


NETWORKS = {
    "dense and dropout": (
        vectors,
        lambda problem: nn.Sequential(
            nn.Dense(9, "relu"), nn.Dropout(0.3), nn.Dense(8), nn.Dropout(0.4), nn.Dense(6, "tanh"), nn.Dense(3)
        ),
    ),
    "batch norm by segment": (
        vectors,
        lambda problem: nn.Sequential(
            nn.Dense(9), nn.BatchNorm(sync=False), nn.ReLU(), nn.Dense(8), nn.BatchNorm(sync=False), nn.Dense(6),
            nn.Dense(3),
        ),
    ),
    "batch norm over ranks": (
        vectors,
        lambda problem: nn.Sequential(
            nn.Dense(9), nn.BatchNorm(), nn.ReLU(), nn.Dense(8), nn.BatchNorm(), nn.Dense(6), nn.Dense(3)
        ),
    ),
    "padded sequences": (
        tokens,
        lambda problem: nn.Sequential(
            nn.Embedding(11, 4, padding=0), nn.GRU(5, sequences=True), nn.LSTM(4, sequences=True), nn.TokenMean(),
            nn.Dense(3),
        ),
    ),
    "transformer": (text, partial(transformer, layers=2, width=8, heads=2, dropout=0.1)),
}  # fmt: skip


def make_task(name, stages=1, parts=2, cut=(), **changes):
    inputs, network = NETWORKS[name]
    x, y = inputs(np.random.default_rng(5))
    source = Arrays(x, y)
    given = {"vocabulary": 11, "classes": 11} if inputs is text else {}
    model = build_model(network, source.fields, "cross_entropy", None, given)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float64")
    optimizer = OPTIMIZERS["momentum"](lr=0.05)
    batch = {"x": x[:4], "y": y[:4]}
    defaults = {
        "model": model,
        "train": source,
        "validation": Arrays(x[:11], y[:11]),
        "test": None,
        "order": Order(ROWS, SHARDS, BATCH, 2),
        "optimizer": Groups(layout, optimizer),
        "lr": lambda step: optimizer.lr,
        "total_steps": 4,
        "dtype": "float64",
        "parts": parts,
        "prefetch": 0,
        "clip_norm": 1.0,
        "evaluate_rows": 4,
        "pipeline": None if stages == 1 else pipeline_of(model, "float64", batch, stages, cut),
    }
    return Task(**{**defaults, **changes})


def train(group, make):
    outcomes = []
    task = make(callbacks=[outcomes.append])
    state = first_state(task, Device())
    loop = Loop(task, group, Device(), state)
    try:
        group, problem = survive(group, lambda g: loop.work.distribute(g, loop.work.whole_state(g.is_leader)))
        assert problem is None, problem
        loop.start(group)
        assert loop.train() is None
    finally:
        loop.close()
    return loop, outcomes


def assert_equal_training(results, alone, deaths=False):
    """deaths: callbacks may have been called by several leaders."""
    one, said = alone
    whole = one.state.to_named()
    found = {}
    for loop, _ in results:
        for name, array in loop.state.to_named().items():
            scale = max(np.abs(whole[name]).max(initial=0), 1e-3)
            assert np.allclose(array, whole[name], rtol=1e-9, atol=1e-10 * scale), name
            found[name] = array
    assert found.keys() == whole.keys()
    if deaths:
        return
    _, ours = results[0]
    assert [o.samples for o in ours] == [o.samples for o in said]
    for field in ("loss", "weight", "gradient_norm"):
        assert np.allclose([getattr(o, field) for o in ours], [getattr(o, field) for o in said], rtol=1e-9)
    mine, theirs = (loop.state.progress.results["validation"] for loop in (results[0][0], one))
    assert mine["samples"] == theirs["samples"] and np.isclose(mine["loss"], theirs["loss"], rtol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("stages", "replicas"), [(2, 1), (3, 1), (4, 1), (2, 2), (4, 2)])
def test_stages_train_as_one_rank_does(name, stages, replicas):
    alone = run_ranks(1, lambda group: train(group, partial(make_task, name)))[0]
    results = run_ranks(stages * replicas, lambda group: train(group, partial(make_task, name, stages)))
    for result in results:
        assert not isinstance(result, BaseException), repr(result)
    assert_equal_training(results, alone)


def test_a_layer_that_begins_to_learn_later_counts_in_the_norm_from_then_on():
    def make(stages=1, **changes):
        task = make_task("dense and dropout", stages, **changes)
        layout = Layout.of({name: shape for name, (shape, _) in task.model.params.items()}, "float64")
        tuning = FineTuning(begins={"*weight": 2})
        return replace(task, optimizer=Groups(layout, OPTIMIZERS["momentum"](lr=0.05), fine_tuning=tuning))

    alone = run_ranks(1, lambda group: train(group, make))[0]
    assert_equal_training(run_ranks(2, lambda group: train(group, partial(make, 2))), alone)


def deaths_are_survived(name, stages, size, deaths, spares=0):
    alone = run_ranks(1, lambda group: train(group, partial(make_task, name, total_steps=3)))[0]
    make = partial(make_task, name, stages, total_steps=3)
    results = run_ranks(size, lambda group: train(group, make), spares=spares, death=deaths)
    assert sum(isinstance(result, Killed) for result in results) == len(deaths)
    left = [result for result in results if not isinstance(result, Killed)]
    for result in left:
        assert not isinstance(result, BaseException), repr(result)
    assert_equal_training(left, alone, deaths=True)
    return left


# Counts from 1 to 140 were tried with strides of 3 to 11; these pass through set-up, a forward pass, the sums, the
# closing barrier and an evaluation.
@pytest.mark.parametrize("count", [1, 20, 33, 47, 58, 71, 90, 113])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_twin_gives_a_lost_stage_back(rank, count):
    left = deaths_are_survived("dense and dropout", 2, 4, [Death(rank, count)])
    assert len(left) == 3


def test_a_rank_that_is_left_over_stands_by_and_steps_in_at_the_next_death():
    left = deaths_are_survived("batch norm over ranks", 2, 4, [Death(0, 60), Death(1, 90)])
    assert sorted(loop.work.part for loop, _ in left) == [0, 1]


def test_a_spare_gets_the_lost_stage():
    left = deaths_are_survived("transformer", 2, 4, [Death(1, 40)], spares=1)
    assert sorted(loop.work.part for loop, _ in left) == [0, 0, 1, 1]


def test_without_a_twin_the_survivors_stop_for_a_new_start():
    def failure(group):
        with pytest.raises(AssertionError) as caught:
            train(group, partial(make_task, "dense and dropout", 2))
        return str(caught.value)

    results = run_ranks(2, failure, death=Death(1, 50))
    assert "no rank is left that holds stage 2 of the model: restart from the newest checkpoint" in results[0]
