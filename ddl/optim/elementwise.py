"""The base of optimizers whose rule treats each element alike: one pass over flat memory.

The rules are in kernels/optim.py; optimizers that need the norm of a layer are in layerwise.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ddl.arrays import Array
from ddl.kernels import optim
from ddl.optim.optimizer import Hyperparameters, Optimizer, in_float32


class Elementwise(Hyperparameters, Optimizer):
    """An optimizer that is one rule of kernels/optim.py and its constants at each step."""

    rule: ClassVar[Any]

    def constants(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        """What ``rule`` takes after the arrays, in its order. step: updates so far."""
        raise NotImplementedError

    @in_float32
    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        state = [params, *(slots[name] for name in self.slots)]
        optim.apply(self.rule, state, grads, self.constants(lr, step, scale))

    def update_into(
        self,
        new: Sequence[np.ndarray],
        old: Sequence[np.ndarray],
        grads: np.ndarray,
        lr: float,
        step: int,
        scale: float,
    ) -> None:
        """The same step on the host, from ``old`` (parameters, then slots in their order) to ``new``, which must not
        overlap; ``old`` is unchanged."""
        if grads.dtype != np.float16:
            optim.apply_into(self.rule, new, old, grads, self.constants(lr, step, scale))
            return
        for source, target in zip(old, new, strict=True):
            target[...] = source
        self.update(new[0], grads, dict(zip(self.slots, new[1:], strict=True)), lr, step, scale)


def is_elementwise(optimizer: object) -> bool:
    """Whether any part of the parameters can be updated alone: a subclass that overrides ``update`` may do more."""
    if not isinstance(optimizer, Elementwise) or optimizer.layerwise:
        return False
    kind = type(optimizer)
    return kind.update is Elementwise.update and kind.update_into is Elementwise.update_into
