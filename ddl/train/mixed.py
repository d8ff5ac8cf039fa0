"""The step in mixed precision: forward and backward in float16; parameters, sums and updates in float32.

float16 ends at 65,504 and has few digits below 6e-5. Therefore gradients are those of the loss times a scale, which is
divided out before they are summed. A sum that overflowed is not finite on any rank: all skip the step and halve the
scale, which doubles again after many good steps (Micikevicius and others, 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ddl.arrays import FlatBuffer, Layout, Views
from ddl.train.step import Outcome, Step

GROW_AFTER, MOST = 200, 2.0**24  # steps without an overflow after which the scale doubles; the largest scale


class MixedStep(Step):
    """A Step whose model sees parameters, samples and gradients in float16."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        state = self.state
        with state.device.activate():
            self._params = FlatBuffer(Layout.of(state.layout.shapes, "float16"), xp=state.device.xp)
            self._half = FlatBuffer(Layout.of(self.layout.shapes, "float16"), xp=state.device.xp)
        self._cast_at = -1  # the step whose parameters ``_params`` holds
        self._views: dict[int, Views] = {}
        self._is_scaled = True

    def _views_beside(self, grads: Views) -> Views:
        """Gradients of parameters in float16, and the sums of averages as they are in ``grads``."""
        views = self._views.get(id(grads))
        if views is None:
            arrays = {name: grads[name] if name in self._averages else view for name, view in self._half.views.items()}
            views = self._views[id(grads)] = Views(arrays, self._half.views.zero_outside)
        return views

    def _gradients(self, batch, segments, shards, step: int, part: int, grads: Views, params=None, announce=None):
        if step != self._cast_at:
            for name, view in self.state.params.views.items():
                self._params[name][...] = view
            self._cast_at = step
        half = self._views_beside(grads)
        scale = self.context.loss_scale = self.state.progress.loss_scale if self._is_scaled else 1.0

        def widened(names: Sequence[str]) -> None:
            for name in names:
                if name not in self._averages:
                    grads[name][...] = half[name]
                    grads[name][...] *= np.float32(1 / scale)
            self._copy_rows(half, grads)
            if announce is not None:
                announce(names)

        # Targets may be far beyond what float16 holds, before they are standardised.
        inputs = {name for name, value in batch.items() if value.dtype.kind == "f" and name != "y"}
        batch = {name: value.astype(np.float16) if name in inputs else value for name, value in batch.items()}
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow is not finite, and skips the step
            result = super()._gradients(batch, segments, shards, step, part, half, self._params, widened)
        self._copy_rows(half, grads)
        return result

    def _copy_rows(self, half: Views, grads: Views) -> None:
        grads.zero_outside.clear()
        grads.zero_outside.update(half.zero_outside)

    def _find_bad_shards(self, step: int, epoch: int, step_in_epoch: int) -> dict[int, str]:
        """Those whose gradients are not finite even without the scale; none if only scaled ones overflow."""
        if self.synchronised and self.state.progress.loss_scale > 1:
            return {}  # shards cannot be computed again alone: only at scale 1 it is certain that the data are to blame
        self._is_scaled = False
        try:
            return super()._find_bad_shards(step, epoch, step_in_epoch)
        finally:
            self._is_scaled = True

    def _commit(self, *arguments: Any) -> Outcome:
        outcome = super()._commit(*arguments)
        progress = self.state.progress
        if outcome.skipped:
            if progress.loss_scale > 1 and not outcome.bad_shards:
                progress.skipped_in_row = 0  # the next step has another scale
                why = f"gradients times {progress.loss_scale:g} overflow in float16, the next scale is half of it"
                outcome = replace(outcome, bad_value=why)
            progress.loss_scale, progress.scaled_steps = max(progress.loss_scale / 2, 1.0), 0
        elif progress.scaled_steps + 1 >= GROW_AFTER:
            progress.loss_scale, progress.scaled_steps = min(progress.loss_scale * 2, MOST), 0
        else:
            progress.scaled_steps += 1
        return outcome
