"""Fine-tuning: weights under other names, slower first layers, and layers that begin to learn later."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

import ddl
from ddl.config import check, override
from ddl.config.sections import Job
from ddl.errors import ConfigError
from ddl.models import initial_values

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(64, 4))
Y = (X[:, 0] > 0).astype(np.int64)
QUIET = {"metrics.console_every_s": 0, "train.dtype": "float64", "data.prefetch": 0, "fault.tolerance": "off"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(steps, **settings):
    """(initial parameters, parameters after so many steps of SGD at a constant rate; four make an epoch)."""
    run = ddl.Trainer(
        model=ddl.models.MLP([4, 8, 6, 2]),
        data=(X, Y),
        loss="cross_entropy",
        optimizer="sgd",
        schedule="constant",
        global_batch=16,
        settings={
            **QUIET,
            **{name.replace("__", "."): v for name, v in settings.items()},
        },
    )
    run.fit(steps=steps)
    return initial_values(run.model, 0), run.params


def test_each_layer_moves_by_its_share_of_the_learning_rate():
    start, plain = trained(1)
    _, decayed = trained(1, optim__layer_decay=0.5)
    for name, factor in (("dense1.weight", 0.25), ("dense1.bias", 0.25), ("dense2.weight", 0.5), ("dense3.weight", 1)):
        assert decayed[name] - start[name] == pytest.approx(factor * (plain[name] - start[name]), rel=1e-9, abs=1e-15)


def test_a_layer_is_first_changed_in_the_epoch_that_unfreezes_it():
    start, before = trained(8, optim__unfreeze={"dense1*": 3})
    assert np.array_equal(before["dense1.weight"], start["dense1.weight"])
    assert not np.array_equal(before["dense2.weight"], start["dense2.weight"])
    _, after = trained(9, optim__unfreeze={"dense1*": 3})
    assert not np.array_equal(after["dense1.weight"], start["dense1.weight"])


def weights():
    """Those of another program: layers by other names, matrices (outputs, inputs)."""
    shapes = {"encoder.fc1": (8, 4), "encoder.fc2": (6, 8), "head": (2, 6)}
    arrays = {f"{name}.weight": RANDOM.normal(size=shape) for name, shape in shapes.items()}
    return {**arrays, **{f"{name}.bias": RANDOM.normal(size=shape[0]) for name, shape in shapes.items()}}


NAMES = {"encoder.fc1": "dense1", "encoder.fc2": "dense2", "head": "dense3"}


def test_weights_of_another_program_are_taken_by_a_map_of_names():
    theirs = weights()
    safetensors.numpy.save_file(theirs, "theirs.safetensors")
    frozen = {"model__from": "theirs.safetensors", "model__name_map": NAMES, "model__freeze": ["*"]}
    _, params = trained(1, **frozen)
    assert np.array_equal(params["dense1.weight"], theirs["encoder.fc1.weight"].T)
    assert np.array_equal(params["dense3.bias"], theirs["head.bias"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({**NAMES, "encoder.fc4": "dense9"}, "there is no 'encoder.fc4'"),
        ({**NAMES, "head": "dense2"}, "two arrays would be called 'dense2"),
    ],
)
def test_a_map_that_fits_nothing_or_joins_two_arrays_is_refused(names, expected):
    safetensors.numpy.save_file(weights(), "theirs.safetensors")
    with pytest.raises(ConfigError, match=expected):
        trained(1, model__from="theirs.safetensors", model__name_map=names)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model.name_map": {"a": "b"}}, "name_map is set, but from is not"),
        ({"optim.unfreeze": {"conv*": 1}}, "conv* = 1 must be an epoch from 2 on"),
        ({"optim.unfreeze": {"conv*": 2}, "comm.sync": "local"}, "unfreeze does not go with"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, expected):
    with pytest.raises(ConfigError) as refused:
        check(override(Job(), settings))
    assert expected in str(refused.value)
