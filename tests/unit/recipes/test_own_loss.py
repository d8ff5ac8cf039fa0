"""Recipe: a loss. The sum over the batch, its weight and its gradient, from a class outside the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddl import nn
from ddl.data import Arrays
from ddl.nn.losses import LOSSES


@dataclass(frozen=True)
class LogCosh:
    """log(cosh(error)): squared near zero, absolute far away."""

    def forward(self, outputs, targets, ctx):
        error = outputs - targets
        loss = np.logaddexp(error, -error) - np.log(2)
        return float(loss.sum()), float(error.size), np.tanh(error)

    def backward(self, cache):
        return cache


def line():
    x = np.random.default_rng(1).normal(size=(60, 3))
    return Arrays(x, x @ [[1.0], [-2.0], [0.5]])


def network():
    return nn.Sequential(nn.Dense(1))


def test_an_own_loss_fits_a_line_on_one_rank_and_on_three(trained):
    parts = {"model": network(), "source": line(), "loss": LogCosh()}
    [(alone, results)] = trained(1, **parts)
    assert results["loss"] < 0.3
    for params, _ in trained(3, **parts):
        np.testing.assert_allclose(params, alone, rtol=1e-9, atol=1e-12)


def test_an_own_loss_is_chosen_by_its_name_in_the_registry(trained, monkeypatch):
    monkeypatch.setitem(LOSSES, "log_cosh", LogCosh)
    [(by_name, _)] = trained(1, model=network(), source=line(), loss="log_cosh")
    [(by_object, _)] = trained(1, model=network(), source=line(), loss=LogCosh())
    assert np.array_equal(by_name, by_object)
