"""train.precision = mixed: float16 inside a step, float32 outside; all ranks skip an overflow, and it is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ddl.arrays import Layout
from ddl.comm.threads import run_ranks
from ddl.config import check, override
from ddl.config.sections import Job
from ddl.data import Arrays
from ddl.errors import ConfigError
from ddl.models import MLP
from ddl.models import build as build_model
from ddl.nn import BatchNorm, Dense, Sequential
from ddl.optim import Adam, Groups
from ddl.train.state import Progress

random = np.random.default_rng(3)
X = random.normal(size=(50, 5)).astype(np.float32)
SOURCE = Arrays(X, (X[:, 0] > 0).astype(np.int64))
MODEL = build_model(MLP([5, 8, 2]), SOURCE.fields, "cross_entropy", None)
LAYOUT = Layout.of({name: shape for name, (shape, _) in MODEL.params.items()})


def trained(whole_job, size, **changes):
    """The state of each of ``size`` ranks after nine steps; their parameters agree."""
    of_task = {"model": MODEL, "train": SOURCE, "validation": None, "test": None, "dtype": "float32"}
    of_task |= {"optimizer": Groups(LAYOUT, Adam()), **changes}
    results = run_ranks(size, lambda group: whole_job(group, **of_task))
    assert [problem for _, problem in results] == [None] * size
    assert len({loop.state.parameters_digest() for loop, _ in results}) == 1
    return [loop.state for loop, _ in results]


def starting_at(scale):
    def begin(state):
        state.progress.loss_scale = scale
        return []

    return begin


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_the_parameters_are_float32_and_near_those_of_full_precision(whole_job, size, parts):
    full = trained(whole_job, size, parts=parts)[0]
    mixed = trained(whole_job, size, parts=parts, mixed=True)[0]
    assert mixed.params.flat.dtype == np.float32 and mixed.progress.skipped == 0
    # Parameters keep digits that float16 does not have.
    assert not np.array_equal(mixed.params.flat, mixed.params.flat.astype(np.float16))
    assert np.allclose(mixed.params.flat, full.params.flat, atol=5e-3)


def test_targets_beyond_float16_are_learned_as_in_full_precision(whole_job):
    prices = 150_000 + 2_000 * X[:, :1] + 100 * random.normal(size=(50, 1)).astype(np.float32)
    source = Arrays(X, prices.astype(np.float32))
    model = build_model(MLP([5, 8, 1]), source.fields, "mae", None)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()})
    full, mixed = (
        trained(whole_job, 1, model=model, train=source, optimizer=Groups(layout, Adam()), mixed=is_mixed)[0]
        for is_mixed in (False, True)
    )
    assert mixed.progress.skipped == 0
    assert np.allclose(mixed.params.flat, full.params.flat, atol=5e-3)


@pytest.mark.parametrize("network", [[], [BatchNorm(sync=True)]])
@pytest.mark.parametrize("size", [1, 2])
def test_steps_that_overflow_are_skipped_by_all_ranks_until_the_scale_fits(whole_job, size, network):
    model = build_model(Sequential(Dense(8), *network, Dense(2)), SOURCE.fields, "cross_entropy", None)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()})
    changes = {"model": model, "optimizer": Groups(layout, Adam())}
    states = trained(whole_job, size, mixed=True, **changes, initial=starting_at(2.0**20), skip_limit=2, total_steps=30)
    for state in states:
        skipped = state.progress.skipped
        assert 2 < skipped < 20 and state.progress.loss_scale == 2.0 ** (20 - skipped)
        assert np.isfinite(state.params.flat).all() and np.isfinite(state.slots["mean"]).all()
    events = [json.loads(line) for line in next(Path().rglob("metrics.jsonl")).read_text().splitlines()]
    messages = [event["message"] for event in events if event["event"] == "warning"]
    assert any("gradients times 1.04858e+06 overflow in float16, the next scale is half of it" in m for m in messages)
    assert sum(event.get("skipped", False) for event in events if event["event"] == "step") == skipped


def test_values_that_are_not_finite_themselves_end_the_job_with_their_shard(whole_job):
    x = X.copy()
    x[7] = np.nan
    results = run_ranks(
        2,
        lambda group: whole_job(
            group,
            model=MODEL,
            train=Arrays(x, SOURCE.arrays["y"]),
            validation=None,
            test=None,
            dtype="float32",
            optimizer=Groups(LAYOUT, Adam()),
            mixed=True,
        ),
    )
    loop = results[0][0]
    assert 0 < loop.state.progress.skipped < loop.state.progress.step
    assert np.isfinite(loop.state.params.flat).all()


def test_a_checkpoint_keeps_the_scale():
    progress = Progress(loss_scale=64.0, scaled_steps=7)
    again = Progress.from_json(json.loads(json.dumps(progress.to_json())))
    assert (again.loss_scale, again.scaled_steps) == (64.0, 7)
    assert Progress.from_json({"step": 3}).loss_scale == Progress().loss_scale  # a checkpoint from before there was one


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "on a CPU is slower than full: set [comm] device to gpu, or to cpu"),
        ({"comm.device": "cpu", "train.dtype": "float64"}, "dtype is float64: parameters and sums stay in float32"),
        ({"comm.device": "cpu", "comm.sync": "local"}, "does not go with [comm] sync = local"),
        ({"comm.device": "cpu", "parallel.stages": 2}, "does not go with [train] precision = mixed"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(settings, expected, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(ConfigError) as refused:
        check(override(Job(), {"train.precision": "mixed", **settings}))
    assert expected in str(refused.value)
