"""A JAX function trains to the parameters that plain JAX reaches, on one rank and on several, and after a death."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")
jax.config.update("jax_enable_x64", True)

import ddl
import ddl.jax
from ddl.comm.deaths import Death
from ddl.data import Order
from ddl.errors import ConfigError
from tests.unit.recipes import conftest
from tests.unit.recipes.conftest import BATCH, SHARDS, STEPS, _two_classes

numpy, trained = jax.numpy, conftest.trained


def network(params, x):
    hidden = numpy.tanh(x @ params["hidden"]["weight"] + params["hidden"]["bias"])
    return hidden @ params["out"]


def mean_loss(params, batch):
    shares = jax.nn.log_softmax(network(params, batch["x"]))
    return -numpy.take_along_axis(shares, batch["y"][:, None], 1).mean()


def dropping_loss(params, batch, key):
    x = batch["x"]
    if key is not None:
        x = numpy.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0.0)
    return mean_loss(params, {**batch, "x": x}) * len(x), len(x)


def fresh():
    random = np.random.default_rng(1)
    hidden = {"weight": random.normal(size=(4, 8)) / 2, "bias": np.zeros(8)}
    return {"hidden": hidden, "out": random.normal(size=(8, 2)) / 3, "name": "a leaf without numbers"}


def adapted(loss=mean_loss):
    return ddl.jax.Model(loss, fresh(), predict=network, metrics=["accuracy"])


def flat(params):
    return np.concatenate([np.ravel(params["hidden"][name]) for name in ("bias", "weight")] + [np.ravel(params["out"])])


def test_steps_on_one_rank_are_those_of_plain_jax(trained):
    source, order = _two_classes(), Order(60, SHARDS, BATCH, 1)
    params = fresh()
    params.pop("name")
    for step in range(STEPS):
        rows, _ = order.indices(*divmod(step, order.steps_per_epoch), range(SHARDS))
        batch = {name: source.arrays[name][rows] for name in ("x", "y")}
        gradient = jax.grad(mean_loss)(params, batch)
        params = jax.tree.map(lambda value, slope: value - 0.1 * slope, params, gradient)
    [(found, results)] = trained(1, model=adapted, optimizer=ddl.optim.SGD(lr=0.1))
    used = found[found != 0]  # between the arrays there are zeros, for alignment
    np.testing.assert_allclose(used, flat(params), rtol=1e-9, atol=1e-12)
    assert results["accuracy"] > 0.6


@pytest.mark.parametrize("loss", [mean_loss, dropping_loss])
def test_several_ranks_and_a_death_change_nothing(trained, loss):
    make = partial(adapted, loss)
    [(alone, _)] = trained(1, model=make)
    for ranks, threads in ((2, {}), (3, {}), (3, {"death": Death(1, 60)})):
        outcomes = trained(ranks, threads, model=make)
        assert len(outcomes) == ranks - len(threads)
        for params, _ in outcomes:
            np.testing.assert_allclose(params, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "params", "said"),
    [
        (lambda params, batch: batch["x"] @ params["w"], {"w": np.ones(4)}, r"not an array of shape \(15,\)"),
        (lambda params, batch: (1.0, 2.0, 3.0), {"w": np.ones(4)}, "not 3 values"),
        (lambda params, batch: (batch["x"] @ params["w"]).mean(), {"w": np.ones(3)}, "cannot compute samples"),
        (lambda params, batch: (batch["x"] @ params["w"]).sum(), {"w": np.ones(4)}, "a loss must be a mean"),
        (lambda params, batch: batch["y"].sum(), {"w": np.ones(4)}, "is of int.*, which has no gradient"),
    ],
)
def test_a_function_that_does_not_fit_the_data_is_refused_before_training(loss, params, said):
    source = _two_classes()
    with pytest.raises(ConfigError, match=said):
        ddl.jax.Model(loss, params).check({name: value[:15] for name, value in source.arrays.items()})


def test_a_third_argument_with_a_default_is_not_taken_for_a_key(trained):
    def scaled(params, batch, scale=1.0):
        return scale * mean_loss(params, batch)

    [(found, _)], [(expected, _)] = (trained(1, model=partial(adapted, loss)) for loss in (scaled, mean_loss))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_parameters_of_several_types_are_refused():
    with pytest.raises(ConfigError, match="float32"):
        ddl.jax.Model(mean_loss, {"a": np.ones(2, "float32"), "b": np.ones(2)})


def test_a_trainer_leaves_the_trained_values_in_the_model(tmp_path):
    model, source = adapted(), _two_classes()
    settings = {"run.dir": str(tmp_path / "run"), "metrics.console_every_s": 0, "train.dtype": "float64"}
    arrays = (source.arrays["x"], source.arrays["y"])
    run = ddl.Trainer(model, arrays, global_batch=BATCH, optimizer=ddl.optim.Adam(lr=0.02), settings=settings)
    run.fit(epochs=15)
    accuracy = (np.asarray(network(model.values, arrays[0])).argmax(1) == arrays[1]).mean()
    assert accuracy > 0.85 and model.values["name"] == "a leaf without numbers"
    np.testing.assert_allclose(run.predict(arrays[0]), network(model.values, arrays[0]), rtol=1e-9)
