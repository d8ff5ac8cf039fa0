"""Taking out channels that contribute nothing changes no output, and the layers that read them fit what is left."""

from __future__ import annotations

import numpy as np
import pytest

from ddl import nn
from ddl.arrays import Views
from ddl.compress.channels import cuts_of, narrowed
from ddl.errors import ConfigError
from ddl.nn.context import Context

NETWORKS = {
    "dense": ((7,), lambda: nn.Sequential(nn.Dense(8, "relu"), nn.Dropout(0.5), nn.Dense(6), nn.ReLU(), nn.Dense(3))),
    "flattened": (
        (8, 6, 2),
        lambda: nn.Sequential(
            nn.Conv2D(4, 3, padding="same", bias=False), nn.BatchNorm(), nn.ReLU(), nn.AvgPool2D(2),
            nn.Conv2D(8, 3, activation="relu"), nn.Flatten(), nn.Dropout(0.3), nn.Dense(6, "relu"), nn.Dense(3),
        ),
    ),
    "averaged": (
        (6, 6, 1),
        lambda: nn.Sequential(
            nn.Conv2D(6, (3, 2), activation="relu"), nn.MaxPool2D(2), nn.Conv2D(4, 1), nn.GlobalAvgPool(), nn.Dense(3)
        ),
    ),
}  # fmt: skip


def outputs(network, values, x):
    return network.forward(Views(values), x, Context(segments=[slice(0, len(x))], shards=[0]))[0]


def drawn(network, shape, rng):
    spec = network.spec(shape)
    shapes = {**{n: s for n, (s, _) in spec.params.items()}, **{n: a.shape for n, a in spec.averages.items()}}
    return {name: np.abs(rng.standard_normal(shape)) + 0.1 for name, shape in shapes.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_that_nothing_reads_are_taken_out_without_changing_an_output(name):
    rng = np.random.default_rng(0)
    shape, make = NETWORKS[name]
    network = make()
    values = drawn(network, shape, rng)
    for cut in cuts_of(network, shape):
        units = network.layers[cut.layer].units
        unread = rng.permutation(units)[: units // 2]
        weight = values[f"{cut.reader}.weight"]
        flat = weight.reshape(-1, units, weight.shape[-1])  # channels are the last axis of an image
        flat[:, unread] = 0
    smaller, left = narrowed(network, shape, values, 0.5)
    x = rng.standard_normal((5, *shape))
    for layer in smaller.layers:
        if hasattr(smaller.layers[layer], "units") and layer != list(smaller.layers)[-1]:
            assert smaller.layers[layer].units == network.layers[layer].units // 2
    assert {n: s for n, (s, _) in smaller.spec(shape).params.items()} == {
        n: left[n].shape for n in smaller.spec(shape).params
    }
    np.testing.assert_allclose(outputs(smaller, left, x), outputs(network, values, x), rtol=1e-10)


def test_layers_that_mix_channels_keep_all_of_theirs():
    network = nn.Sequential(nn.Dense(4), nn.LayerNorm(), nn.Dense(4), nn.Residual(nn.Dense(4)), nn.Dense(2))
    assert cuts_of(network, (3,)) == []
    with pytest.raises(ConfigError, match="no layer of this network can lose channels"):
        narrowed(network, (3,), drawn(network, (3,), np.random.default_rng(0)), 0.5)
