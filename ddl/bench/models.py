"""The networks that the step bench measures, with their batches; the same sizes as in peers.py.

Data is random, since the time of a step does not depend on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ddl.data import Arrays
from ddl.models import MLP, Supervised, build
from ddl.models.model import Model
from ddl.nn import Conv2D, Dense, Flatten, MaxPool2D, Sequential

STEPS_OF_DATA = 16  # an epoch's steps: more data only makes the bench start later


@dataclass(frozen=True)
class Case:
    """A network and the samples of one rank's step."""

    batch: int
    make_data: Callable[[np.random.Generator, int], Arrays]
    make_model: Callable[[Arrays], Model]


def _images(features: int) -> Callable[[np.random.Generator, int], Arrays]:
    return lambda random, n: Arrays(random.random((n, features), np.float32), random.integers(0, 10, n))


def _texts(random: np.random.Generator, n: int) -> Arrays:
    # No 0: it would be padding, of which these texts have none. The last token fixes the vocabulary's size.
    return Arrays(random.integers(1, 10_000, (n, 80)), random.integers(0, 2, n))


def _bytes(random: np.random.Generator, n: int) -> Arrays:
    text = random.integers(0, 256, (n, 129)).astype(np.uint8)
    return Arrays(text[:, :-1].astype(np.int64), text[:, 1:].astype(np.int64))


def _cnn(data: Arrays) -> Model:
    network = Sequential(
        Conv2D(32, 3, activation="relu"),
        MaxPool2D(2),
        Conv2D(64, 3, activation="relu"),
        MaxPool2D(2),
        Conv2D(64, 3, activation="relu"),
        Flatten(),
        Dense(64, "relu"),
        Dense(10),
    )
    return build(network, data.fields, metrics=())


def _autoencoder(data: Arrays) -> Model:
    # The wanted output is the input, and no metric: PyTorch's step computes none either.
    layers = [Dense(256, "relu"), Dense(64), Dense(256, "relu"), Dense(784, "sigmoid")]
    network = Sequential(*layers)
    found = build("autoencoder", data.fields, metrics=())
    assert isinstance(found, Supervised)
    return Supervised(network, found.loss, (784,), (), "x")


def _words(name: str) -> Callable[[Arrays], Model]:
    return lambda data: build(name, data.fields, metrics=(), options={"vocabulary": 10_000, "padding": -1})


def _transformer(data: Arrays) -> Model:
    options = {"vocabulary": 256, "classes": 256, "tied": False}
    return build("transformer", data.fields, metrics=(), options=options)


CASES: dict[str, Case] = {
    "mlp": Case(128, _images(784), lambda d: build(MLP([784, 512, 256, 10]), d.fields, metrics=())),
    "autoencoder": Case(128, _images(784), _autoencoder),
    "lstm": Case(32, _texts, _words("lstm")),
    "text": Case(32, _texts, _words("text")),
    "cnn": Case(
        64,
        lambda random, n: Arrays(random.random((n, 28, 28, 1), np.float32), random.integers(0, 10, n)),
        _cnn,
    ),
    "transformer": Case(8, _bytes, _transformer),
    "digits": Case(32, _images(64), lambda d: build(MLP([64, 128, 64, 10]), d.fields, metrics=())),
}
