"""SGD, Momentum, the Adam family, RMSprop and Adagrad: frozen hyperparameters and the constants of each step.

The rules themselves are in kernels/optim.py. ``weight_decay`` adds decay * parameter to the gradient (L2), except in
AdamW, where it shrinks the parameter itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Any, ClassVar

from ddl.kernels import optim as rules
from ddl.optim.elementwise import Elementwise


@dataclass(frozen=True)
class SGD(Elementwise):
    """p -= lr * g: plain gradient descent."""

    lr: float = 0.01
    weight_decay: float = 0.0

    rule: ClassVar[Any] = staticmethod(rules.sgd)

    def constants(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        return scale, self.weight_decay, lr


@dataclass(frozen=True)
class Momentum(Elementwise):
    """trace = momentum * trace + g; p -= lr * trace.

    nesterov: step by g + momentum * trace, the direction that the next step would have."""

    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("trace",)
    rule: ClassVar[Any] = staticmethod(rules.momentum)

    def constants(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        return scale, self.weight_decay, lr, self.momentum, float(self.nesterov)


@dataclass(frozen=True)
class Adam(Elementwise):
    """Steps by the mean gradient over the root of its mean square, both corrected for their start at zero.

    Kingma and Ba, 2015; with eps outside the root and bias correction of both, as in the paper's algorithm 1."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8  # above zero, which also keeps the layout's gaps at zero: 0 / (0 + eps) is 0
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("mean", "square")
    rule: ClassVar[Any] = staticmethod(rules.adam)

    def constants(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        beta1, beta2, t = self.beta1, self.beta2, step + 1
        unbiased_lr, unbias = lr / (1 - beta1**t), 1 / sqrt(1 - beta2**t)
        return scale, self.weight_decay, unbiased_lr, beta1, 1 - beta1, beta2, 1 - beta2, unbias, self.eps


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: parameters shrink by lr * weight_decay, whatever their gradient's size.

    Loshchilov and Hutter, 2019."""

    weight_decay: float = 0.01

    rule: ClassVar[Any] = staticmethod(rules.adamw)

    def constants(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        return scale, 1 - lr * self.weight_decay, *super().constants(lr, step, scale)[2:]


@lru_cache
def _products(beta1: float, momentum_decay: float) -> list[float]:
    """Products of NAdam's momenta over the first 0, 1, ... updates, as far as they have been asked for."""
    return [1.0]


@dataclass(frozen=True)
class NAdam(Adam):
    """Adam that steps by the mean gradient as it will be after the next step (Nesterov), with a rising momentum.

    Dozat, 2016, as in PyTorch: the momentum of update t is beta1 * (1 - 0.96 ** (t * momentum_decay) / 2)."""

    lr: float = 2e-3
    momentum_decay: float = 4e-3

    rule: ClassVar[Any] = staticmethod(rules.nadam)

    def _momentum(self, t: int) -> float:
        return self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def _product(self, t: int) -> float:
        known = _products(self.beta1, self.momentum_decay)
        while len(known) <= t and known[-1]:
            known.append(known[-1] * self._momentum(len(known)))
        return known[t] if t < len(known) else 0.0

    def constants(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        t = step + 1
        now, following, product = self._momentum(t), self._momentum(t + 1), self._product(t)
        of_gradient, of_mean = lr * (1 - now) / (1 - product), lr * following / (1 - product * following)
        return scale, self.weight_decay, of_gradient, of_mean, *super().constants(lr, step, scale)[3:]


@dataclass(frozen=True)
class RAdam(Adam):
    """Adam that leaves the division out in its first updates, while the mean square says little.

    Liu et al., 2020, as in PyTorch."""

    rule: ClassVar[Any] = staticmethod(rules.radam)

    def constants(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        beta2, t = self.beta2, step + 1
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / (1 - beta2**t)
        unbiased_lr, rectified = lr / (1 - self.beta1**t), 0.0
        if length > 5:
            share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            rectified = unbiased_lr * sqrt(share * (1 - beta2**t))
        plain = 0.0 if rectified else unbiased_lr
        keep1, add1, keep2, add2 = super().constants(lr, step, scale)[3:7]
        return scale, self.weight_decay, plain, rectified, keep1, add1, keep2, add2, self.eps


@dataclass(frozen=True)
class RMSprop(Elementwise):
    """p -= lr * g / (root of the running mean square + eps); ``decay`` is the share of that mean kept at each step."""

    lr: float = 1e-3
    decay: float = 0.9
    eps: float = 1e-8
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("square",)
    rule: ClassVar[Any] = staticmethod(rules.rmsprop)

    def constants(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        return scale, self.weight_decay, lr, self.decay, 1 - self.decay, self.eps


@dataclass(frozen=True)
class Adagrad(Elementwise):
    """p -= lr * g / (root of the sum of all squares so far + eps): rare features keep a large step.

    Duchi, Hazan and Singer, 2011."""

    lr: float = 0.01
    eps: float = 1e-10
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("square",)
    rule: ClassVar[Any] = staticmethod(rules.adagrad)

    def constants(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        return scale, self.weight_decay, lr, self.eps
