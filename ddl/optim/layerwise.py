"""LARS and LAMB: a layer's step is measured by the norm of the layer, which lets very large batches train.

Groups hands them one named parameter at a time; rules that treat elements alike are optimizers.py's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from ddl.arrays import Array, namespace_of
from ddl.optim.elementwise import in_blocks
from ddl.optim.optimizers import check_between, check_positive


def _squares(xp, x: Array, out: Array) -> float:
    """The sum of squares in float64, in an order that depends on the length alone; ``out`` is scratch.

    Not a BLAS dot: its order may follow the address, and replicas must agree to the bit."""
    xp.multiply(x, x, out=out)
    return float(xp.sum(out, dtype=xp.float64))


@dataclass(frozen=True)
class LARS:
    """Momentum whose lr for a layer is multiplied by trust * |p| / (|g| + weight_decay * |p|).

    You, Gitman and Ginsburg, 2017. A layer or gradient of norm zero takes the plain step."""

    lr: float = 0.1
    momentum: float = 0.9
    trust: float = 0.001
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("trace",)
    layerwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(lr=self.lr, trust=self.trust)
        check_between(0, 1, momentum=self.momentum)
        check_between(0, float("inf"), weight_decay=self.weight_decay)

    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        xp, trace, decay = namespace_of(params), slots["trace"], self.weight_decay
        blocks = in_blocks(params)
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
class LAMB:
    """Adam's direction plus weight_decay * p, stretched for each layer to the norm of its parameters.

    You et al., 2020. A layer or direction of norm zero takes the plain step."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("mean", "square")
    layerwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(lr=self.lr, eps=self.eps)
        check_between(0, 1, beta1=self.beta1, beta2=self.beta2)
        check_between(0, float("inf"), weight_decay=self.weight_decay)

    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        xp, mean, square = namespace_of(params), slots["mean"], slots["square"]
        blocks = in_blocks(params)
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
