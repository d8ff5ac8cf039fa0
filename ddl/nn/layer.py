"""The contract of a layer, and Sequential, which puts layers in a row.

A layer is a frozen description without numbers. Its parameters live in flat buffers and are passed in as named views;
forward returns whatever backward needs."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ddl.arrays import Array, Views, namespace_of
from ddl.errors import ConfigError
from ddl.kernels.sparse_rows import TouchedRows
from ddl.nn.context import Context

Shape = tuple[int, ...]
Backward = Generator[Sequence[str | TouchedRows], None, Array]  # yields finished gradients, returns the input's


class Initialiser(Protocol):
    """Initial values: a pure function of a shape and a generator, in float64."""

    def __call__(self, shape: Shape, random: np.random.Generator) -> np.ndarray: ...


@dataclass(frozen=True)
class Average:
    """A running average (a buffer): new = (1 - momentum) * old + momentum * (sum over samples) / samples.

    In training a layer writes the SUM over its samples into ``grads[name]``; it travels with the
    gradients and is applied in the commit. momentum None: the plain mean over all updates."""

    shape: Shape
    initial: float | np.ndarray = field(default=0.0, compare=False)
    momentum: float | None = 0.1

    def advance(self, old: Array, total: Array, samples: float, updates: int) -> None:
        """Change ``old`` in place. total: the sum over ``samples`` samples; updates: how many came before this one."""
        share = 1 / (updates + 1) if self.momentum is None else self.momentum
        old *= 1 - share
        old += total.reshape(self.shape) * (share / samples)


@dataclass(frozen=True, eq=False)
class Kept:
    """A buffer other than an average, in its own dtype: a table that never changes, or a counter of updates.

    absent: its value in checkpoints of before there was such a buffer; None: it must be there."""

    initial: np.ndarray
    counts: bool = False
    absent: np.ndarray | None = None


@dataclass(frozen=True)
class Spec:
    """A layer's outputs and parameters for inputs of one shape. Shapes omit the batch axis.

    output: shape of one sample's output. params: name -> (shape, initialiser). averages: name -> Average.
    synchronised: in training it asks all ranks for sums, so all must compute it in step.
    samples_per_shard: the fewest samples that a shard needs in a micro-batch of training.
    by_rows: parameters, each a table, whose gradients backward may announce as TouchedRows."""

    output: Shape
    params: Mapping[str, tuple[Shape, Initialiser]] = field(default_factory=dict)
    averages: Mapping[str, Average] = field(default_factory=dict)
    synchronised: bool = False
    by_rows: tuple[str, ...] = ()
    samples_per_shard: int = 0


@runtime_checkable
class Layer(Protocol):
    """A layer's three parts. Arrays have the batch axis first."""

    def spec(self, shape: Shape) -> Spec:
        """Output shape, parameters and averages for samples of ``shape``; raises ConfigError if it cannot take them."""
        ...

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        """(output, cache for backward). ``params`` holds parameters and averages by name."""
        ...

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        """Write gradients of the SUM of the loss into ``grads``, yield their names, return the input's gradient.

        Yielding TouchedRows instead of a name promises that the gradient is zero in all other rows (``grads.clear``).

        ``dy`` may be overwritten. None is returned where ``ctx.wants_gradient_of(x)`` said no.
        In training a layer with averages writes their sums into ``grads`` as well."""
        ...


def check_units(layer: str, **counts: int) -> None:
    """Raises ConfigError for a count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{layer}: {name} = {count} must be at least 1")


def wide(x: Array) -> np.dtype:
    """The dtype for sums and statistics of ``x``: at least float32, since float16 is only storage."""
    return np.promote_types(x.dtype, np.float32)


def contiguous(x: Array) -> Array:
    """``x`` in C order; a copy only if it is not."""
    return x if x.flags.c_contiguous else namespace_of(x).ascontiguousarray(x)


def prefixed(scope: str, backward: Backward) -> Backward:
    """A part's backward seen from outside: its names below ``scope``."""
    while True:
        try:
            names = next(backward)
        except StopIteration as end:
            return end.value
        yield [name.below(scope) if isinstance(name, TouchedRows) else f"{scope}.{name}" for name in names]


def merged(specs: Mapping[str, Spec], output: Shape) -> Spec:
    """The spec of a layer made of named parts: their parameters and averages below their names."""
    params = {f"{scope}.{n}": p for scope, spec in specs.items() for n, p in spec.params.items()}
    averages = {f"{scope}.{n}": a for scope, spec in specs.items() for n, a in spec.averages.items()}
    by_rows = tuple(f"{scope}.{name}" for scope, spec in specs.items() for name in spec.by_rows)
    synchronised = any(spec.synchronised for spec in specs.values())
    samples = max((spec.samples_per_shard for spec in specs.values()), default=0)
    return Spec(output, params, averages, synchronised, by_rows, samples)


@dataclass(frozen=True)
class Link:
    """A layer of a chain. name: for the user. scope: what precedes the names of its parameters; "": nothing does."""

    name: str
    layer: Layer
    scope: str


class Chain:
    """A layer that consists of layers one after another, so that it can be cut between them."""

    def links(self) -> Sequence[Link]:
        """The layers in order. If two of them use the same parameter, its gradient is the sum of both parts."""
        raise NotImplementedError


class Sequential(Chain):
    """Layers one after another.

    Positional layers are named by kind and count (``conv2d1``, ``dense1``, ``dense2``); keyword layers
    by their keyword. Parameters are ``<layer>.<parameter>``."""

    def __init__(self, *layers: Layer, **named: Layer):
        counts: dict[str, int] = {}
        self.layers: dict[str, Layer] = {}
        for layer in layers:
            kind = type(layer).__name__.lower()
            counts[kind] = counts.get(kind, 0) + 1
            self.layers[f"{kind}{counts[kind]}"] = layer
        self.layers.update(named)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers.values())

    def links(self) -> Sequence[Link]:
        return [Link(name, layer, name) for name, layer in self.layers.items()]

    def __repr__(self) -> str:
        return "Sequential(" + ", ".join(f"{name}={layer}" for name, layer in self.layers.items()) + ")"

    def spec(self, shape: Shape) -> Spec:
        specs = {}
        for name, layer in self.layers.items():
            specs[name] = layer.spec(shape)
            shape = specs[name].output
        return merged(specs, shape)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, list[Any]]:
        caches = []
        for name, layer in self.layers.items():
            x, cache = layer.forward(params.at(name), x, ctx)
            caches.append(cache)
        return x, caches

    def backward(self, params: Views, grads: Views, cache: list[Any], dy: Array) -> Backward:
        for (name, layer), kept in zip(reversed(self.layers.items()), reversed(cache), strict=True):
            dy = yield from prefixed(name, layer.backward(params.at(name), grads.at(name), kept, dy))
            if dy is None:  # the layers before this one only passed the data on
                return None
        return dy
