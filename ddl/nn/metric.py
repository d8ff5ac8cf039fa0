"""Metrics: figures that people read, each computed from plain sums, so exact over any split of the samples.

A metric sees outputs as the loss does: logits, before softmax or sigmoid. Targets below 0 are padding and not
counted. The loss itself is losses.py's; summing over ranks is train's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf, log
from typing import Any, ClassVar, Protocol

import numpy as np

from ddl.arrays import Array, host, namespace_of
from ddl.errors import ConfigError


class Metric(Protocol):
    """A figure computed from sums over samples.

    name: its key. every_step: how many floats it sums in each training step, where that is cheap;
    0 where it is for evaluation only, and then its sums may be an array of any shape."""

    @property
    def name(self) -> str: ...

    @property
    def every_step(self) -> int: ...

    def sums(self, outputs: Array, targets: Array, loss: float) -> float | np.ndarray:
        """Sums over one batch, in float64. ``loss`` is the sum of the loss over it."""
        ...

    def value(self, sums: Any, weight: float) -> Any:
        """The figure. ``sums``: added up over any batches; ``weight``: what the mean of the loss divides by."""
        ...


def _choices(outputs: Array, targets: Array) -> tuple[Array, Array, int]:
    """(chosen class, true class, number of classes), flat and without padding.

    outputs: (rows, ..., classes) with targets (rows, ...); or one logit a target, (rows, ...) or (rows, ..., 1),
    for classes 0 and 1; or (rows, ..., classes) with targets of the same shape, one-hot or soft: their largest."""
    xp = namespace_of(outputs)
    if outputs.ndim > targets.ndim and outputs.shape[-1] > 1:
        classes, chosen = outputs.shape[-1], xp.argmax(outputs, axis=-1)
    elif outputs.shape == targets.shape and outputs.ndim > 1 and outputs.shape[-1] > 1 and targets.dtype.kind == "f":
        classes, chosen = outputs.shape[-1], xp.argmax(outputs, axis=-1)
        targets = xp.argmax(targets, axis=-1)
    else:
        classes, chosen = 2, (outputs > 0).astype(np.int64)
    chosen, truth = chosen.reshape(-1), targets.reshape(-1).astype(np.int64)
    counted = truth >= 0
    return (chosen, truth, classes) if bool(counted.all()) else (chosen[counted], truth[counted], classes)


def _matrix(outputs: Array, targets: Array) -> np.ndarray:
    """(classes, classes) float64: how often class i (row) was taken for class j (column)."""
    xp = namespace_of(outputs)
    chosen, truth, classes = _choices(outputs, targets)
    counts = xp.bincount(truth * classes + chosen, minlength=classes * classes)
    return host(counts).reshape(classes, classes).astype(np.float64)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


@dataclass(frozen=True)
class Accuracy:
    """The share of targets whose class has the largest output."""

    name: ClassVar[str] = "accuracy"
    every_step: ClassVar[int] = 2

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        chosen, truth, _ = _choices(outputs, targets)
        return np.array([float((chosen == truth).sum()), len(truth)])

    def value(self, sums: np.ndarray, weight: float) -> float:
        return _ratio(sums[0], sums[1])


@dataclass(frozen=True)
class TopK:
    """The share of targets whose class is among the ``k`` largest outputs; a tie counts for the target."""

    k: int = 5

    every_step: ClassVar[int] = 0

    @property
    def name(self) -> str:
        return f"top{self.k}"

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        xp = namespace_of(outputs)
        if outputs.ndim != targets.ndim + 1:
            raise ConfigError(f"{self.name} needs a score for each class, and targets that are class numbers")
        scores, truth = outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1).astype(np.int64)
        counted = truth >= 0
        scores, truth = scores[counted], truth[counted]
        of_truth = scores[xp.arange(len(truth)), truth]
        larger = (scores > of_truth[:, None]).sum(axis=1)
        return np.array([float((larger < self.k).sum()), len(truth)])

    def value(self, sums: np.ndarray, weight: float) -> float:
        return _ratio(sums[0], sums[1])


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often class i (row) was taken for class j (column), as a list of rows."""

    name: ClassVar[str] = "confusion"
    every_step: ClassVar[int] = 0

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        return _matrix(outputs, targets)

    def value(self, sums: np.ndarray, weight: float) -> list[list[int]]:
        return [[int(count) for count in row] for row in sums]


@dataclass(frozen=True)
class _PerClass:
    """What precision, recall and F1 share. average: "macro" (mean over the classes that occur), "weighted" (by how
    often each is the truth), "micro" (over all decisions), or "binary" (class 1 alone)."""

    average: str = "macro"

    every_step: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.average not in ("macro", "weighted", "micro", "binary"):
            raise ConfigError(f"average = {self.average!r} is unknown; known are macro, weighted, micro, binary")

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        """(3, classes): right decisions, decisions and truths of each class."""
        matrix = _matrix(outputs, targets)
        return np.stack([matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)])

    def figure(self, right: float, decided: float, true: float) -> float:
        raise NotImplementedError

    def value(self, sums: np.ndarray, weight: float) -> float:
        if self.average == "binary":
            return self.figure(*sums[:, 1])
        if self.average == "micro":
            return self.figure(*sums.sum(axis=1))
        occurs = [column for column in sums.T if column[1] or column[2]]
        figures = np.array([self.figure(*column) for column in occurs])
        shares = np.array([column[2] if self.average == "weighted" else 1.0 for column in occurs])
        return _ratio(float(figures @ shares), float(shares.sum()))


@dataclass(frozen=True)
class Precision(_PerClass):
    """Of the decisions for a class, the share that is right."""

    name: ClassVar[str] = "precision"

    def figure(self, right: float, decided: float, true: float) -> float:
        return _ratio(right, decided)


@dataclass(frozen=True)
class Recall(_PerClass):
    """Of the samples of a class, the share that is found."""

    name: ClassVar[str] = "recall"

    def figure(self, right: float, decided: float, true: float) -> float:
        return _ratio(right, true)


@dataclass(frozen=True)
class F1(_PerClass):
    """The harmonic mean of precision and recall."""

    name: ClassVar[str] = "f1"

    def figure(self, right: float, decided: float, true: float) -> float:
        return _ratio(2 * right, decided + true)


def _errors(outputs: Array, targets: Array) -> np.ndarray:
    """(rows, values) float64: output minus target, whose shapes may differ by an axis of length 1."""
    rows = len(targets)
    return host(outputs).reshape(rows, -1).astype(np.float64) - host(targets).reshape(rows, -1)


@dataclass(frozen=True)
class MAE:
    """The mean absolute error."""

    name: ClassVar[str] = "mae"
    every_step: ClassVar[int] = 2

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        errors = _errors(outputs, targets)
        return np.array([np.abs(errors).sum(), errors.size])

    def value(self, sums: np.ndarray, weight: float) -> float:
        return _ratio(sums[0], sums[1])


@dataclass(frozen=True)
class RMSE:
    """The root of the mean squared error."""

    name: ClassVar[str] = "rmse"
    every_step: ClassVar[int] = 2

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        errors = _errors(outputs, targets)
        return np.array([np.square(errors).sum(), errors.size])

    def value(self, sums: np.ndarray, weight: float) -> float:
        return float(np.sqrt(_ratio(sums[0], sums[1])))


@dataclass(frozen=True)
class R2:
    """The share of the targets' variance that the outputs explain, averaged over a target's values.

    A value that does not vary counts 1 where it is met exactly, else 0."""

    name: ClassVar[str] = "r2"
    every_step: ClassVar[int] = 0

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        """(4, values): rows, sum of the target, of its square, of the squared error."""
        y = host(targets).reshape(len(targets), -1).astype(np.float64)
        squares = np.square(_errors(outputs, targets)).sum(axis=0)
        return np.stack([np.full(y.shape[1], len(y), np.float64), y.sum(axis=0), np.square(y).sum(axis=0), squares])

    def value(self, sums: np.ndarray, weight: float) -> float:
        rows, total, square, error = sums
        spread = square - total * total / np.maximum(rows, 1)
        # What rounding leaves of the difference of two large equal numbers is not a spread.
        varies = spread > 1e-12 * np.maximum(square, 1e-300)
        explained = 1 - error / np.where(varies, spread, 1.0)
        return float(np.where(varies, explained, (error == 0).astype(np.float64)).mean())


def _surprise(outputs: Array, targets: Array) -> np.ndarray:
    """Minus the log of the share that softmax gives the true class, summed over the targets, and their number."""
    scores = host(outputs).reshape(-1, outputs.shape[-1]).astype(np.float64)
    truth = host(targets).reshape(-1).astype(np.int64)
    scores, truth = scores[truth >= 0], truth[truth >= 0]
    largest = scores.max(axis=1, initial=-inf)
    total = largest + np.log(np.exp(scores - largest[:, None]).sum(axis=1))
    return np.array([(total - scores[np.arange(len(truth)), truth]).sum(), len(truth)])


@dataclass(frozen=True)
class _MeanSurprise:
    """What perplexity and bits per byte share: the mean cross-entropy with the true classes, in nats.

    That is the mean of the loss where the loss is a plain cross-entropy. of_outputs: computed from the outputs
    instead, where the loss smooths its targets or weighs classes."""

    of_outputs: bool = False

    @property
    def every_step(self) -> int:
        return 2 if self.of_outputs else 1

    def sums(self, outputs: Array, targets: Array, loss: float) -> float | np.ndarray:
        return _surprise(outputs, targets) if self.of_outputs else float(loss)

    def mean(self, sums: Any, weight: float) -> float:
        return _ratio(sums[0], sums[1]) if self.of_outputs else float(np.sum(sums)) / weight


@dataclass(frozen=True)
class Perplexity(_MeanSurprise):
    """exp of the mean cross-entropy: of how many equally likely tokens it is the worth."""

    name: ClassVar[str] = "perplexity"

    def value(self, sums: Any, weight: float) -> float:
        mean = self.mean(sums, weight)
        return exp(mean) if mean < 700 else inf


@dataclass(frozen=True)
class BitsPerByte(_MeanSurprise):
    """The mean cross-entropy in bits, for tokens that are bytes: what a compressor built on the model would write."""

    name: ClassVar[str] = "bits_per_byte"

    def value(self, sums: Any, weight: float) -> float:
        return self.mean(sums, weight) / log(2)


METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "top3": lambda: TopK(3),
    "top5": TopK,
    "confusion": ConfusionMatrix,
    "precision": Precision,
    "recall": Recall,
    "f1": F1,
    "mae": MAE,
    "rmse": RMSE,
    "r2": R2,
    "perplexity": Perplexity,
    "bits_per_byte": BitsPerByte,
}
