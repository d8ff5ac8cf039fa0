"""Search for a learning rate: a few steps at rates that rise, and the loss of each (Smith, 2017).

A good rate is somewhat below the one at which the loss falls fastest, and well below where it explodes."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddl.arrays import Device
from ddl.config import override
from ddl.environment import job_size
from ddl.errors import Diverged, UserError
from ddl.fault import session
from ddl.metrics import plots
from ddl.optim import Optimizer, Whole
from ddl.train.state import TrainingState

if TYPE_CHECKING:
    from ddl.run.trainer import Trainer

SMOOTHING = 0.9
SLOPE_OVER = 7  # steps
EXPLODED = 4.0  # times the least loss


@dataclass(frozen=True)
class LearningRates:
    """rates, losses: (steps,), the losses smoothed; the search ends where the loss explodes.

    are_factors: the rates multiply the optimizer's own, which are inside it, as in an optimizer of optax."""

    rates: np.ndarray
    losses: np.ndarray
    are_factors: bool = False

    @property
    def suggestion(self) -> float:
        """The rate at which the loss falls fastest over the logarithm of the rate."""
        if len(self.rates) < 3:
            return float(self.rates[0])
        slope = np.gradient(self.losses, np.log(self.rates))
        width = min(SLOPE_OVER, len(slope))
        steady = np.convolve(slope, np.full(width, 1 / width), "valid")  # a single step may fall steeply by chance
        return float(self.rates[int(np.argmin(steady)) + width // 2])

    def __repr__(self) -> str:
        first, last = self.rates[0], self.rates[-1]
        tried = f"{len(self.rates)} {self._name}s from {first:.2g} to {last:.2g}"
        return f"LearningRates({tried}, suggestion {self.suggestion:.2g})"

    @property
    def _name(self) -> str:
        return "learning rate factor" if self.are_factors else "learning rate"

    def plot(self, path: str | Path = "lr_find.png") -> Path:
        """Draw the losses over the rates, with the suggestion. Raises UserError without matplotlib."""
        if not plots.has_matplotlib():
            raise UserError("a plot needs matplotlib (extra: plot)")
        return plots.learning_rates(self.rates.tolist(), self.losses.tolist(), self.suggestion, Path(path), self._name)


def find(trainer: Trainer, lowest: float, highest: float, steps: int) -> LearningRates:
    """As ``Trainer.lr_find``. Raises UserError for rates or steps that make no search."""
    if not 0 < lowest < highest or steps < 3:
        raise UserError(f"lr_find needs 0 < lowest < highest and 3 steps or more, got {lowest}, {highest}, {steps}")
    rates = np.geomspace(lowest, highest, steps)
    probe: Any = copy.copy(trainer)
    losses: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ddl-lr-") as folder:
        if job_size() > 1:  # a job is the same on all ranks; the leader writes its folder
            folder = session.joined().gather_objects(folder)[0]
        quiet = {
            "run.dir": str(Path(folder, "run")),
            "metrics.console_every_s": 0.0,
            "metrics.plots": False,
            "metrics.tensorboard": False,
            "checkpoint.every_s": 0.0,
            "train.evaluate_every": 0,
            "train.patience": 0,
            "fault.skip_limit": steps + 1,
        }
        probe.job = override(trainer.job, quiet)
        probe._splits = replace(trainer._splits, validation=None, test=None)
        if isinstance(trainer.optimizer, Whole):
            probe.optimizer = trainer.optimizer.unscheduled()
        probe.callbacks = [lambda outcome: losses.append(float(outcome.loss))]
        probe.rates = rates
        probe._runner = None
        shown = trainer._state or TrainingState(
            trainer.model, (), trainer.job.train.dtype, trainer.job.run.seed, Device()
        )
        try:
            with contextlib.suppress(Diverged):  # at the highest rates; the losses before that are what was asked for
                probe.fit(steps=steps)
        finally:
            trainer.model.show(shown.params.views, shown.buffers)  # a module of PyTorch has been trained
        losses = probe.group.gather_objects(losses)[0]  # only the leader's callback was called
    own = isinstance(trainer.optimizer, Optimizer) and trainer.optimizer.has_own_rate
    return replace(_smoothed(rates, np.array(losses)), are_factors=own)


def _smoothed(rates: np.ndarray, losses: np.ndarray) -> LearningRates:
    """Means that forget earlier losses, as far as the loss has not exploded."""
    mean, found = 0.0, []
    for step, loss in enumerate(losses, 1):
        if not np.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**step))
        if found[-1] > EXPLODED * min(found):
            break
    if not found:
        raise UserError(f"lr_find: the loss is not finite at the lowest rate, {rates[0]:.2g}")
    return LearningRates(rates[: len(found)], np.array(found))
