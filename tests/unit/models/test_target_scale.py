"""Networks of values learn standardised targets; losses are of these, everything else is in the units of the data."""

import json

import numpy as np
import pytest

import ddl
from ddl.arrays import Device, Views
from ddl.config import Job, override
from ddl.data import Arrays, Subset, lost_in_cast, target_moments
from ddl.models import build
from ddl.nn import Dense, Reshape, Sequential, Sigmoid
from ddl.nn.context import Context
from ddl.train.build import build_task
from ddl.train.state import TrainingState


def rows(count=120, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 3))
    return x, x @ [[1.0], [-2.0], [0.5]] + 0.1 * random.standard_normal((count, 1))


def trainer(tmp_path, y, x=None, model=None, **others):
    x = rows()[0] if x is None else x
    settings = {"run.dir": str(tmp_path / "run"), **others.pop("settings", {})}
    model = Sequential(Dense(16, "relu"), Dense(int(np.prod(np.shape(y)[1:])))) if model is None else model
    return ddl.Trainer(
        model, (x, y), loss="mse", optimizer=ddl.optim.Adam(lr=2e-2), global_batch=40, settings=settings, **others
    )


@pytest.mark.parametrize("scale, shift", [(80_000.0, 150_000.0), (1e-6, 0.0), (1e9, -3e12), (1e100, 0.0), (1.0, 1e9)])
def test_any_scale_is_learned_alike_and_answered_in_units_of_the_data(tmp_path, scale, shift):
    x, y = rows()
    plain = trainer(tmp_path / "a", y)
    plain.fit(epochs=40)
    run = trainer(tmp_path / "b", y * scale + shift)
    run.fit(epochs=40)
    got, wanted = run.evaluate((x, y * scale + shift)), plain.evaluate((x, y))
    assert got["r2"] == pytest.approx(wanted["r2"], abs=1e-3) and wanted["r2"] > 0.9
    assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-2)
    np.testing.assert_allclose((run.predict(x).astype(float) - shift) / scale, plain.predict(x), atol=2e-2)
    loaded = ddl.load(run.folder)
    np.testing.assert_array_equal(loaded.predict(x), run.predict(x))
    np.testing.assert_allclose(run.trained.trained.evaluate(Arrays(x, y * scale + shift), run.group)["r2"], got["r2"])


def test_moments_are_those_of_the_training_part_by_column():
    y = np.array([[1.0, 7.0, 1e300], [3.0, 7.0, -1e300], [1e6, 0.0, 0.0]])
    mean, deviation = target_moments(Subset(Arrays(np.zeros((3, 2)), y), np.array([0, 1])))
    assert mean.tolist() == [2.0, 7.0, 0.0] and deviation.tolist() == [1.0, 1.0, 1e300]


def test_the_same_numbers_are_learned_where_targets_must_be_gathered():
    class Own(Arrays):
        def targets(self):
            return None

    x, y = rows()
    for a, b in zip(target_moments(Own(x, y)), target_moments(Arrays(x, y)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_whole_numbers_and_constant_columns_are_learned(tmp_path):
    x, y = rows()
    both = np.concatenate([np.rint(1000 * y).astype(np.int64), np.full((len(y), 1), 42)], axis=1)
    run = trainer(tmp_path, both, settings={"data.target_kind": "values"})
    run.fit(epochs=40)
    predicted = run.predict(x)
    assert np.corrcoef(predicted[:, 0], both[:, 0])[0, 1] > 0.95
    np.testing.assert_allclose(predicted[:, 1], 42, atol=1)


def test_only_a_linear_head_and_losses_of_values_are_scaled():
    fields = Arrays(*rows()).fields
    named = {"head": Sequential(Dense(1)), "deep": Sequential(Sequential(a=Dense(4), b=Dense(1)), Reshape((1,)))}
    assert [build(net, fields).target_scale.head for net in named.values()] == ["dense1", "sequential1.b"]
    limited = Sequential(Dense(1), Sigmoid())
    others = [build(limited, fields), build(Sequential(Dense(1, "relu")), fields), build("autoencoder", fields)]
    assert [model.target_scale for model in others] == [None] * 3
    job = override(Job(), {"data.source": "linear", "model.name": "linear", "data.scale_targets": False})
    task = build_task(job)
    assert task.model.kept["target_deviation"].initial.tolist() == [1.0]


def test_the_banner_names_the_scale_or_why_there_is_none():
    options = {"weights": 4e4, "bias": 1.5e5}
    settings = {"data.source": "linear", "model.name": "linear", "data.options": options}
    notes = build_task(override(Job(), settings)).settings["knowledge"]["data"]["notes"]
    assert len(notes) == 1 and "learned as (y - mean) / deviation (mean 1" in notes[0]
    off = {**settings, "data.scale_targets": False}
    notes = build_task(override(Job(), off)).settings["knowledge"]["data"]["notes"]
    assert len(notes) == 1 and "not scaled" in notes[0] and "data.scale_targets is false" in notes[0]


def test_only_targets_that_float32_cannot_hold_stay_wide():
    x, y = rows()
    kind = type("Values", (), {"kind": "values"})()
    found = [lost_in_cast(Arrays(x, y * scale + shift), kind, "float32", x=False, y=True) for scale, shift in
             ((1.0, 1e9), (1e50, 0.0), (8e4, 1.5e5))]  # fmt: skip
    assert found == [{"y"}, {"y"}, set()]


def test_an_old_checkpoint_holds_a_network_of_targets_as_they_were():
    fields = Arrays(*rows()).fields
    model = build(Sequential(Dense(1)), fields).with_target_scale(np.array([5.0]), np.array([2.0]))
    state = TrainingState(model, (), "float32", 0, Device())
    old = {name: value for name, value in state.to_named().items() if "target_" not in name}
    state.load_named(old)
    assert state.buffers["target_mean"].tolist() == [0.0] and state.buffers["target_deviation"].tolist() == [1.0]


def test_folding_gives_the_equal_network_without_the_layer():
    fields = {**Arrays(*rows()).fields, "y": Arrays(np.zeros((2, 3)), np.zeros((2, 2, 3, 4))).fields["y"]}
    net = Sequential(Dense(24), Reshape((2, 3, 4)))
    mean, deviation = np.arange(4.0), np.array([1.0, 2.0, 3.0, 1e-3])
    model = build(net, fields, "mse").with_target_scale(mean, deviation)
    state = TrainingState(model, (), "float64", 0, Device())
    x = {"x": rows(5)[0]}
    context = Context(segments=[slice(0, 5)], shards=[0])
    wanted = model.predict(state.params.views, state.buffers, x, context)["output"]
    arrays = {**state.params.views, **state.buffers}
    folded = model.target_scale.folded(arrays)
    got = model.predict(Views(folded), Views({}), x, context)["output"]
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    back = model.target_scale.unfolded(folded, mean, deviation)
    np.testing.assert_allclose(back["dense1.weight"], arrays["dense1.weight"], rtol=1e-12)


def test_a_run_that_starts_from_another_predicts_the_same_with_its_own_scale(tmp_path):
    x, y = rows()
    first = trainer(tmp_path / "a", 1e5 * y + 3e5)
    first.fit(epochs=5)
    first.save(tmp_path / "saved")
    second = trainer(
        tmp_path / "b",
        2e5 * y,
        settings={"model.from": str(tmp_path / "saved"), "train.steps": 1},
        schedule=lambda step: 0.0,
    )
    second.fit(steps=1)
    np.testing.assert_allclose(second.predict(x), first.predict(x), atol=1)
    meta = json.loads((second.folder / "summary.json").read_text())
    assert meta["status"] == "finished"
