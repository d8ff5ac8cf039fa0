"""A network described by plain values equals the original: the same layers, names and parameters."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddl import nn
from ddl.data import Arrays
from ddl.errors import ConfigError
from ddl.models import MLP, build
from ddl.models.layers import described_loss, described_network
from ddl.nn import CrossEntropy, Dense, Sequential

NETWORKS = {
    "mlp": (MLP([6, 5, 3], "tanh", dropout=0.1), (6,)),
    "cnn": (
        Sequential(nn.Conv2D(4, 3, padding="same"), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2), nn.Flatten(), Dense(3)),
        (8, 8, 1),
    ),
    "nested": (Sequential(a=nn.Residual(nn.Dense(6), nn.LeakyReLU(0.3)), b=Sequential(Dense(4), nn.GELU())), (6,)),
    "recurrent": (Sequential(nn.Embedding(9, 4), nn.LSTM(5), Dense(3)), (7,)),
    "text": (Sequential(nn.Embedding(9, 4), nn.TokenMean(), nn.LayerNorm(), Dense(3, bias=False)), (7,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_description_rebuilds_the_network(name):
    network, shape = NETWORKS[name]
    tables = json.loads(json.dumps(described_network(network)))
    whole = name in ("recurrent", "text")
    x = np.zeros((4, *shape), np.int64) if whole else np.zeros((4, *shape))
    fields = Arrays(x, np.arange(4) % (4 if name == "nested" else 3)).fields
    again = build("layers", fields, options={"layers": tables})
    assert repr(again.network) == repr(network)
    assert {n: s for n, (s, _) in again.params.items()} == {n: s for n, (s, _) in network.spec(shape).params.items()}


class Own(nn.ReLU):
    """Not of ddl.nn."""


def test_networks_beyond_plain_values_have_no_description():
    assert described_network(Sequential(Dense(3), Own())) is None
    assert described_network(Dense(3)) is None and described_network("mlp") is None
    assert described_loss(Own()) is None
    assert described_loss(CrossEntropy(label_smoothing=0.1)) == ("cross_entropy", {"label_smoothing": 0.1})
    assert described_loss(CrossEntropy(class_weights=np.ones(2))) == ("cross_entropy", {"class_weights": [1.0, 1.0]})


WRONG = {
    "no layer": ([{"units": 3}], "does not say which"),
    "an unknown layer": ([{"layer": "Densest", "units": 3}], "no layer called 'Densest'"),
    "what is no layer": ([{"layer": "Context"}], "no layer called 'Context'"),
    "an unknown argument": (
        [{"layer": "Dense", "unit": 3}],
        r"has no option 'unit'; did you mean 'units'",
    ),
    "the same name twice": ([{"layer": "ReLU", "as": "a"}, {"layer": "ReLU", "as": "a"}], "two layers are called 'a'"),
    "other outputs": ([{"layer": "Dense", "units": 7}], "needs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_invalid_description_is_rejected_by_name(case):
    tables, expected = WRONG[case]
    fields = Arrays(np.zeros((4, 5)), np.arange(4) % 3).fields
    with pytest.raises(ConfigError, match=expected):
        build("layers", fields, options={"layers": tables})
