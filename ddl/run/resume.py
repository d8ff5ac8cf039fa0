"""Resuming: find the requested checkpoint, and load it into the state.

What a checkpoint contains is decided in ddl/train, how it is stored in ddl/checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddl.checkpoint import Store, newer_of, open_memory_checkpoint, owner_of
from ddl.data import compare
from ddl.errors import CheckpointError, ConfigError
from ddl.optim import resumed_span
from ddl.train.saved import understand
from ddl.train.state import Progress, TrainingState
from ddl.train.step import Step
from ddl.train.task import Task


def resume(state: TrainingState, task: Task, setting: str, folder: Path, say: Callable[[str], None]) -> bool:
    """Load the checkpoint to resume from into ``state``; False if training starts from the beginning.

    setting: checkpoint.resume. folder: the run's. say: called with a line about each checkpoint that was skipped.
    Raises ConfigError if the requested checkpoint cannot be used, or belongs to another job."""
    if setting == "none":
        return False
    try:
        if setting != "auto":
            path = Path(setting)
            inner = path / "checkpoints" if (path / "checkpoints").is_dir() else path
            is_store = inner.name == "checkpoints"
            arrays, meta = Store(inner if is_store else inner.parent, say=say).load(
                None if is_store else inner, understand
            )
        else:
            disk, owner = Store(folder / "checkpoints", say=say), owner_of(folder)
            memory = open_memory_checkpoint(owner.run, say=say) if owner is not None and owner.run else None
            if memory is not None and newer_of(disk, memory) is memory:
                try:
                    restore(state, *memory.load(check=understand), task, say)
                    return True
                except (CheckpointError, ConfigError) as error:
                    say(f"the checkpoint in memory was skipped: {error}")
            if disk.newest() is None:
                return False
            arrays, meta = disk.load(check=understand)
    except CheckpointError as error:
        raise ConfigError(f"checkpoint.resume = {setting!r}: {error}") from error
    restore(state, arrays, meta, task, say)
    return True


def restore(
    state: TrainingState,
    arrays: dict[str, np.ndarray],
    meta: dict[str, Any],
    task: Task,
    say: Callable[[str], None] = lambda message: None,
) -> None:
    """Load a checkpoint into ``state``. Raises ConfigError if it belongs to another job: if shards, samples, batch,
    seed, order, parameters, or the columns or classes of the data differ. say: called with a line about data whose
    content changed."""
    for key in ("shards", "samples", "global_batch", "seed", "shuffle"):
        if key in meta and meta[key] != task.settings.get(key, meta[key]):
            raise ConfigError(
                f"the checkpoint was made with {key} = {meta[key]}, this job has {task.settings[key]}: "
                "the order of samples would differ; restore the setting, or start in another run.dir"
            )
    kept, now = (one.get("knowledge", {}).get("data") for one in (meta, task.settings))
    if kept and now:
        wrong, changed = compare(kept, now)
        if wrong:
            raise ConfigError(
                f"the data changed since the checkpoint: {'; '.join(wrong)}; set them back, or train from the "
                "beginning in another run.dir"
            )
        for line in changed:
            say(line)
    try:
        saved = Progress.from_json(meta["progress"])
        state.load_named(arrays, saved.optimizer)
    except ValueError as error:
        raise ConfigError(f"the checkpoint does not fit this model and optimizer: {error}") from error
    state.progress.become(saved)
    progress = state.progress
    progress.stopping = False
    now = task.settings.get("metrics")
    if len(progress.epoch_sums) not in (0, Step.header_length(task.model)) or meta.get("metrics", now) != now:
        progress.epoch_sums = []
        if progress.step % task.order.steps_per_epoch:
            say("the metrics are not the checkpoint's: training figures of this epoch are of its remaining steps")
    progress.ended = bool(task.patience) and progress.stale >= task.patience
    _continue_schedule(progress, task, say)


def _continue_schedule(progress: Progress, task: Task, say: Callable[[str], None]) -> None:
    """Choose the steps that the schedule is made for, and say where the learning rate jumps because of it."""
    before = progress.total_steps
    if before in (0, task.total_steps):  # 0: the checkpoint was written by a version that did not record it
        return
    span = progress.schedule_span or [0, before]
    progress.schedule_span = resumed_span(task.resume_schedule, span, progress.step, task.total_steps)
    old, new = (task.lr_over(steps)(progress.step) for steps in (span, progress.schedule_span))
    if old != new:
        say(
            f"the learning rate of step {progress.step} is {new:.4g} instead of {old:.4g}: the job now has "
            f"{task.total_steps} steps instead of {before}, and optim.resume_schedule = {task.resume_schedule!r}; "
            "the choices are rescale, restart and hold"
        )
