"""The averaging optimizer for a user's own loop: its updates equal those of the wrapped optimizer."""

from __future__ import annotations

import numpy as np
import pytest

import ddl
from ddl.optim import LAMB, LARS, SGD, Momentum, Rule


@pytest.fixture(autouse=True, scope="module")
def joined():
    ddl.init()


def test_steps_are_as_long_as_the_optimizer_says():
    params = {"w": np.array([1.0, 2.0])}
    optimizer = ddl.DistributedOptimizer(SGD(lr=0.5), params)
    optimizer.step({"w": [2.0, 4.0]})
    assert np.array_equal(params["w"], [0.0, 0.0])
    optimizer.lr = 0.25  # as a user's own schedule would
    optimizer.step({"w": [2.0, 4.0]})
    assert np.array_equal(params["w"], [-0.5, -1.0])


@pytest.mark.parametrize("kind", [LAMB, LARS])
def test_optimizers_that_look_at_layers_see_each_parameter_by_itself(kind, rng):
    start = {"big": 100 * rng.normal(size=(3, 4)), "small": 0.01 * rng.normal(size=5)}
    grads = {name: rng.normal(size=x.shape) for name, x in start.items()}
    together = {name: x.copy() for name, x in start.items()}
    ddl.DistributedOptimizer(kind(lr=0.1), together).step(grads)
    for name, x in start.items():
        alone = x.reshape(-1).copy()
        rule = kind(lr=0.1)
        rule.update(alone, grads[name].reshape(-1), {s: np.zeros_like(alone) for s in rule.slots}, 0.1, 0, 1.0)
        assert np.allclose(together[name].reshape(-1), alone, rtol=1e-12)


def test_rules_are_for_parameters_by_name():
    params = {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}
    rules = [Rule("b", Momentum(lr=0.2)), Rule("c", frozen=True)]
    optimizer = ddl.DistributedOptimizer(SGD(lr=0.1), params, rules)
    optimizer.step({name: np.ones(2) for name in params})
    assert [params[name][0] for name in "abc"] == pytest.approx([0.9, 0.8, 1.0])
