"""Metrics: figures that people read, each computed from plain sums, so exact over any split of the samples.

A metric sees outputs as the loss does: logits, before softmax or sigmoid. Targets below 0 are padding and not
counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, inf, log, prod
from typing import Any, ClassVar, Protocol

import numpy as np

from ddl.arrays import Array, host, namespace_of
from ddl.errors import ConfigError


class Metric(Protocol):
    """A figure computed from sums over samples. Inherit from it to get the default of ``every_step``.

    name: its key, a property or a class variable."""

    @property
    def name(self) -> str: ...

    @property
    def every_step(self) -> int:
        """How many floats it sums in each training step; 0: it is computed in evaluation only."""
        return 0

    def sums(self, outputs: Array, targets: Array, loss: float) -> Any:
        """Sums over one batch, in float64: a float, an array, or any object that can be added to another and to 0.

        ``loss`` is the sum of the loss over the batch. A metric of every step returns its floats."""
        ...

    def value(self, sums: Any, weight: float) -> Any:
        """The figure. ``sums``: added up over any batches; ``weight``: what the mean of the loss divides by."""
        ...


def _choices(outputs: Array, targets: Array, by_label: bool) -> tuple[Array, Array, int]:
    """(chosen class, true class, number of classes), flat and without padding.

    outputs: (rows, ..., classes) with targets (rows, ...); or one logit per target, (rows, ...) or (rows, ..., 1),
    for classes 0 and 1, where a target above 1/2 is class 1; or (rows, ..., classes) with targets of the same shape,
    one-hot or soft: their largest. by_label: outputs and targets of one shape are one logit per target."""
    xp = namespace_of(outputs)
    if outputs.ndim > targets.ndim and outputs.shape[-1] > 1:
        classes, chosen = outputs.shape[-1], xp.argmax(outputs, axis=-1)
    elif _are_rows(outputs, targets) and targets.dtype.kind == "f" and not by_label:
        classes, chosen = outputs.shape[-1], xp.argmax(outputs, axis=-1)
        targets = xp.argmax(targets, axis=-1)
    else:
        classes, chosen = 2, (outputs > 0).astype(np.int64)
        targets = _yes(targets)
    chosen, truth = chosen.reshape(-1), targets.reshape(-1).astype(np.int64)
    counted = truth >= 0
    return (chosen, truth, classes) if bool(counted.all()) else (chosen[counted], truth[counted], classes)


def _are_rows(outputs: Array, targets: Array) -> bool:
    return outputs.shape == targets.shape and outputs.ndim > 1 and outputs.shape[-1] > 1


def _yes(targets: Array) -> Array:
    """1 where a target is above 1/2, -1 where it is padding, else 0."""
    return (targets > 0.5).astype(np.int64) - (targets < 0)


def _matrix(outputs: Array, targets: Array, by_label: bool = False) -> np.ndarray:
    """(classes, classes) float64: how often class i (row) was taken for class j (column)."""
    xp = namespace_of(outputs)
    chosen, truth, classes = _choices(outputs, targets, by_label)
    counts = xp.bincount(truth * classes + chosen, minlength=classes * classes)
    return host(counts).reshape(classes, classes).astype(np.float64)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


@dataclass(frozen=True)
class OfChoices(Metric):
    """A metric that compares chosen classes with true ones.

    by_label: each label of a sample is a separate yes or no, as with binary cross-entropy; otherwise the targets are
    the probabilities of one class."""

    by_label: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Accuracy(OfChoices):
    """The share of targets whose class has the largest output; of several labels per sample, the share of labels."""

    name: ClassVar[str] = "accuracy"
    every_step: ClassVar[int] = 2

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        chosen, truth, _ = _choices(outputs, targets, self.by_label)
        return np.array([float((chosen == truth).sum()), len(truth)])

    def value(self, sums: np.ndarray, weight: float) -> float:
        return _ratio(sums[0], sums[1])


@dataclass(frozen=True)
class TopK(Metric):
    """The share of targets whose class is among the ``k`` largest outputs; a tie counts for the target."""

    k: int = 5

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
        # NaN is not below anything: a NaN score counts as larger, and a NaN score of the true class is a miss.
        larger = (~(scores <= of_truth[:, None])).sum(axis=1)
        right = (larger < self.k) & (of_truth == of_truth)
        return np.array([float(right.sum()), len(truth)])

    def value(self, sums: np.ndarray, weight: float) -> float:
        return _ratio(sums[0], sums[1])


@dataclass(frozen=True)
class ConfusionMatrix(OfChoices):
    """How often class i (row) was taken for class j (column), as a list of rows; several labels count together."""

    name: ClassVar[str] = "confusion"

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        return _matrix(outputs, targets, self.by_label)

    def value(self, sums: np.ndarray, weight: float) -> list[list[int]]:
        return [[int(count) for count in row] for row in sums]


@dataclass(frozen=True)
class _PerClass(OfChoices):
    """What precision, recall and F1 share. average: "macro" (mean over the classes that occur), "weighted" (by how
    often each is the truth), "micro" (over all decisions), or "binary" (class 1 alone)."""

    average: str = "macro"

    @property
    def name(self) -> str:
        """The class's name, followed by the average unless it is macro: several averages fit in one job."""
        kind = type(self).__name__.lower()
        return kind if self.average == "macro" else f"{kind}_{self.average}"

    def __post_init__(self) -> None:
        if self.average not in ("macro", "weighted", "micro", "binary"):
            raise ConfigError(f"average = {self.average!r} is unknown; known are macro, weighted, micro, binary")

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        """(3, classes): right decisions, decisions and truths of each class, or of each label of a sample."""
        if self.by_label and _are_rows(outputs, targets):
            chosen, truth = (host(x).reshape(-1, outputs.shape[-1]) for x in (outputs > 0, _yes(targets)))
            decisions = chosen & (truth >= 0)
            return np.stack([(part > 0).sum(axis=0) for part in (decisions & (truth > 0), decisions, truth)]) * 1.0
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

    def figure(self, right: float, decided: float, true: float) -> float:
        return _ratio(right, decided)


@dataclass(frozen=True)
class Recall(_PerClass):
    """Of the samples of a class, the share that is found."""

    def figure(self, right: float, decided: float, true: float) -> float:
        return _ratio(right, true)


@dataclass(frozen=True)
class F1(_PerClass):
    """The harmonic mean of precision and recall."""

    def figure(self, right: float, decided: float, true: float) -> float:
        return _ratio(2 * right, decided + true)


def _errors(outputs: Array, targets: Array) -> np.ndarray:
    """(rows, values) float64: output minus target, whose shapes may differ by an axis of length 1."""
    shape = len(targets), prod(targets.shape[1:])
    return host(outputs).reshape(shape).astype(np.float64) - host(targets).reshape(shape)


@dataclass(frozen=True)
class MeanAbsoluteError(Metric):
    """The mean absolute error."""

    name: ClassVar[str] = "mae"
    every_step: ClassVar[int] = 2

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        errors = _errors(outputs, targets)
        return np.array([np.abs(errors).sum(), errors.size])

    def value(self, sums: np.ndarray, weight: float) -> float:
        return _ratio(sums[0], sums[1])


@dataclass(frozen=True)
class RMSE(Metric):
    """The root of the mean squared error."""

    name: ClassVar[str] = "rmse"
    every_step: ClassVar[int] = 2

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        errors = _errors(outputs, targets)
        return np.array([np.square(errors).sum(), errors.size])

    def value(self, sums: np.ndarray, weight: float) -> float:
        return float(np.sqrt(_ratio(sums[0], sums[1])))


@dataclass(frozen=True)
class Moments:
    """Counts, means and sums of squared deviations of values (values,), and the sums of squared errors.

    ``a + b`` are those of both sets of samples (Chan, Golub and LeVeque, 1983). Sums of the values and of their squares
    would cancel where the mean is large."""

    count: int
    mean: np.ndarray
    deviations: np.ndarray
    errors: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        count, apart = self.count + other.count, other.mean - self.mean
        share = other.count / max(count, 1)
        between = apart * apart * self.count * share
        deviations = self.deviations + other.deviations + between
        return Moments(count, self.mean + apart * share, deviations, self.errors + other.errors)

    def __radd__(self, zero: int) -> Moments:  # sums start at 0
        return self


@dataclass(frozen=True)
class R2(Metric):
    """The share of the targets' variance that the outputs explain, averaged over a target's values.

    A value that does not vary counts 1 where it is predicted exactly, else 0."""

    name: ClassVar[str] = "r2"

    def sums(self, outputs: Array, targets: Array, loss: float) -> Moments:
        y = host(targets).reshape(len(targets), prod(targets.shape[1:])).astype(np.float64)
        mean = y.mean(axis=0) if len(y) else np.zeros(y.shape[1])
        return Moments(len(y), mean, np.square(y - mean).sum(axis=0), np.square(_errors(outputs, targets)).sum(axis=0))

    def value(self, sums: Moments, weight: float) -> float:
        # Rounding of the mean leaves deviations of equal values.
        varies = sums.deviations > sums.count * np.square(1e-15 * sums.mean)
        explained = 1 - sums.errors / np.where(varies, sums.deviations, 1.0)
        return float(np.where(varies, explained, (sums.errors == 0).astype(np.float64)).mean())


def _surprise(outputs: Array, targets: Array) -> np.ndarray:
    """Minus the log of the share that softmax gives the true class, summed over the targets, and their number."""
    scores = host(outputs).reshape(-1, outputs.shape[-1]).astype(np.float64)
    truth = host(targets).reshape(-1).astype(np.int64)
    scores, truth = scores[truth >= 0], truth[truth >= 0]
    largest = scores.max(axis=1, initial=-inf)
    total = largest + np.log(np.exp(scores - largest[:, None]).sum(axis=1))
    return np.array([(total - scores[np.arange(len(truth)), truth]).sum(), len(truth)])


@dataclass(frozen=True)
class _MeanSurprise(Metric):
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


@dataclass(frozen=True)
class OfFunction(Metric):
    """A plain function (outputs, targets) of one batch, both NumPy arrays, as a metric: it returns one value per
    sample, (rows,), or their mean. The figure is the mean over all samples."""

    function: Callable[[Any, Any], Any]

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def sums(self, outputs: Array, targets: Array, loss: float) -> np.ndarray:
        rows = len(targets)
        value = np.asarray(self.function(host(outputs), host(targets)))
        if value.shape not in ((), (rows,)) or value.dtype.kind not in "biuf":
            raise ConfigError(
                f"metric {self.name!r} must return a number, or one for each of {rows} samples, not {value.dtype} of "
                f"shape {value.shape}"
            )
        return np.array([float(value.sum()) if value.ndim else float(value) * rows, rows])

    def value(self, sums: np.ndarray, weight: float) -> float:
        return _ratio(sums[0], sums[1])


METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "top3": lambda: TopK(3),
    "top5": TopK,
    "confusion": ConfusionMatrix,
    "precision": Precision,
    "recall": Recall,
    "f1": F1,
    "mae": MeanAbsoluteError,
    "rmse": RMSE,
    "r2": R2,
    "perplexity": Perplexity,
    "bits_per_byte": BitsPerByte,
}
