"""Resuming: find the checkpoint that is meant, and load it into the state.

What a checkpoint contains is decided in ddl/train, how it is stored in ddl/checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddl.checkpoint import Store, newer_of, open_memory_checkpoint
from ddl.data import compare
from ddl.errors import CheckpointError, ConfigError
from ddl.optim import resumed_span
from ddl.train.state import Progress, State
from ddl.train.task import Task


def find_checkpoint(
    resume: str, folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, np.ndarray] | None, dict[str, Any]]:
    """Arrays and meta of the checkpoint to resume from; None if training starts from the beginning.

    resume: the setting. folder: the run's. say: called with a line about each checkpoint that was skipped. Raises
    ConfigError if the requested checkpoint cannot be used."""
    if resume == "none":
        return None, {}
    try:
        if resume != "auto":
            path = Path(resume)
            inner = path / "checkpoints" if (path / "checkpoints").is_dir() else path
            if inner.name == "checkpoints":
                return Store(inner, say=say).load()
            return Store(inner.parent, say=say).load(inner)
        disk = Store(folder / "checkpoints", say=say)
        store = newer_of(disk, open_memory_checkpoint(say=say))
        if store.newest() is None:
            return None, {}
        try:
            return store.load()
        except CheckpointError as error:
            if store is disk or disk.newest() is None:
                raise
            say(f"the checkpoint in memory was skipped: {error}")
            return disk.load()
    except CheckpointError as error:
        raise ConfigError(f"checkpoint.resume = {resume!r}: {error}") from error


def restore(
    state: State,
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
        state.load_named(arrays)
    except ValueError as error:
        raise ConfigError(f"the checkpoint does not fit this model: {error}") from error
    state.progress.become(Progress.from_json(meta["progress"]))
    progress = state.progress
    progress.stopping = False
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
