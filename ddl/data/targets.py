"""The kind of a target: class, value, probabilities or several labels. Decided once, from the training part.

Validation files, test files and files of new samples are then read the same way. Text labels are numbered by the
readers in data/formats; which network and loss suit a kind is decided in models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddl.data.memory import Arrays
from ddl.data.source import Field, Source, Wrapper
from ddl.errors import ConfigError, DataError

KINDS = ("auto", "classes", "values", "probabilities", "multilabel")
CROSS_ENTROPY, BINARY = "cross_entropy", "binary_cross_entropy"
OF_VALUES = ("mse", "mae", "huber", "distillation")
MOST_CLASSES = 1000  # whole numbers above both this and the number of samples are refused as class numbers
MOST_BYTES = 256 * 2**20  # larger targets are checked batch by batch, by the loss
SETTING = 'data.target_kind ("classes", "values", "probabilities" or "multilabel")'


@dataclass(frozen=True)
class Target:
    """What "y" is, and how it is delivered. kind: one of KINDS but "auto". reason: why, for the banner.

    labels: the stored number or text of each class; () if the stored number is the class. is_one_hot: stored as rows
    with a single 1. spread: of values, the mean squared distance from their means; 0 if all targets are the same."""

    kind: str
    reason: str
    field: Field
    labels: tuple[float, ...] | tuple[str, ...] = ()
    is_one_hot: bool = False
    spread: float | None = None

    def __str__(self) -> str:
        return f"y: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        values = {"kind": self.kind, "reason": self.reason, "labels": list(self.labels), "one_hot": self.is_one_hot}
        return values if self.spread is None else {**values, "spread": self.spread}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], field: Field) -> Target:
        labels, spread = tuple(values["labels"]), values.get("spread")
        return cls(values["kind"], values["reason"], field, labels, values["one_hot"], spread)

    @property
    def loss(self) -> str | None:
        """The loss for this kind, if the field alone does not determine it."""
        if self.kind == "multilabel":
            return BINARY
        if self.kind == "probabilities":
            return BINARY if math.prod(self.field.shape) == 1 else CROSS_ENTROPY
        return None

    def apply(self, source: Source) -> Source:
        """``source`` with "y" delivered as this kind. Raises DataError for a target that this kind does not have."""
        field = source.fields.get("y")
        if field is None or not self._changes(source, field):
            return source
        if isinstance(source, Arrays):
            y = self.convert(source.arrays["y"])
            return Arrays(**{**source.arrays, "y": y}, names=source.names or self._names(), classes=self.field.size)
        return _Retargeted(source, self)

    def _changes(self, source: Source, field: Field) -> bool:
        if source.names and self.kind == "classes":
            return False  # the reader has numbered the classes
        is_same = field.shape == self.field.shape and (field.dtype.kind == "f") == (self.field.dtype.kind == "f")
        return bool(self.labels) or not is_same or field.size != self.field.size

    def _names(self) -> tuple[str, ...]:
        return tuple(map(_text, self.labels))

    def convert(self, y: np.ndarray) -> np.ndarray:
        """Stored targets (n, ...) as delivered, (n, *field.shape). Raises DataError naming the first that cannot be."""
        if self.is_one_hot and y.ndim == 2:
            wrong = (y.max(axis=1) != 1) | (np.count_nonzero(y, axis=1) != 1)
            if wrong.any():
                raise DataError(f"the targets are rows with a single 1, but one is {y[wrong][0].tolist()}")
            y = y.argmax(axis=1)
        y = y.reshape(len(y), *self.field.shape)
        is_text = bool(self.labels) and isinstance(self.labels[0], str)
        if len(y) and is_text != (y.dtype.kind == "U"):
            own, others = ("a number", "texts") if is_text else ("a text", "numbers")
            raise DataError(f"target {_text(y.flat[0])} is {own}, those of the training part are {others}")
        if self.kind != "classes" or not len(y):
            return y.astype(self.field.dtype, copy=False)
        if self.labels:
            known = np.asarray(self.labels)
            numbers = np.minimum(np.searchsorted(known, y), len(known) - 1)
            is_wrong = np.asarray(known[numbers] != y)
        else:
            numbers, size = y.astype(np.int64), self.field.size
            is_wrong = (numbers != y) | (numbers >= size if size is not None else False)
        if is_wrong.any():
            known_text = _listed(self.labels) if self.labels else f"0 to {(self.field.size or 1) - 1}"
            wrong = _text(y[is_wrong].flat[0])
            raise DataError(f"target {wrong} is none of the training part's classes, {known_text}")
        return numbers


class _Retargeted(Wrapper):
    """A source whose "y" is converted as it is gathered."""

    def __init__(self, source: Source, target: Target):
        super().__init__(source)
        self._target = target
        stored = _stored(source)
        if stored is not None:
            target.convert(stored)  # a wrong target is reported when the file is opened

    def exact(self) -> Source:
        return _Retargeted(self.source.exact(), self._target)

    @property
    def names(self):  # type: ignore[override]
        return self.source.names or self._target._names()

    @property
    def fields(self) -> Mapping[str, Field]:
        return {**self.source.fields, "y": self._target.field}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = self.source.gather(indices)
        return {**batch, "y": self._target.convert(batch["y"])}

    def labels(self) -> np.ndarray:
        stored = _stored(self.source)
        return Source.labels(self) if stored is None else self._target.convert(stored)


def decide(
    source: Source, loss: str = "auto", wanted: str = "auto", classes: int | None = None, measured: bool = False
) -> Target | None:
    """The kind of the targets of ``source``, the training part; None if it has none.

    loss: its name, "auto", or anything else for the user's own loss. wanted: the setting data.target_kind.
    classes: how many there are, if the job says so; -1 is then padding. measured: whole numbers in x are no tokens.
    Without either, whole numbers are classes and floating-point numbers are values.
    Raises ConfigError if the targets are outside the loss's domain, and names the setting that decides otherwise."""
    if wanted not in KINDS:
        raise ConfigError(f"data.target_kind = {wanted!r} must be one of {', '.join(KINDS)}")
    field = source.fields.get("y")
    if field is None:
        return None
    if wanted == "values" and loss in (CROSS_ENTROPY, BINARY):
        raise ConfigError(f"data.target_kind = 'values' does not go with loss {loss!r}: set model.loss = 'mse'")
    if wanted in ("classes", "multilabel") and loss in OF_VALUES:
        raise ConfigError(f"data.target_kind = {wanted!r} does not go with loss {loss!r}")
    stored = None if source.names or field.dtype.kind == "U" else _stored(source)
    if stored is not None and stored.dtype.kind == "f" and not np.isfinite(stored).all():
        bad = int(np.argmin(np.isfinite(stored.reshape(len(stored), -1)).all(axis=1)))
        raise DataError(f"the target of sample {bad} is not finite")
    if source.names:
        return _named(source, field, loss, wanted)
    if field.dtype.kind == "U":
        return _texts(source, field, loss, wanted)
    if field.size is not None and field.shape not in ((), (1,)):
        return Target("classes", f"a class number at each of {field.shape} positions", field)
    if wanted == "values" or (wanted == "auto" and loss in OF_VALUES):
        why = "data.target_kind" if wanted == "values" else f"loss {loss!r}"
        return _values(field, stored, f"values, because of {why}")
    if wanted == "auto" and field.dtype.kind == "f" and loss not in (CROSS_ENTROPY, BINARY):
        return _values(field, stored, "values, from floating-point numbers" + _whole_hint(stored))
    if stored is None and field.shape in ((), (1,)) and field.dtype.kind == "f" and loss != BINARY:
        stored = source.labels()
    if stored is None:  # the user's own source: trust its declaration; the loss checks each batch
        kind = "values" if field.dtype.kind == "f" else "classes"
        return Target(kind, f"{kind}, as the source declares", field)
    if math.prod(stored.shape[1:]) == 1:
        return _one_number(stored.reshape(-1), loss, wanted, classes, field.size or 0)
    x = source.fields["x"]
    is_tokens = not measured and x.dtype.kind in "iu" and (x.size is not None or x.dtype.itemsize > 1)
    return _row(stored, field, loss, wanted, is_tokens)


def _named(source: Source, field: Field, loss: str, wanted: str) -> Target:
    names = list(source.names)
    _check_names(names, len(source), loss, wanted)
    numbers = [_number(name) for name in names]
    labels = () if None in numbers or numbers == list(range(len(names))) else tuple(numbers)
    what = "texts" if None in numbers else "whole numbers"
    return Target("classes", f"{_count(len(names))}, from the {what} {_listed(names)}", field, labels)  # type: ignore[arg-type]


def _texts(source: Source, field: Field, loss: str, wanted: str) -> Target:
    """Stored texts, each different one a class."""
    if math.prod(field.shape) != 1:
        raise DataError(f"targets are texts of shape {field.shape}, where one text per sample is a class")
    names = np.unique(source.labels()).tolist()
    if len(names) > MOST_CLASSES:
        raise DataError(f"the target has over {MOST_CLASSES} classes: {len(names)} different texts")
    if "" in names:
        raise DataError("some samples have no target: it is the empty text")
    _check_names(names, len(source), loss, wanted)
    reason = f"{_count(len(names))}, from the texts {_listed(names)}"
    return Target("classes", reason, Field((), np.dtype(np.int64), len(names)), tuple(names))


def _check_names(names: Sequence[str], samples: int, loss: str, wanted: str) -> None:
    """Raises DataError for texts that are no classes, ConfigError where classes do not go with the loss or setting."""
    listed = _listed(names)
    if len(names) > max(20, samples / 2) and None in map(_number, names):
        raise DataError(f"y holds {len(names)} different texts in {samples} samples, {listed}: these are no classes")
    if loss in OF_VALUES or wanted not in ("auto", "classes"):
        raise ConfigError(
            f"loss {loss!r} needs numbers; y holds {len(names)} classes, {listed}: set model.loss = 'auto'"
        )
    if loss == BINARY and len(names) != 2:
        raise ConfigError(f"loss {loss!r} needs two classes; y holds {len(names)}, {listed}: set model.loss = 'auto'")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _values(field: Field, stored: np.ndarray | None, reason: str) -> Target:
    dtype = field.dtype if field.dtype.kind == "f" else np.dtype(np.float64)
    spread = None if stored is None else float(stored.astype(np.float64).var(axis=0).mean())
    return Target("values", reason, Field(field.shape, dtype), spread=spread)


def _whole_hint(stored: np.ndarray | None) -> str:
    if stored is None or not stored.size or math.prod(stored.shape[1:]) != 1 or not np.isfinite(stored).all():
        return ""
    distinct = np.unique(stored)
    if len(distinct) > 20 or not (distinct == np.floor(distinct)).all():
        return ""
    return f' (all are whole: data.target_kind = "classes" makes them {_count(len(distinct))})'


def _one_number(y: np.ndarray, loss: str, wanted: str, classes: int | None, declared: int) -> Target:
    """One stored number per sample, for a loss that needs classes or probabilities, or whole numbers without a loss."""
    distinct = np.unique(y)
    is_whole = bool((distinct == np.floor(distinct)).all())
    shown, floats = _shown(distinct), Field((1,), y.dtype if y.dtype.kind == "f" else np.dtype(np.float64))
    if wanted == "probabilities" or (wanted == "auto" and loss == BINARY and not is_whole):
        if distinct[0] < 0 or distinct[-1] > 1:
            raise ConfigError(f"probabilities lie in 0 .. 1; y holds {shown}: set model.loss = 'mse', or {SETTING}")
        return Target("probabilities", f"probabilities from {distinct[0]:g} to {distinct[-1]:g}", floats)
    if not is_whole:
        raise ConfigError(
            f"loss {loss!r} needs class numbers or rows of probabilities; y holds {shown}: "
            f"set model.loss = 'mse', or {SETTING}"
        )
    if wanted == "multilabel":
        raise ConfigError(f"data.target_kind = 'multilabel' needs a row of labels per sample; y holds {shown}")
    what = {"f": "whole floats", "b": "truth values"}.get(y.dtype.kind, "whole numbers")
    if loss == BINARY:
        if len(distinct) > 2:
            raise ConfigError(
                f"loss {loss!r} needs two classes; y holds {len(distinct)}, {shown}: set model.loss = 'cross_entropy'"
            )
        is_plain = set(distinct.tolist()) <= {0, 1}
        return _classes(distinct, what, () if is_plain else _labels(distinct), 2)
    if distinct[0] >= 0:
        size = max(declared, 2 if y.dtype.kind == "b" else int(distinct[-1]) + 1)
        if size > max(MOST_CLASSES, len(y)):
            raise DataError(
                f"targets up to {size - 1} would be {size} classes of {len(y)} samples: "
                f"number the classes from 0, or set {SETTING}"
            )
        return _classes(distinct, what, (), size)
    if wanted == "classes" or distinct.tolist() == [-1, 1]:
        return _classes(distinct, what, _labels(distinct), len(distinct))
    if distinct[0] == -1 and classes is not None:
        return Target("classes", f"class numbers {shown}, where -1 is padding", Field((), np.dtype(np.int64), classes))
    raise ConfigError(
        f"y holds {shown}: a number below 0 can be a class, a value or padding; set {SETTING}, "
        "or model.options.classes if -1 is padding"
    )


def _row(y: np.ndarray, field: Field, loss: str, wanted: str, is_tokens: bool) -> Target:
    """Several stored numbers per sample."""
    is_row, floats = y.ndim == 2, Field(field.shape, field.dtype if field.dtype.kind == "f" else np.dtype(np.float64))
    is_binary = bool(((y == 0) | (y == 1)).all())
    is_one_hot = is_row and is_binary and not is_tokens and bool((y.sum(axis=1) == 1).all())
    is_whole = y.dtype.kind != "f"
    are_labels = loss == "auto" and is_row and is_binary and is_whole and not is_tokens and not is_one_hot
    if wanted == "multilabel" or (wanted == "auto" and (loss == BINARY or are_labels)):
        distinct = np.unique(y)
        if distinct[-1] > 1 or distinct.tolist() == [-1, 1]:
            raise ConfigError(
                f"several labels per sample are 0 or 1, or probabilities, and -1 is padding; y holds {_shown(distinct)}"
            )
        return Target("multilabel", f"{math.prod(y.shape[1:])} labels per sample, each 0 to 1", floats)
    if (
        loss == CROSS_ENTROPY
        and wanted == "auto"
        and is_binary
        and is_row
        and is_whole
        and not (is_tokens or is_one_hot)
    ):
        raise ConfigError(
            f"loss {loss!r} needs one class per sample; y holds rows with several labels, or none: "
            "set model.loss = 'binary_cross_entropy'"
        )
    if is_one_hot and (wanted == "classes" or (wanted == "auto" and (loss == CROSS_ENTROPY or is_whole))):
        classes = y.shape[1]
        field = Field((), np.dtype(np.int64), classes)
        return Target("classes", f"{_count(classes)}, from rows with a single 1", field, is_one_hot=True)
    if wanted == "probabilities" or (loss == CROSS_ENTROPY and not is_whole):
        if (y < 0).any() or not np.allclose(y.sum(axis=-1), 1, atol=1e-2):
            example = _shown(y.reshape(-1, y.shape[-1])[0])
            raise ConfigError(
                f"loss {loss!r} needs class numbers or rows of probabilities whose sum is 1; y holds rows such as "
                f"{example}: set model.loss = 'mse' or 'binary_cross_entropy', or {SETTING}"
            )
        return Target("probabilities", f"probabilities of {y.shape[-1]} classes", floats)
    if is_tokens or loss == CROSS_ENTROPY:
        return Target("classes", f"a class number at each of {field.shape} positions", field)
    return Target("values", f"values, {y.shape[1:]} a sample", floats)


def _classes(distinct: np.ndarray, what: str, labels: tuple[float, ...], size: int) -> Target:
    absent = size - len(distinct)
    reason = f"{_count(size)}, from {what} {_shown(distinct)}" + (f" ({absent} of them do not occur)" if absent else "")
    spread = 0.0 if len(distinct) == 1 else None
    return Target("classes", reason, Field((), np.dtype(np.int64), size), labels, spread=spread)


def _count(classes: int) -> str:
    return f"{classes} class{'' if classes == 1 else 'es'}"


def _labels(distinct: np.ndarray) -> tuple[float, ...]:
    return tuple(float(label) for label in distinct)


def _text(label: Any) -> str:
    return str(label) if isinstance(label, str) else f"{label:g}"


def _listed(labels: Sequence[Any]) -> str:
    shown = ", ".join(repr(label) if isinstance(label, str) else _text(label) for label in labels[:5])
    return shown + (", ..." if len(labels) > 5 else "")


def _shown(values: np.ndarray) -> str:
    listed = [f"{float(value):.1f}" if _is_whole_float(value) else f"{value:g}" for value in values[:5]]
    return ", ".join(listed) + (", ..." if len(values) > 5 else "")


def _is_whole_float(value: Any) -> bool:
    return np.asarray(value).dtype.kind == "f" and float(value).is_integer()


def _stored(source: Source) -> np.ndarray | None:
    """All targets as stored, if they are few enough to examine."""
    field = source.fields["y"]
    if math.prod(field.shape) * field.dtype.itemsize * len(source) > MOST_BYTES:
        return None
    return source.targets()
