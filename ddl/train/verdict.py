"""Whether training has learned anything: one line for the user where the training loss gives no sign of it."""

from __future__ import annotations

from ddl.arrays import Views
from ddl.train.state import Progress
from ddl.train.task import Task
from ddl.wording import counted

LEAST_FALL = 1e-4  # of the loss at the start
FEW_STEPS = 10  # of fewer steps, chance decides whose loss is lower
MANY_STEPS = 200  # after these, a network predicts better than a constant does; before, not much worse


def doubt(task: Task, progress: Progress, buffers: Views) -> str:
    """Why a run that has reached its end has probably learned nothing; "" if its loss fell or proves nothing.

    The loss of a game (a GAN) need not fall, and a few steps prove nothing."""
    loss, weight = progress.early_sums
    last = progress.results.get("train", {}).get("loss")
    if last is None and progress.step > progress.skipped:
        return "nothing was learned: every target is below 0, which is padding"
    if task.model.generates or last is None or not weight:  # the checkpoint of an earlier version has no early sums
        return ""
    spread = (task.settings.get("knowledge", {}).get("data", {}).get("target") or {}).get("spread")
    if spread == 0:
        return "nothing can be learned: every target is the same"
    first = loss / weight
    if not last < first - LEAST_FALL * abs(first) and (progress.step >= FEW_STEPS or last == 0):
        return (
            f"nothing was learned: the training loss is {last:.4g} at the end and was {first:.4g} in the first "
            f"{counted(task.early_steps, 'step')}; look at the targets, the features and optim.lr"
        )
    scale = task.model.target_scale
    if spread is not None and scale is not None and scale.mean is not None and not scale.is_plain(buffers):
        spread = 1.0  # of scaled targets
    hopeless = 1 if progress.step >= MANY_STEPS else 10
    far = spread is not None and last > hopeless * spread
    if far and task.model.is_least_squares and progress.step >= FEW_STEPS:
        return (
            f"little was learned: the training loss, {last:.4g}, is above that of always predicting the mean of the "
            f"targets, {spread:.4g}; train longer, or raise optim.lr"
        )
    return ""
