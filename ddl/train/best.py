"""The best state: which evaluation found it, and how all ranks get it back when training ends.

loop.py decides when; saving.py writes and reads the checkpoints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddl.arrays import Device
from ddl.comm import Group
from ddl.errors import CheckpointError, LeaseLost
from ddl.reading import take
from ddl.train.saving import Saving
from ddl.train.state import Progress, TrainingState
from ddl.train.work import Work


def judge(progress: Progress, results: dict[str, Any], patience: int) -> bool:
    """Enter the evaluation of the validation split; returns whether it is the best so far."""
    score = results["loss"]
    improved: bool = math.isfinite(score) and (progress.best is None or score < progress.best)
    progress.results["validation"], progress.validated_at = results, progress.step
    if improved:
        progress.best, progress.best_step = score, progress.step
    progress.stale = 0 if improved else progress.stale + 1
    progress.ended = bool(patience) and progress.stale >= patience
    return improved


def restore_best(work: Work, group: Group, saving: Saving) -> str:
    """Make the best checkpoint's state that of all ranks: the leader reads it, all receive it. The newest state has
    been written before. Returns why that is not possible; "" if it was done. Raises PeerLost, which changes nothing."""
    progress = work.state.progress
    if progress.best_step == progress.step:
        _finish(progress, progress.step, {})
        return ""
    common = len(work.state.flat_arrays()) - len(work.state.meta()["arrays"])
    received = [np.array(flat) for flat in work.flat_arrays()[:common]]
    message: str | tuple[int, dict[str, Any]] = ""
    if group.is_leader:
        try:
            assert progress.best is not None
            arrays, meta = saving.best(-progress.best)
            before = Progress.from_json(take(meta, "progress", dict))
            take(before.results, "validation", dict)
            received, message = _flat(work, arrays), (before.step, before.results)
        except (CheckpointError, ValueError) as error:
            message = str(error)
        except LeaseLost:  # saving has noted it, and the job ends for it
            message = "another launch has taken over the run folder"
    message = group.gather_objects(message)[0]
    if isinstance(message, str):
        return message
    for flat in received:
        group.broadcast(flat, 0)
    # Into private memory: ranks that share a replica, and did not receive all, still need the newest state.
    work.state.leave()
    work.state.assign(received)
    _finish(progress, *message)
    return ""


def _flat(work: Work, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """A checkpoint's arrays on the host, in the order of ``TrainingState.flat_arrays``, without what the optimizer
    keeps for its next step. Raises ValueError if they do not fit."""
    task = work.task
    state = TrainingState(task.model, task.optimizer.slots, task.dtype, task.seed, Device())
    known = state.to_named()
    state.load_named({name: array for name, array in arrays.items() if name in known})
    return state.flat_arrays()


def _finish(progress: Progress, step: int, results: dict[str, Any]) -> None:
    progress.final = {"checkpoint": "best", "step": step, "train": (results or progress.results).get("train", {})}
    if results:
        progress.results["validation"] = results["validation"]
        progress.tested_at = -1
    progress.stage += 1
