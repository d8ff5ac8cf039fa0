"""LARS and LAMB: the norm of a layer sets the length of its step, which lets very large batches train.

Groups passes one named parameter at a time; optimizers that treat all elements alike are in optimizers.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from ddl.arrays import Array, namespace_of
from ddl.kernels.optim import BLOCK
from ddl.optim.optimizer import Hyperparameters, Optimizer, in_float32


def _blocks(x: Array) -> list[tuple[slice, Array, Array]]:
    """Cut ``x`` (length,) into blocks, each with two scratch arrays of its size and dtype.

    A GPU gets one block: its kernels are fastest on long arrays."""
    size = BLOCK if namespace_of(x) is np else max(len(x), 1)
    a, b = namespace_of(x).empty_like(x[:size]), namespace_of(x).empty_like(x[:size])
    edges = [(start, min(start + size, len(x))) for start in range(0, len(x), size)]
    return [(slice(start, stop), a[: stop - start], b[: stop - start]) for start, stop in edges]


def _squares(xp, x: Array, out: Array) -> float:
    """The sum of squares in float64, in an order that depends on the length alone; ``out`` is scratch.

    Not a BLAS dot: its order may follow the address, and replicas must agree to the bit."""
    xp.multiply(x, x, out=out)
    return float(xp.sum(out, dtype=xp.float64))


@dataclass(frozen=True)
class LARS(Hyperparameters, Optimizer):
    """Momentum whose lr for a layer is multiplied by trust * |p| / (|g| + weight_decay * |p|).

    You, Gitman and Ginsburg, 2017. A layer or gradient of norm zero takes the plain step."""

    lr: float = 0.1
    momentum: float = 0.9
    trust: float = 0.001
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("trace",)
    layerwise: ClassVar[bool] = True

    @in_float32
    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        xp, trace, decay = namespace_of(params), slots["trace"], self.weight_decay
        blocks = _blocks(params)
        of_params = of_grads = 0.0
        for block, a, _ in blocks:
            of_params += _squares(xp, params[block], a)
            xp.multiply(grads[block], scale, out=a)
            of_grads += _squares(xp, a, a)
        size, slope = sqrt(of_params), sqrt(of_grads)
        local = self.trust * size / (slope + decay * size) if size and slope else 1.0
        for block, a, b in blocks:
            p, kept = params[block], trace[block]
            xp.multiply(grads[block], scale, out=a)
            if decay:
                xp.multiply(p, decay, out=b)
                a += b
            a *= lr * local
            kept *= self.momentum
            kept += a
            p -= kept


@dataclass(frozen=True)
class LAMB(Hyperparameters, Optimizer):
    """Adam's direction plus weight_decay * p, stretched for each layer to the norm of its parameters.

    You et al., 2020. A layer or direction of norm zero takes the plain step."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("mean", "square")
    layerwise: ClassVar[bool] = True

    @in_float32
    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        xp, mean, square = namespace_of(params), slots["mean"], slots["square"]
        blocks = _blocks(params)
        of_params = of_direction = 0.0
        for block, a, b in blocks:
            xp.multiply(grads[block], scale, out=a)
            xp.multiply(a, 1 - self.beta1, out=b)
            mean[block] *= self.beta1
            mean[block] += b
            a *= a
            a *= 1 - self.beta2
            square[block] *= self.beta2
            square[block] += a
            of_params += _squares(xp, params[block], a)
            self._direction(xp, params[block], mean[block], square[block], step, a, b)
            of_direction += _squares(xp, a, b)
        trust = sqrt(of_params / of_direction) if of_params and of_direction else 1.0
        for block, a, b in blocks:
            # The direction again: a second look at the slots costs less than an array to keep it in.
            self._direction(xp, params[block], mean[block], square[block], step, a, b)
            a *= lr * trust
            params[block] -= a

    def _direction(self, xp, p: Array, mean: Array, square: Array, step: int, out: Array, b: Array) -> None:
        """out = unbiased mean / (root of the unbiased square + eps) + weight_decay * p; ``b`` is scratch."""
        xp.sqrt(square, out=b)
        b *= 1 / sqrt(1 - self.beta2 ** (step + 1))
        b += self.eps
        xp.divide(mean, b, out=out)
        out *= 1 / (1 - self.beta1 ** (step + 1))
        if self.weight_decay:
            xp.multiply(p, self.weight_decay, out=b)
            out += b
