"""Recipe: a layer. Forward and backward of a class from outside the package, checked and trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddl import nn
from ddl.arrays import namespace_of


def _ones(shape, random):
    return np.ones(shape)


@dataclass(frozen=True)
class Gain:
    """y = gain * x, one gain for each feature."""

    def spec(self, shape):
        return nn.Spec(output=shape, params={"gain": (shape, _ones)})

    def forward(self, params, x, ctx):
        return x * params["gain"], x

    def backward(self, params, grads, x, dy):
        grads["gain"][...] = namespace_of(dy).sum(x * dy, axis=0)
        yield ["gain"]
        return dy * params["gain"]


def network():
    return nn.Sequential(nn.Dense(8, "tanh"), Gain(), nn.Dense(2))


def test_an_own_layer_trains_to_the_same_parameters_on_one_rank_and_on_three(trained):
    [(alone, results)] = trained(1, model=network())
    assert results["accuracy"] > 0.9
    for params, _ in trained(3, model=network()):
        np.testing.assert_allclose(params, alone, rtol=1e-9, atol=1e-12)


def test_the_backward_of_an_own_layer_agrees_with_central_differences(rng):
    layer, x, dy = Gain(), rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    params, grads = {"gain": rng.normal(size=3)}, {"gain": np.zeros(3)}
    context = nn.Context(segments=[slice(0, 5)], shards=[0])
    _, cache = layer.forward(params, x, context)
    steps = layer.backward(params, grads, cache, dy)
    assert list(next(steps)) == ["gain"]
    for i in range(3):
        h, losses = 1e-6, []
        for sign in (1, -1):
            moved = {"gain": params["gain"] + sign * h * (np.arange(3) == i)}
            losses.append((layer.forward(moved, x, context)[0] * dy).sum())
        assert np.isclose(grads["gain"][i], (losses[0] - losses[1]) / (2 * h), rtol=1e-6)
