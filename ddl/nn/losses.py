"""Losses: the sum over a batch, the weight that its mean divides by, and the gradient of the sum.

Classes are given as logits; class targets below 0 are padding and not counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol

import numpy as np

from ddl.arrays import Array, namespace_of
from ddl.errors import ConfigError, DataError
from ddl.kernels.rowwise import cross_entropy
from ddl.nn.context import Context
from ddl.nn.layer import contiguous, wide


class Loss(Protocol):
    """A loss over a batch of outputs and targets, both with the batch axis first. Inherit to get ``backward``."""

    def forward(self, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        """(sum of the loss, weight that its mean divides by, cache for backward: here the gradient)."""
        ...

    def backward(self, cache: Any) -> Array:
        """The gradient of the SUM with respect to ``outputs``."""
        return cache


def _in_float32(forward: Callable[..., tuple[float, float, Array]]) -> Callable[..., tuple[float, float, Array]]:
    """Compute the loss of float16 outputs in float32 and round its gradient once: float16 is only storage."""

    @wraps(forward)
    def widened(self: Any, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Array]:
        loss, weight, gradient = forward(self, outputs.astype(wide(outputs), copy=False), targets, ctx)
        return loss, weight, gradient.astype(outputs.dtype, copy=False)

    return widened


def _log_softmax(x: Array) -> Array:
    """Over the last axis. The exp of the largest value, 1, is kept out of the sum: small losses do not cancel."""
    xp = namespace_of(x)
    rows = x.reshape(-1, x.shape[-1])
    line, largest = xp.arange(len(rows)), rows.argmax(axis=1)
    shifted = rows - rows[line, largest][:, None]
    rest = xp.exp(shifted)
    rest[line, largest] = 0
    return (shifted - xp.log1p(rest.sum(axis=1, keepdims=True))).reshape(x.shape)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy of outputs (..., classes).

    targets: (...) class numbers, or (..., classes) probabilities. label_smoothing: the share of a target that is
    spread evenly over all classes. class_weights: one per class; the weight of a batch is then their sum over the
    targets."""

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing = {self.label_smoothing} must be at least 0 and below 1")
        object.__setattr__(self, "class_weights", tuple(float(w) for w in self.class_weights))

    @_in_float32
    def forward(self, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        classes = outputs.shape[-1]
        logits = contiguous(outputs).reshape(-1, classes)
        gradient = ctx.empty(logits.shape, logits.dtype)
        if targets.shape == outputs.shape and targets.dtype.kind == "f":
            loss, weight = self._soft(logits, targets.reshape(logits.shape), gradient)
            return loss, weight, gradient.reshape(outputs.shape)
        if self.class_weights and len(self.class_weights) != classes:
            raise ConfigError(f"class_weights has {len(self.class_weights)} entries for {classes} classes")
        labels = targets.reshape(-1)
        if len(labels) != len(logits):
            raise DataError(f"{len(labels)} targets for {len(logits)} outputs of {classes} classes")
        if labels.dtype.kind == "f":
            labels = labels.astype(np.int64)
        if len(labels) and int(labels.max()) >= classes:
            raise DataError(f"target {int(labels.max())} where the model has classes 0 to {classes - 1}")
        weights = namespace_of(outputs).asarray(self.class_weights, dtype=outputs.dtype)
        loss, weight = cross_entropy(logits, labels, weights, self.label_smoothing, gradient)
        return loss, weight, gradient.reshape(outputs.shape)

    def _soft(self, logits: Array, targets: Array, gradient: Array) -> tuple[float, float]:
        """The same for targets that are probabilities; a row of class weights is averaged by them."""
        xp = namespace_of(logits)
        classes = logits.shape[-1]
        shares = targets * (1 - self.label_smoothing) + self.label_smoothing / classes
        each = targets @ xp.asarray(self.class_weights, dtype=logits.dtype) if self.class_weights else None
        log_share = _log_softmax(logits)
        losses = -(shares * log_share).sum(axis=1)
        gradient[...] = xp.exp(log_share) * shares.sum(axis=1, keepdims=True) - shares
        if each is None:
            return float(losses.sum(dtype=np.float64)), float(len(logits))
        gradient *= each[:, None]
        return float((losses * each).sum(dtype=np.float64)), float(each.sum(dtype=np.float64))


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Sigmoid cross-entropy, one logit per target; targets in [0, 1], below 0 is padding.

    positive_weight: how much a target of 1 counts, against 1 for a target of 0."""

    positive_weight: float = 1.0

    @_in_float32
    def forward(self, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        xp = namespace_of(outputs)
        truth = _like(outputs, targets)
        if truth.size and float(truth.max()) > 1:
            raise DataError(f"binary_cross_entropy needs targets from 0 to 1, got {float(truth.max()):g}")
        counted = truth >= 0
        each = xp.where(counted, 1 + (self.positive_weight - 1) * truth, 0).astype(outputs.dtype)
        # log(1 + exp(x)) - t x, in the form that cannot overflow; of a soft target the positive part is weighted.
        falling = xp.exp(-xp.abs(outputs))
        rest = xp.log1p(falling)
        positive, negative = rest - xp.minimum(outputs, 0), rest + xp.maximum(outputs, 0)
        share = xp.where(counted, truth, 0)
        losses = self.positive_weight * share * positive + xp.where(counted, 1 - share, 0) * negative
        probability = xp.where(outputs >= 0, 1, falling) / (1 + falling)
        gradient = ctx.empty(outputs.shape, outputs.dtype)
        gradient[...] = each * probability - self.positive_weight * share
        return float(losses.sum(dtype=np.float64)), float(each.sum(dtype=np.float64)), gradient


def _like(outputs: Array, targets: Array) -> Array:
    """Targets in the shape and dtype of the outputs; the shapes may differ by axes of length 1."""
    if targets.size != outputs.size or len(targets) != len(outputs):
        raise DataError(f"targets of shape {targets.shape} do not match outputs of shape {outputs.shape}")
    return targets.reshape(outputs.shape).astype(outputs.dtype, copy=False)


def _difference(outputs: Array, targets: Array, ctx: Context) -> Array:
    difference = ctx.empty(outputs.shape, outputs.dtype)
    namespace_of(outputs).subtract(outputs, _like(outputs, targets), out=difference)
    return difference


def _square(x: Array) -> float:
    """The sum of squares, without a temporary of the size of x."""
    flat = x.reshape(-1)
    return float(namespace_of(x).dot(flat, flat))


@dataclass(frozen=True)
class MSE(Loss):
    """The mean squared error over all values of all samples."""

    @_in_float32
    def forward(self, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        gradient = _difference(outputs, targets, ctx)
        loss = _square(gradient)
        gradient *= 2
        return loss, float(outputs.size), gradient


@dataclass(frozen=True)
class MAE(Loss):
    """The mean absolute error over all values of all samples."""

    @_in_float32
    def forward(self, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        xp = namespace_of(outputs)
        gradient = _difference(outputs, targets, ctx)
        loss = float(xp.abs(gradient).sum(dtype=np.float64))
        xp.sign(gradient, out=gradient)
        return loss, float(outputs.size), gradient


@dataclass(frozen=True)
class Huber(Loss):
    """Half the squared error up to ``delta``, beyond it delta * (error - delta / 2): outliers pull less."""

    delta: float = 1.0

    @_in_float32
    def forward(self, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        xp = namespace_of(outputs)
        error = _difference(outputs, targets, ctx)
        gradient = ctx.empty(error.shape, error.dtype)
        xp.clip(error, -self.delta, self.delta, out=gradient)
        # delta * (|error| - delta / 2) and error**2 / 2 alike are gradient * (error - gradient / 2).
        loss = float((gradient * (error - gradient / 2)).sum(dtype=np.float64))
        return loss, float(error.size), gradient


@dataclass(frozen=True)
class Distillation(Loss):
    """How far the outputs' softmax is from a teacher's: the KL divergence, both softened by ``temperature``.

    outputs, targets: (..., classes) logits. Multiplied by temperature**2, so that gradients keep their scale."""

    temperature: float = 2.0

    @_in_float32
    def forward(self, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        distances, slopes = self.of_rows(outputs, _like(outputs, targets))
        gradient = ctx.empty(outputs.shape, outputs.dtype)
        gradient[...] = slopes
        return float(distances.sum(dtype=np.float64)), float(outputs.size // outputs.shape[-1]), gradient

    def of_rows(self, outputs: Array, teacher: Array) -> tuple[Array, Array]:
        """The loss of each row (...), and its gradient (..., classes)."""
        xp, scale = namespace_of(outputs), self.temperature
        ours, theirs = _log_softmax(outputs / scale), _log_softmax(teacher / scale)
        share = xp.exp(theirs)
        return scale * scale * (share * (theirs - ours)).sum(axis=-1), (xp.exp(ours) - share) * scale


@dataclass(frozen=True)
class Taught(CrossEntropy):
    """(1 - alpha) times the cross-entropy, plus alpha times ``Distillation`` from the logits ``ctx.teacher``.

    Hinton, Vinyals and Dean, 2015. Where there are no such logits, as in evaluation, it is the cross-entropy alone. A
    row counts in both parts alike: not if it is padding, and by its class weight."""

    temperature: float = 2.0
    alpha: float = 0.5

    @_in_float32
    def forward(self, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        loss, weight, gradient = super().forward(outputs, targets, ctx)
        if ctx.teacher is None:
            return loss, weight, gradient
        distances, slopes = Distillation(self.temperature).of_rows(outputs, _like(outputs, ctx.teacher))
        counts = self._counts(outputs, targets)
        gradient *= 1 - self.alpha
        gradient += (self.alpha * counts)[..., None] * slopes
        learned = float((distances * counts).sum(dtype=np.float64))
        return (1 - self.alpha) * loss + self.alpha * learned, weight, gradient

    def _counts(self, outputs: Array, targets: Array) -> Array:
        """How much each row counts, (...)."""
        xp, of_classes = namespace_of(outputs), self.class_weights or (1.0,) * outputs.shape[-1]
        weights = xp.asarray(of_classes, dtype=outputs.dtype)
        if targets.shape == outputs.shape and targets.dtype.kind == "f":
            return targets.astype(outputs.dtype) @ weights
        labels = targets.reshape(outputs.shape[:-1]).astype(np.int64)
        return xp.where(labels >= 0, weights[xp.maximum(labels, 0)], 0).astype(outputs.dtype)


LOSSES: dict[str, Callable[..., Loss]] = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "mse": MSE,
    "mae": MAE,
    "huber": Huber,
    "distillation": Distillation,
}
