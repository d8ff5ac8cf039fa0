"""What a model's outputs mean to a person: classes and values by name, probabilities, the text of tokens.

predictions.py writes them to files; the names come from what a checkpoint records about the training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ddl.data import Known
from ddl.errors import ConfigError
from ddl.models import Model
from ddl.models.model import OutputKind
from ddl.run.predictions import Column, ColumnGroup

SURE = 0.5  # the probability from which a label applies


@dataclass(frozen=True)
class Meaning:
    """kind: of the model's "output". names: of the classes or labels, or of the values of a sample; () if they have
    none. is_multilabel: several labels may apply to a sample. symbols: turns tokens into text, if they are a text's.
    is_copy: the output reproduces the input."""

    kind: OutputKind
    names: tuple[str, ...] = ()
    is_multilabel: bool = False
    symbols: Any = None
    is_copy: bool = False

    @classmethod
    def of(cls, model: Model, known: Known) -> Meaning:
        """The meaning of the outputs of ``model``, trained on data as ``known`` describes them."""
        target, y = known.target, known.fields.get("y")
        kind, is_multilabel = model.output_kind, target is not None and target.kind == "multilabel"
        names = tuple(known.names)
        if kind == "values" or is_multilabel:
            names = known.columns("features" if model.reconstructs else "targets")
        elif not names and target is not None:
            names = tuple(label if isinstance(label, str) else f"{label:g}" for label in target.labels)
        is_class = y is not None and y.dtype.kind in "iu" and y.shape == ()
        if kind == "binary_logits" and not names and is_class:
            names = ("0", "1")
        return cls(kind, names, is_multilabel, known.symbols, model.reconstructs)

    @property
    def has_classes(self) -> bool:
        return self.kind == "logits" or (self.kind == "binary_logits" and not self.is_multilabel and bool(self.names))

    def classes(self, count: int) -> tuple[str, ...]:
        """The names of ``count`` classes or labels; their numbers if they have no names."""
        return self.names if len(self.names) == count else tuple(map(str, range(count)))

    def probabilities(self, output: np.ndarray) -> np.ndarray:
        """(..., classes), from the model's output; (rows, labels) where several labels may apply to a sample.

        Raises ConfigError for values, which have none."""
        wide = output.astype(np.float64)
        if self.kind == "logits":
            wide = np.exp(wide - wide.max(axis=-1, keepdims=True))
            return (wide / wide.sum(axis=-1, keepdims=True)).astype(output.dtype)
        if self.kind == "values":
            raise ConfigError("this model predicts values, which have no probabilities")
        yes = 0.5 * (1 + np.tanh(0.5 * wide))
        if not self.has_classes:
            return yes.astype(output.dtype)
        yes = yes.reshape(len(yes))
        return np.stack([1 - yes, yes], axis=1).astype(output.dtype)

    def numbers(self, output: np.ndarray) -> np.ndarray:
        """The number of the predicted class, (rows, ...). Metrics decide ties alike."""
        if self.kind == "logits":
            found: np.ndarray = output.argmax(axis=-1)
            return found
        return (output.reshape(len(output)) > 0).astype(np.int64)

    def named(self, numbers: np.ndarray, count: int) -> np.ndarray:
        """Class numbers as names; as whole numbers where these are the names. Padding, below 0, has none."""
        names = self.classes(count)
        are_numbers = all(name.isdecimal() and str(int(name)) == name for name in names)
        table = np.array([int(name) for name in names]) if are_numbers else np.array([*names, ""])
        return table[numbers] if not are_numbers else np.where(numbers < 0, numbers, table[numbers])

    def columns(self, output: np.ndarray, raw: bool = False) -> dict[str, Column | ColumnGroup]:
        """The answer for each row of ``output``. raw: the numbers that the model computes, such as logits."""
        count = output.shape[-1] if output.ndim > 1 else 1
        if raw or self.kind == "values":
            name = "output" if raw or self.is_copy else "prediction"
            if output.ndim == 1 or (output.ndim == 2 and count == 1):
                return {name: output.reshape(len(output))}
            is_row = output.ndim == 2 and (self.names or self.kind != "values" or count <= MOST_COLUMNS)
            return {name: ColumnGroup(self.classes(count), output) if is_row else output}
        shares = self.probabilities(output)
        if self.is_multilabel:
            shares = shares.reshape(len(shares), -1)
            names = np.array(self.classes(shares.shape[1]))
            chosen = [" ".join(names[row]) for row in shares >= SURE]
            return {"labels": np.array(chosen), "probability": ColumnGroup(tuple(names), shares)}
        if not self.has_classes:
            return {"probability": shares.reshape(len(shares))}
        numbers = self.numbers(output)
        label = self.named(numbers, shares.shape[-1])
        if label.ndim == 1:
            return {"label": label, "probability": ColumnGroup(self.classes(shares.shape[-1]), shares)}
        # A class at each position, as of a language model: all probabilities would be a file of hundreds of megabytes.
        best = np.take_along_axis(shares, numbers[..., None], axis=-1)[..., 0]
        text = {} if self.symbols is None else {"text": np.array([self.symbols.decode(row) for row in numbers])}
        return {**text, "label": label, "probability": best}

    def truths(self, y: np.ndarray, count: int) -> dict[str, Column | ColumnGroup]:
        """Targets as ``columns`` shows predictions. count: of classes."""
        if self.has_classes and y.dtype.kind in "iu":
            text = {}
            if self.symbols is not None and y.ndim > 1:
                text = {"target_text": np.array([self.symbols.decode(row[row >= 0]) for row in y])}
            return {**text, "target": self.named(y, count)}
        if y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1):
            return {"target": y.reshape(len(y))}
        return {"target": ColumnGroup(self.classes(y.shape[1]), y) if y.ndim == 2 else y}


MOST_COLUMNS = 1000  # of values without names; more are one cell
