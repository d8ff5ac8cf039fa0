"""An optimizer of optax makes the steps that it makes in plain JAX; after a death and a resumption too."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")
jax.config.update("jax_enable_x64", True)

import ddl
import ddl.jax
from ddl.comm.deaths import Death
from ddl.data import Order
from ddl.errors import ConfigError, UserError
from tests.unit.jax.test_jax_model import adapted, flat, fresh, mean_loss
from tests.unit.recipes import conftest
from tests.unit.recipes.conftest import BATCH, SHARDS, STEPS, _two_classes

trained = conftest.trained


def labels(params):
    return {"hidden": {"weight": "slow", "bias": "frozen"}, "out": "fast"} | (
        {"name": None} if "name" in params else {}
    )


OPTIMIZERS = {
    "adamw": lambda: optax.adamw(0.02, mu_dtype=jax.numpy.bfloat16),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(optax.cosine_decay_schedule(0.3, 9), 0.9)),
    "accumulator": lambda: optax.adagrad(0.1, initial_accumulator_value=0.3),
    "adafactor": lambda: optax.adafactor(0.05, min_dim_size_to_factor=2),
    "every other": lambda: optax.MultiSteps(optax.adam(0.02), 2),
    "by labels": lambda: optax.multi_transform(
        {"slow": optax.sgd(0.01), "fast": optax.adam(0.05), "frozen": optax.set_to_zero()}, labels
    ),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, 3), optax.sgd(0.1)),
}


def in_plain_jax(optimizer):
    source, order = _two_classes(), Order(60, SHARDS, BATCH, 1)
    params = fresh()
    params.pop("name")
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(STEPS):
        rows, _ = order.indices(*divmod(step, order.steps_per_epoch), range(SHARDS))
        gradient = jax.grad(mean_loss)(params, {name: source.arrays[name][rows] for name in ("x", "y")})
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return flat(params)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_are_those_of_optax_in_plain_jax_on_one_rank_and_after_a_death(trained, kind):
    wanted = in_plain_jax(OPTIMIZERS[kind]())
    assert not np.allclose(wanted, flat(fresh()))
    for ranks, threads in ((1, {}), (3, {"death": Death(1, 60)})):
        outcomes = trained(ranks, threads, model=adapted, optimizer=ddl.jax.Optax(OPTIMIZERS[kind](), adapted()))
        assert len(outcomes) == max(ranks - 1, 1)
        for found, _ in outcomes:
            # Updates of bfloat16 moments differ where rounding falls the other way.
            rtol = 1e-3 if kind == "adamw" else 1e-9
            np.testing.assert_allclose(found[found != 0], wanted[wanted != 0], rtol=rtol, atol=1e-12)


def trainer(folder, optimizer=None, model=None, **options):
    source = _two_classes()
    settings = {"run.dir": str(folder), "metrics.console_every_s": 0, "train.dtype": "float64"}
    arrays = (source.arrays["x"], source.arrays["y"])
    made = optimizer or OPTIMIZERS["noise"]()
    return ddl.Trainer(model or adapted(), arrays, global_batch=BATCH, optimizer=made, settings={**settings, **options})


def test_a_resumed_run_ends_as_one_in_one_piece(tmp_path):
    whole, parts = trainer(tmp_path / "whole"), trainer(tmp_path / "parts")
    whole.fit(steps=12)
    for steps in (5, 12):
        parts.fit(steps=steps)
    for name, value in whole.params.items():
        np.testing.assert_array_equal(parts.params[name], value)


def test_a_search_finds_a_factor_of_the_rate_inside_the_optimizer(tmp_path):
    rates = {}
    for rate in (0.1, 0.2):
        found = trainer(tmp_path, optax.sgd(rate)).lr_find(1e-2 / rate, 1e2 / rate, 20)
        assert found.are_factors and "learning rate factors from" in repr(found)
        rates[rate] = found.suggestion * rate
    assert rates[0.1] == pytest.approx(rates[0.2])


def test_what_optax_cannot_do_here_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"goes with a ddl\.jax\.Model"):
        trainer(tmp_path, optax.sgd(0.1), "mlp")
    with pytest.raises(ConfigError, match="cannot update the model's parameters"):
        trainer(tmp_path, [optax.sgd(0.1), optax.sgd(0.2)])
    with pytest.raises(ConfigError, match=r"cannot update the model's parameters: .*value"):
        trainer(tmp_path, optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()))
    with pytest.raises(ConfigError, match="not functions by name"):
        ddl.jax.Model(mean_loss, fresh(), predict=lambda params, x: x, metrics={"accuracy": max})
    with pytest.raises(UserError, match="freeze some by"):
        trainer(tmp_path, optax.sgd(0.1), **{"model.freeze": ["out"]}).fit(steps=1)
    with pytest.raises(ConfigError, match="computes on the CPU only"):
        trainer(tmp_path, optax.sgd(0.1), **{"comm.device": "gpu"}).fit(steps=1)


# A network that changes variables by itself.


def normed_loss(params, state, batch, key):
    x, mean = batch["x"], state["mean"]
    if key is not None:
        mean = x.mean(0)
        state = {"mean": 0.9 * state["mean"] + 0.1 * mean}
    return mean_loss(params, {**batch, "x": x - mean}), state


def normed():
    return ddl.jax.Model(normed_loss, fresh(), state={"mean": np.full(4, 0.5)})


def test_a_state_is_averaged_over_the_shards_and_committed_with_the_step(trained):
    source, order, params, mean = _two_classes(), Order(60, SHARDS, BATCH, 1), fresh(), np.full(4, 0.5)
    params.pop("name")
    for step in range(STEPS):
        total, means, gradient = 0, 0, jax.tree.map(np.zeros_like, params)
        for shard in range(SHARDS):
            rows, _ = order.indices(*divmod(step, order.steps_per_epoch), [shard])
            batch = {name: source.arrays[name][rows] for name in ("x", "y")}
            centred = {**batch, "x": batch["x"] - batch["x"].mean(0)}
            if len(rows):
                slope = jax.grad(mean_loss)(params, centred)
                gradient = jax.tree.map(lambda a, b, n=rows.size: a + n * b, gradient, slope)
                means = means + len(rows) * batch["x"].mean(0)
            total += len(rows)
        params = jax.tree.map(lambda value, slope, n=total: value - 0.1 * slope / n, params, gradient)
        mean = 0.9 * mean + 0.1 * means / total
    for ranks, threads in ((1, {}), (2, {}), (3, {"death": Death(1, 60)})):
        models = []

        def made(models=models):
            models.append(normed())
            return models[-1]

        for found, _ in trained(ranks, threads, model=made, optimizer=ddl.optim.SGD(lr=0.1)):
            np.testing.assert_allclose(found[found != 0], flat(params), rtol=1e-9, atol=1e-12)


def test_a_trainer_leaves_the_state_in_the_model(tmp_path):
    model, x = normed(), _two_classes().arrays["x"]
    run = trainer(tmp_path / "run", ddl.optim.SGD(lr=0.1), model, **{"data.shards": 1})
    run.fit(epochs=1)
    mean = np.full(4, 0.5)
    order = Order(len(x), 1, BATCH, 0)
    for step in range(order.steps_per_epoch):
        mean = 0.9 * mean + 0.1 * x[order.indices(0, step, [0])[0]].mean(0)
    np.testing.assert_allclose(model.state["mean"], mean, rtol=1e-9)


@pytest.mark.parametrize(
    ("loss", "state", "said"),
    [
        (lambda params, state, batch, key: mean_loss(params, batch), {"m": np.ones(4)}, r"returns \(loss, new state\)"),
        (lambda params, state, batch, key: (mean_loss(params, batch), {"n": 1.0}), {"m": np.ones(4)}, "other leaves"),
        (normed_loss, {"mean": np.ones(4), "count": 3}, "which 'count' is not"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_training(loss, state, said):
    batch = {name: value[:15] for name, value in _two_classes().arrays.items()}
    with pytest.raises(ConfigError, match=said):
        ddl.jax.Model(partial(loss), fresh(), state=state).check(batch)
