"""comm.sync = local: each rank makes several updates, then all apply the mean of their changes."""

import numpy as np
import pytest

from ddl.arrays import Layout
from ddl.comm.threads import run_ranks
from ddl.config import check, override
from ddl.config.sections import Job
from ddl.data import Arrays, Order
from ddl.errors import ConfigError
from ddl.models import build as build_model
from ddl.models import initial_values
from ddl.nn import BatchNorm, Dense, Sequential
from ddl.optim import SGD, AdamW, Groups, Momentum
from ddl.optim.local import Local

STEPS, PARTS = 4, 3
NESTEROV = Momentum(lr=0.7, momentum=0.9, nesterov=True)
random = np.random.default_rng(8)
X, Y = random.normal(size=(48, 3)), random.normal(size=(48, 1))
ORDER = Order(48, 4, 24, 1)
SOURCE = Arrays(X, Y)
MODEL = build_model(Sequential(Dense(1)), SOURCE.fields, "mse", None)
LAYOUT = Layout.of({name: shape for name, (shape, _) in MODEL.params.items()}, "float64")


def trained(whole_job, size, optimizer, parts, **changes):
    """The state of each of ``size`` ranks that have trained a linear model for four steps; their parameters agree."""
    of_task = {"model": MODEL, "train": SOURCE, "validation": None, "test": None, "order": ORDER, "dtype": "float64"}
    of_task |= {"optimizer": optimizer, "parts": parts, "lr": lambda step: 0.05, "total_steps": STEPS, **changes}
    results = run_ranks(size, lambda group: whole_job(group, **of_task))
    assert [problem for _, problem in results] == [None] * size
    states = [loop.state for loop, _ in results]
    assert len({state.parameters_digest() for state in states}) == 1
    return states


@pytest.mark.parametrize("size", [1, 2, 3])
def test_one_inner_step_of_sgd_and_an_outer_one_of_rate_1_is_synchronous_sgd(size, whole_job):
    inner = Groups(LAYOUT, SGD())
    local = trained(whole_job, size, Local(inner, SGD(lr=1.0), 1), 1)[0]
    synchronous = trained(whole_job, size, inner, 1)[0]
    for name, value in synchronous.params.views.items():
        assert local.params[name] == pytest.approx(value, rel=1e-12, abs=1e-14)


def test_two_ranks_do_what_diloco_does_in_plain_numpy(whole_job):
    state = trained(whole_job, 2, Local(Groups(LAYOUT, SGD()), NESTEROV, PARTS), PARTS)[0]
    start = [value.copy() for value in initial_values(MODEL, 0).values()]
    traces = [np.zeros_like(value) for value in start]
    for step in range(STEPS):
        changes = []
        for shards in ((0, 1), (2, 3)):
            w, b = start
            for part in range(PARTS):
                rows, _ = ORDER.indices(*divmod(step, ORDER.steps_per_epoch), shards, part, PARTS)
                error = X[rows] @ w + b - Y[rows]
                w, b = w - 0.05 * 2 * X[rows].T @ error / len(rows), b - 0.05 * 2 * error.mean(axis=0)
            changes.append([start[0] - w, start[1] - b])
        for value, trace, *change in zip(start, traces, *changes, strict=True):
            mean = np.mean(change, axis=0)
            trace[...] = 0.9 * trace + mean
            value -= 0.7 * (mean + 0.9 * trace)
    for name, value in zip(initial_values(MODEL, 0), start, strict=True):
        assert state.params[name] == pytest.approx(value, rel=1e-9)


def test_batch_norm_takes_the_statistics_of_each_ranks_own_batch(whole_job):
    model = build_model(Sequential(BatchNorm(), Dense(1)), SOURCE.fields, "mse", None)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float64")
    state = trained(whole_job, 2, Local(Groups(layout, SGD()), SGD(lr=1.0), 1), 1, model=model)[0]

    def loss(values, rows):
        x, (gamma, beta, w, b) = X[rows], values
        normal = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
        return np.mean(((normal * gamma + beta) @ w + b - Y[rows]) ** 2)

    def slopes(values, rows, size=1e-5):
        found = [np.zeros_like(value) for value in values]
        for value, slope in zip(values, found, strict=True):
            for place in np.ndindex(value.shape):
                value[place] += size
                above = loss(values, rows)
                value[place] -= 2 * size
                slope[place] = (above - loss(values, rows)) / (2 * size)
                value[place] += size
        return found

    values = [value.astype("float64") for value in initial_values(model, 0).values()]
    for step in range(STEPS):
        epoch, step_in_epoch = divmod(step, ORDER.steps_per_epoch)
        parts = [slopes(values, ORDER.indices(epoch, step_in_epoch, shards, 0, 1)[0]) for shards in ((0, 1), (2, 3))]
        for value, *slope in zip(values, *parts, strict=True):
            value -= 0.05 * np.mean(slope, axis=0)
    for name, value in zip(initial_values(model, 0), values, strict=True):
        assert state.params[name] == pytest.approx(value, rel=1e-6, abs=1e-8)


def test_replicas_are_compared_without_the_state_in_which_ranks_differ(whole_job):
    optimizer = Local(Groups(LAYOUT, AdamW()), NESTEROV, PARTS)
    one, other = trained(whole_job, 2, optimizer, PARTS, check_every=2)
    assert not np.array_equal(one.slots["mean"], other.slots["mean"])
    assert np.array_equal(one.slots["outer_trace"], other.slots["outer_trace"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"train.accumulate": 2}, "accumulate is 2: use inner_steps"),
        ({"optim.sharded": "on"}, "cannot share a replica"),
    ],
)
def test_what_does_not_go_with_local_updates_is_refused(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        check(override(Job(), {"comm.sync": "local", **settings}))
