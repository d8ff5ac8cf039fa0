"""What passes between a builder of the zoo and models.build: the problem it is given, the blueprint it returns.

The builders are in the zoo's files; losses and metrics are chosen in build.py."""

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


@dataclass(frozen=True)
class Problem:
    """What a builder is told of the data.

    shape: of one sample's "x". vocabulary: how many tokens "x" may hold, None where it holds measured values.
    fields: all that the source describes. loss: as asked for, None where the choice is open. classes: how many
    there are, where the job says it."""

    shape: Shape
    vocabulary: int | None
    fields: Mapping[str, FieldLike]
    loss: Any = None
    classes: int | None = None

    @cached_property
    def outputs(self) -> Shape | None:
        """The shape of one sample's output that the loss compares with the target: (classes,), or a target's own.

        None where the data has no target. Raises ConfigError where targets and loss do not go together."""
        y = self.fields.get("y")
        if y is None:
            return None
        loss = self.loss or default_loss(y)
        is_whole, classes = y.dtype.kind in "iub", self.classes or y.size
        if loss == "cross_entropy":
            if is_whole and not classes:
                raise ConfigError(f"loss {loss!r} needs to know how many classes there are: set model.options.classes")
            if not is_whole and y.shape in ((), (1,)):
                raise ConfigError(
                    f"loss {loss!r} needs class numbers, or a row of probabilities a sample; targets are {y.dtype} "
                    f"of shape {y.shape} (data.target_kind)"
                )
            if is_whole and classes == 1:
                raise ConfigError(f"loss {loss!r} cannot learn: every target is class 0 (data.target_kind)")
        elif loss == "binary_cross_entropy":
            if is_whole and (classes or 2) > 2:
                raise ConfigError(f"loss {loss!r} needs targets 0 and 1; these go up to {(classes or 2) - 1}")
            return tuple(y.shape)
        elif loss in ("mse", "mae", "huber", "distillation"):
            return tuple(y.shape)
        # Cross-entropy, or a loss of the user's: whole numbers are taken for classes.
        return (*y.shape, classes) if is_whole and classes else tuple(y.shape)

    def need_outputs(self, model: str) -> Shape:
        """``outputs``; raises ConfigError where the data has no target."""
        if self.outputs is None:
            raise ConfigError(f"model {model!r} needs targets, and the data has none (data.targets)")
        return self.outputs

    def need_rank(self, rank: int, model: str, meaning: str) -> Shape:
        """``shape``; raises ConfigError where it has not ``rank`` axes."""
        if len(self.shape) != rank:
            raise ConfigError(f"model {model!r} needs samples of shape {meaning}; the data has {self.shape}")
        return self.shape

    def need_vocabulary(self, model: str) -> int:
        """How many tokens there are; raises ConfigError where samples are not rows of tokens."""
        if len(self.shape) != 1 or self.fields["x"].dtype.kind not in "iu":
            x = self.fields["x"]
            raise ConfigError(
                f"model {model!r} needs rows of whole-number tokens; the data has {x.dtype} of shape {self.shape}"
            )
        if not self.vocabulary:
            raise ConfigError(f"model {model!r} needs to know how many tokens there are: set model.options.vocabulary")
        return self.vocabulary

    @property
    def inputs(self) -> int:
        """Values of one sample."""
        return prod(self.shape)


@dataclass(frozen=True)
class Blueprint:
    """A network and what goes with it; None leaves the choice of loss and metrics to the data's targets.

    target: the field that the loss compares with; "x" makes an autoencoder."""

    network: Layer
    loss: str | None = None
    metrics: Sequence[str] | None = None
    target: str = "y"
