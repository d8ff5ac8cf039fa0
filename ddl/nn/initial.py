"""Initial values of parameters: pure functions of a shape and a generator, in float64.

The axes of a weight are (window ..., inputs, outputs)."""

from __future__ import annotations

from math import prod, sqrt

import numpy as np

from ddl.errors import ConfigError
from ddl.nn.layer import Initialiser, Shape


def fans(shape: Shape) -> tuple[int, int]:
    """How many inputs meet in an output, and how many outputs an input reaches."""
    if len(shape) < 2:
        return max(prod(shape), 1), max(prod(shape), 1)
    window = prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def zeros(shape: Shape, random: np.random.Generator) -> np.ndarray:
    return np.zeros(shape)


def ones(shape: Shape, random: np.random.Generator) -> np.ndarray:
    return np.ones(shape)


def he(shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Normal with variance 2 / inputs, which keeps the scale through ReLU."""
    return random.standard_normal(shape) * sqrt(2 / max(fans(shape)[0], 1))


def lecun(shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Normal with variance 1 / inputs."""
    return random.standard_normal(shape) / sqrt(max(fans(shape)[0], 1))


def glorot(shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Uniform with variance 2 / (inputs + outputs), which keeps the scale through linear, tanh and sigmoid."""
    limit = sqrt(6 / max(sum(fans(shape)), 1))
    return random.uniform(-limit, limit, shape)


def orthogonal(shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Square blocks of outputs, each a random rotation: for matrices that are applied again and again."""
    rows, columns = prod(shape[:-1]), shape[-1]
    blocks = []
    for start in range(0, columns, max(rows, 1)):
        q, r = np.linalg.qr(random.standard_normal((rows, min(rows, columns - start))))
        # The signs make the rotation uniformly distributed.
        blocks.append(q * np.sign(np.diagonal(r)))
    return np.concatenate(blocks, axis=1).reshape(shape)


def normal(std: float) -> Initialiser:
    """Normal with a given standard deviation."""
    return lambda shape, random: random.standard_normal(shape) * std


def constant(value: float) -> Initialiser:
    return lambda shape, random: np.full(shape, float(value))


INITIALISERS: dict[str, Initialiser] = {
    "zeros": zeros,
    "ones": ones,
    "he": he,
    "lecun": lecun,
    "glorot": glorot,
    "orthogonal": orthogonal,
}


def initialiser(name: str) -> Initialiser:
    """The initialiser called ``name``; raises ConfigError if there is none."""
    if name not in INITIALISERS:
        raise ConfigError(f"initialiser {name!r} is unknown; known are {', '.join(INITIALISERS)}")
    return INITIALISERS[name]
