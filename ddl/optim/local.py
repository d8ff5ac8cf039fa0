"""Local updates: each rank takes several steps without the others, then all ranks apply the mean of their changes.

``Local`` holds both optimizers. The steps between two sums are in ddl/train/local.py."""

from __future__ import annotations

from collections.abc import Mapping

from ddl.arrays import Array
from ddl.errors import ConfigError
from ddl.optim.groups import Groups
from ddl.optim.optimizer import Optimizer

OUTER = "outer_"
"""Begins the names of the outer optimizer's slots."""


class Local(Groups):
    """The outer optimizer in the place of a job's own: its gradient is what the ranks' own steps have changed.

    inner: the job's optimizer, which each rank runs ``inner_steps`` times in each step. outer: an optimizer with its
    own, constant lr. Douillard et al., DiLoCo, 2023: AdamW inside, SGD with Nesterov momentum outside.
    Raises ConfigError for an inner optimizer that keeps state beside its slots."""

    def __init__(self, inner: Groups, outer: Optimizer, inner_steps: int):
        if inner.own is not None:
            raise ConfigError("comm.sync is local, but the optimizer keeps state beside its slots: use one of ddl's")
        super().__init__(inner.layout, outer)
        self.inner, self.inner_steps = inner, inner_steps

    @property
    def lr(self) -> float:
        return self.inner.lr

    @property
    def slots(self) -> tuple[str, ...]:
        return (*(OUTER + slot for slot in super().slots), *self.inner.slots)

    @property
    def own_slots(self) -> tuple[str, ...]:
        return self.inner.slots

    @property
    def is_elementwise(self) -> bool:
        return False  # each rank's own slots cannot lie in a replica that ranks share

    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        outer = {slot: slots[OUTER + slot] for slot in super().slots}
        super().update(params, grads, outer, self.optimizer.lr, step, scale)
