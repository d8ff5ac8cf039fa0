"""The argument of a builder of the zoo (Problem) and its result (Blueprint).

The builders are in zoo.py, sequence.py, transformer.py and adversarial.py; build.py chooses losses and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np

from ddl.errors import ConfigError
from ddl.nn.layer import Layer, Shape


class FieldLike(Protocol):
    """One named part of a sample, as a data source describes it.

    shape: without the batch axis. size: whole numbers lie in 0 .. size-1 (classes, a vocabulary), else None."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def size(self) -> int | None: ...


def default_loss(target: FieldLike) -> str:
    """The loss that suits targets: cross-entropy for whole numbers, MSE for values."""
    return "cross_entropy" if target.dtype.kind in "iub" else "mse"


def suited(fields: Mapping[str, FieldLike]) -> str:
    """The model of the zoo that takes samples with these fields: what the name "auto" means."""
    x, y = fields["x"], fields.get("y")
    if x.dtype.kind in "iu" and len(x.shape) == 1:
        return "text" if y is None or y.shape == () else "transformer"
    return {1: "mlp", 2: "cnn", 3: "cnn"}.get(len(x.shape), "linear")


@dataclass(frozen=True)
class Problem:
    """The data as a builder sees them.

    shape: of one sample's "x". vocabulary: number of tokens, None where "x" holds measured values. fields: all fields
    of the source. loss: as requested, None if the choice is open. classes: their number, if the job sets it."""

    shape: Shape
    vocabulary: int | None
    fields: Mapping[str, FieldLike]
    loss: Any = None
    classes: int | None = None

    @property
    def embedded(self) -> tuple[int, int] | None:
        """(number of categories, columns of them) that the model must embed; None if there are none."""
        field = self.fields.get("categories")
        return None if field is None or not field.size else (field.size, field.shape[0])

    @cached_property
    def outputs(self) -> Shape | None:
        """The shape of one sample's output that the loss compares with the target: (classes,), or a target's own.

        None if the data has no target. Raises ConfigError if targets and loss do not go together."""
        y = self.fields.get("y")
        if y is None:
            return None
        loss = self.loss or default_loss(y)
        is_whole, classes = y.dtype.kind in "iub", self.classes or y.size
        if loss == "cross_entropy":
            if is_whole and not classes:
                raise ConfigError(f"loss {loss!r} needs the number of classes: set model.options.classes")
            if not is_whole and y.shape in ((), (1,)):
                raise ConfigError(
                    f"loss {loss!r} needs class numbers, or a row of probabilities per sample; targets are {y.dtype} "
                    f"of shape {y.shape} (data.target_kind)"
                )
            if is_whole and classes == 1:
                raise ConfigError(
                    f"loss {loss!r} cannot learn from one class: every target is the same (data.target_kind)"
                )
        elif loss == "binary_cross_entropy":
            if is_whole and (classes or 2) > 2:
                raise ConfigError(f"loss {loss!r} needs targets 0 and 1; these go up to {(classes or 2) - 1}")
            return tuple(y.shape)
        elif loss in ("mse", "mae", "huber", "distillation"):
            return tuple(y.shape)
        # Cross-entropy, or the user's own loss: whole numbers are class numbers.
        return (*y.shape, classes) if is_whole and classes else tuple(y.shape)

    def need_outputs(self, model: str) -> Shape:
        """``outputs``; raises ConfigError if the data has no targets."""
        if self.outputs is None:
            raise ConfigError(
                f"model {model!r} needs targets, and the data has none (data.targets, or for images a folder for "
                "each class); model 'autoencoder' needs none"
            )
        return self.outputs

    def need_rank(self, rank: int, model: str, meaning: str) -> Shape:
        """``shape``; raises ConfigError if it does not have ``rank`` axes."""
        if len(self.shape) != rank:
            raise ConfigError(
                f"model {model!r} needs samples of shape {meaning}; the data has {self.shape}, {self._suitable}"
            )
        return self.shape

    def need_vocabulary(self, model: str) -> int:
        """The size of the vocabulary; raises ConfigError if samples are not rows of tokens."""
        if len(self.shape) != 1 or self.fields["x"].dtype.kind not in "iu":
            x = self.fields["x"]
            raise ConfigError(
                f"model {model!r} needs rows of whole-number tokens; the data has {x.dtype} of shape {self.shape}, "
                f"{self._suitable}"
            )
        if not self.vocabulary:
            raise ConfigError(f"model {model!r} needs the number of tokens: set model.options.vocabulary")
        return self.vocabulary

    @property
    def _suitable(self) -> str:
        """The end of an error: a model that takes these samples."""
        return f"which model {suited(self.fields)!r} takes"

    @property
    def inputs(self) -> int:
        """Number of values in one sample."""
        return prod(self.shape)


@dataclass(frozen=True)
class Blueprint:
    """A network with its loss and metrics; None: chosen from the targets.

    target: the field that the loss compares with; "x" makes an autoencoder."""

    network: Layer
    loss: Any = None
    metrics: Sequence[str] | None = None
    target: str = "y"
