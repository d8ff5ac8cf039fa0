"""What passes between a builder of the zoo and models.build: the problem it is given, the blueprint it returns.

The builders are in the zoo's files; losses and metrics are chosen in build.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

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


@dataclass(frozen=True)
class Problem:
    """What a builder is told of the data.

    shape: of one sample's "x". vocabulary: how many tokens "x" may hold, None where it holds measured values.
    outputs: the shape of one sample's output that the loss compares with the target: (classes,), or a target's
    own shape; None where the data has no target. fields: all that the source describes."""

    shape: Shape
    vocabulary: int | None
    outputs: Shape | None
    fields: Mapping[str, FieldLike]

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
