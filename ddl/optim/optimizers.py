"""SGD, Momentum, Adam, AdamW, RMSprop and Adagrad: each a frozen choice of numbers and one rule per element.

``weight_decay`` adds decay * parameter to the gradient (L2), except in AdamW, where it shrinks the
parameter itself. How a rule meets the arrays is elementwise.py's; lr schedules are schedule.py's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from ddl.errors import ConfigError
from ddl.optim.elementwise import Elementwise

_DECAYED = "T d = g * scale; if (decay != 0) d += p * decay; "


def check_between(low: float, high: float, **values: float) -> None:
    """Raise ConfigError for a value that is not in [low, high)."""
    for name, value in values.items():
        if not low <= value < high:
            raise ConfigError(f"optim.{name} = {value} must be at least {low} and less than {high}")


def check_positive(**values: float) -> None:
    """Raise ConfigError for a value that is not above zero."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"optim.{name} = {value} must be above zero")


def mean_gradient(p: np.ndarray, g: np.ndarray, scale: float, decay: float, d: np.ndarray, b: np.ndarray) -> None:
    """d = g * scale + decay * p; ``b`` is scratch."""
    np.multiply(g, scale, out=d)
    if decay:
        np.multiply(p, decay, out=b)
        d += b


@dataclass(frozen=True)
class SGD(Elementwise):
    """p -= lr * g: plain gradient descent."""

    lr: float = 0.01
    weight_decay: float = 0.0

    rule: ClassVar[str] = "sgd"
    constants: ClassVar[tuple[str, ...]] = ("scale", "decay", "lr")
    cuda: ClassVar[str] = _DECAYED + "p -= d * lr"

    def __post_init__(self) -> None:
        check_positive(lr=self.lr)
        check_between(0, float("inf"), weight_decay=self.weight_decay)

    def scalars(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        return scale, self.weight_decay, lr

    def block(self, arrays: Sequence[np.ndarray], scalars: Sequence[float], a: np.ndarray, b: np.ndarray) -> None:
        (p, g), (scale, decay, lr) = arrays, scalars
        mean_gradient(p, g, scale, decay, a, b)
        a *= lr
        p -= a


@dataclass(frozen=True)
class Momentum(Elementwise):
    """trace = momentum * trace + g; p -= lr * trace: steps remember their direction.

    nesterov: step by g + momentum * trace, the direction that the next step would have."""

    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("trace",)
    rule: ClassVar[str] = "momentum"
    constants: ClassVar[tuple[str, ...]] = ("scale", "decay", "lr", "mu", "nesterov")
    cuda: ClassVar[str] = _DECAYED + (
        "trace = trace * mu + d; if (nesterov != 0) p -= (trace * mu + d) * lr; else p -= trace * lr"
    )

    def __post_init__(self) -> None:
        check_positive(lr=self.lr)
        check_between(0, 1, momentum=self.momentum)
        check_between(0, float("inf"), weight_decay=self.weight_decay)

    def scalars(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        return scale, self.weight_decay, lr, self.momentum, float(self.nesterov)

    def block(self, arrays: Sequence[np.ndarray], scalars: Sequence[float], a: np.ndarray, b: np.ndarray) -> None:
        (p, g, trace), (scale, decay, lr, mu, nesterov) = arrays, scalars
        mean_gradient(p, g, scale, decay, a, b)
        trace *= mu
        trace += a
        np.multiply(trace, mu if nesterov else lr, out=b)
        if nesterov:
            b += a
            b *= lr
        p -= b


def _moments(arrays: Sequence[np.ndarray], scalars: Sequence[float], d: np.ndarray, b: np.ndarray) -> None:
    """Adam's moments move toward the gradient ``d``; afterwards ``d`` is the step: lr * mean / (sqrt(square) + eps)."""
    (_, _, mean, square), (lr, keep1, add1, keep2, add2, unbias, eps) = arrays, scalars
    mean *= keep1
    np.multiply(d, add1, out=b)
    mean += b
    square *= keep2
    d *= d
    d *= add2
    square += d
    np.sqrt(square, out=b)
    b *= unbias
    b += eps
    np.divide(mean, b, out=d)
    d *= lr


@dataclass(frozen=True)
class Adam(Elementwise):
    """Steps by the mean gradient over the root of its mean square, both corrected for their start at zero.

    Kingma and Ba, 2015; with eps outside the root and bias correction of both, as in the paper's algorithm 1."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("mean", "square")
    rule: ClassVar[str] = "adam"
    constants: ClassVar[tuple[str, ...]] = (
        "scale", "decay", "lr", "keep1", "add1", "keep2", "add2", "unbias", "eps",
    )  # fmt: skip
    cuda: ClassVar[str] = _DECAYED + (
        "mean = mean * keep1 + d * add1; square = square * keep2 + d * d * add2; "
        "p -= mean / (sqrt(square) * unbias + eps) * lr"
    )

    def __post_init__(self) -> None:
        # eps above zero also keeps the layout's gaps at zero: 0 / (0 + eps) is 0.
        check_positive(lr=self.lr, eps=self.eps)
        check_between(0, 1, beta1=self.beta1, beta2=self.beta2)
        check_between(0, float("inf"), weight_decay=self.weight_decay)

    def scalars(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        beta1, beta2, t = self.beta1, self.beta2, step + 1
        unbiased_lr, unbias = lr / (1 - beta1**t), 1 / sqrt(1 - beta2**t)
        return scale, self.weight_decay, unbiased_lr, beta1, 1 - beta1, beta2, 1 - beta2, unbias, self.eps

    def block(self, arrays: Sequence[np.ndarray], scalars: Sequence[float], a: np.ndarray, b: np.ndarray) -> None:
        p, g = arrays[:2]
        mean_gradient(p, g, scalars[0], scalars[1], a, b)
        _moments(arrays, scalars[2:], a, b)
        p -= a


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: parameters shrink by lr * weight_decay, whatever their gradient's size.

    Loshchilov and Hutter, 2019."""

    weight_decay: float = 0.01

    rule: ClassVar[str] = "adamw"
    constants: ClassVar[tuple[str, ...]] = ("scale", "kept", *Adam.constants[2:])
    cuda: ClassVar[str] = (
        "T d = g * scale; mean = mean * keep1 + d * add1; square = square * keep2 + d * d * add2; "
        "p = p * kept - mean / (sqrt(square) * unbias + eps) * lr"
    )

    def scalars(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        scalars = super().scalars(lr, step, scale)
        return scale, 1 - lr * self.weight_decay, *scalars[2:]

    def block(self, arrays: Sequence[np.ndarray], scalars: Sequence[float], a: np.ndarray, b: np.ndarray) -> None:
        p, g = arrays[:2]
        np.multiply(g, scalars[0], out=a)
        _moments(arrays, scalars[2:], a, b)
        p *= scalars[1]
        p -= a


@dataclass(frozen=True)
class RMSprop(Elementwise):
    """p -= lr * g / (root of the running mean square + eps); ``decay`` is what that mean keeps at each step."""

    lr: float = 1e-3
    decay: float = 0.9
    eps: float = 1e-8
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("square",)
    rule: ClassVar[str] = "rmsprop"
    constants: ClassVar[tuple[str, ...]] = ("scale", "decay", "lr", "keep", "add", "eps")
    cuda: ClassVar[str] = _DECAYED + "square = square * keep + d * d * add; p -= d / (sqrt(square) + eps) * lr"

    def __post_init__(self) -> None:
        check_positive(lr=self.lr, eps=self.eps)
        check_between(0, 1, decay=self.decay)
        check_between(0, float("inf"), weight_decay=self.weight_decay)

    def scalars(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        return scale, self.weight_decay, lr, self.decay, 1 - self.decay, self.eps

    def block(self, arrays: Sequence[np.ndarray], scalars: Sequence[float], a: np.ndarray, b: np.ndarray) -> None:
        (p, g, square), (scale, decay, lr, keep, add, eps) = arrays, scalars
        mean_gradient(p, g, scale, decay, a, b)
        square *= keep
        np.multiply(a, a, out=b)
        b *= add
        square += b
        np.sqrt(square, out=b)
        b += eps
        a /= b
        a *= lr
        p -= a


@dataclass(frozen=True)
class Adagrad(Elementwise):
    """p -= lr * g / (root of the sum of all squares so far + eps): rare features keep a large step.

    Duchi, Hazan and Singer, 2011."""

    lr: float = 0.01
    eps: float = 1e-10
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("square",)
    rule: ClassVar[str] = "adagrad"
    constants: ClassVar[tuple[str, ...]] = ("scale", "decay", "lr", "eps")
    cuda: ClassVar[str] = _DECAYED + "square += d * d; p -= d / (sqrt(square) + eps) * lr"

    def __post_init__(self) -> None:
        check_positive(lr=self.lr, eps=self.eps)
        check_between(0, float("inf"), weight_decay=self.weight_decay)

    def scalars(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        return scale, self.weight_decay, lr, self.eps

    def block(self, arrays: Sequence[np.ndarray], scalars: Sequence[float], a: np.ndarray, b: np.ndarray) -> None:
        (p, g, square), (scale, decay, lr, eps) = arrays, scalars
        mean_gradient(p, g, scale, decay, a, b)
        np.multiply(a, a, out=b)
        square += b
        np.sqrt(square, out=b)
        b += eps
        a /= b
        a *= lr
        p -= a
