"""The contract of an optimizer, the ranges of hyperparameters, and the precision of float16 parameters' updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from ddl.arrays import Array
from ddl.errors import ConfigError


@runtime_checkable
class Optimizer(Protocol):
    """Updates flat parameters in place, given the gradient of a sum. Inherit from it to get the defaults.

    A dataclass, so that Groups can replace its weight_decay. lr: the learning rate before any schedule.
    slots: names of the flat arrays that it keeps, as long as the parameters and zero at the start; their dtype is
    ``slot_dtype`` of the parameters' one. layerwise: it must see one named parameter at a time, all of it.
    has_own_rate: its learning rate is where ddl cannot read it; ``lr`` multiplies its updates."""

    lr: float
    weight_decay: float = 0.0
    slots: ClassVar[tuple[str, ...]] = ()
    layerwise: ClassVar[bool] = False
    has_own_rate: ClassVar[bool] = False

    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        """One step, in place. All arrays are flat, contiguous and of one length.

        ``grads * scale`` is the mean gradient, clipped (clip.py); ``step`` counts updates from 0."""
        ...


class OwnState:
    """State of any shape that an optimizer keeps. A commit changes it together with the parameters."""

    def named(self) -> tuple[dict[str, np.ndarray], Any]:
        """Its arrays by name, in an order that ranks agree on, and all the rest as JSON has it. Callers only read."""
        raise NotImplementedError

    def load(self, arrays: Mapping[str, np.ndarray], rest: Any) -> None:
        """The inverse of ``named``; copies the arrays. Raises ValueError for what does not fit, changing nothing."""
        raise NotImplementedError


def slot_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of slots for parameters of ``dtype``: at least float32, since squared gradients are 0 in float16."""
    return np.promote_types(dtype, np.float32)


def in_float32(update: Callable[..., None]) -> Callable[..., None]:
    """Run ``update`` of float16 parameters in float32 and round the results once: float16 is only storage."""

    @wraps(update)
    def widened(
        self: Any, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        if params.dtype != np.float16:
            update(self, params, grads, slots, lr, step, scale)
            return
        wide = {name: slot.astype(np.float32, copy=False) for name, slot in slots.items()}
        wide_params = params.astype(np.float32)
        update(self, wide_params, grads.astype(np.float32), wide, lr, step, scale)
        params[...] = wide_params
        for name, slot in slots.items():
            slot[...] = wide[name]

    return widened


_BELOW_ONE = ("beta1", "beta2", "momentum", "decay")
_ABOVE_ZERO = ("lr", "eps", "trust")


class Hyperparameters:
    """Checks the fields of an optimizer's dataclass by their names. Raises ConfigError for a value out of range."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            name, value = field.name, getattr(self, field.name)
            if name in _ABOVE_ZERO and not 0 < value < float("inf"):
                raise ConfigError(f"optim.{name} = {value} must be above zero")
            below = 1 if name in _BELOW_ONE else float("inf")
            if name not in _ABOVE_ZERO and not 0 <= value < below:
                raise ConfigError(f"optim.{name} = {value} must be at least 0 and less than {below}")
