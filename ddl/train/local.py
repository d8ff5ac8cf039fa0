"""The step with ``comm.sync = local``: each rank updates its own copy several times, then all apply the mean change.

The step stays a transaction: the copy and the inner optimizer's slots are thrown away unless it is committed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddl.arrays import Array, FlatBuffer
from ddl.optim import gradient_scale
from ddl.optim.local import Local
from ddl.train.step import WEIGHT, Outcome, Step


class LocalStep(Step):
    """Each micro-batch of the step is an update of the inner optimizer on this rank's copy of the parameters.

    What is summed in place of a gradient is the copy's change times the weight of this rank's samples, so that ranks
    with more samples count for more. With one inner step by SGD and an outer one by SGD of lr 1, the step is that of
    SGD on all ranks' samples. Batch norm takes the statistics of this rank's batch: ranks do not meet in between."""

    meets_in_layers = False

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        assert isinstance(self.optimizer, Local)
        self.inner, self.inner_clip, self.clip_norm = self.optimizer.inner, self.clip_norm, 0.0
        with self.state.device.activate():
            self._copy = FlatBuffer(self.state.layout, xp=self.state.device.xp)
            self._slots: Mapping[str, Array] = {name: self.state.slots[name].copy() for name in self.inner.slots}

    def _compute(self, step: int, epoch: int, step_in_epoch: int, header: np.ndarray) -> None:
        state, local, length, progress = self.state, self.total.local, self.state.layout.length, self.state.progress
        local.flat[...] = 0
        self._copy.flat[...] = state.params.flat
        for name, slot in self._slots.items():
            slot[...] = state.slots[name]
        lr, updates = self.lr(step), (step - progress.skipped) * self.parts
        gradient = self._scratch_buffer()
        for part in range(self.parts if self.shards else 0):
            before = float(header[WEIGHT])
            self._micro_batch(step, epoch, step_in_epoch, part, header, gradient, self._copy)
            weight = float(header[WEIGHT]) - before
            if weight > 0:
                own = gradient.flat[:length]
                squared_norm = self.inner.squared_norm(own) if self.inner_clip else 0.0
                scale, _ = gradient_scale(squared_norm, weight, self.inner_clip)
                with np.errstate(all="ignore"):  # after a sum that is not finite the step is skipped
                    self.inner.update(self._copy.flat, own, self._slots, lr, updates + part, scale)
            local.flat[length:] += gradient.flat[length:]
        local.flat[:length] = (state.params.flat - self._copy.flat) * header[WEIGHT]
        local.views.zero_outside.clear()  # a change may have any rows

    def _commit(self, *arguments: Any) -> Outcome:
        outcome = super()._commit(*arguments)
        if not outcome.skipped and outcome.weight > 0:
            for name, slot in self._slots.items():
                self.state.slots[name][...] = slot
        return outcome
