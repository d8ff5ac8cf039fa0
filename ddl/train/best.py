"""The best state: which evaluation found it, and how all ranks get it back when training ends.

loop.py decides when; saving.py writes and reads the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ddl.comm import Group
from ddl.errors import CheckpointError, LeaseLost
from ddl.reading import take
from ddl.train.saving import Saving
from ddl.train.state import Progress
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
    found: Callable[[int], list[np.ndarray]] | None = None
    message: str | tuple[int, dict[str, Any]] = ""
    if group.is_leader:
        try:
            assert progress.best is not None
            arrays, meta = saving.best(-progress.best)
            before = Progress.from_json(take(meta, "progress", dict))
            take(before.results, "validation", dict)
            found, message = work.taken_from(arrays), (before.step, before.results)
        except (CheckpointError, ValueError) as error:
            message = str(error)
        except LeaseLost:  # saving has noted it, and the job ends for it
            message = "another launch has taken over the run folder"
    message = group.gather_objects(message)[0]
    if isinstance(message, str):
        return message
    step, results = message
    work.replace(group, found, lambda: _finish(progress, step, results))
    return ""


def _finish(progress: Progress, step: int, results: dict[str, Any]) -> None:
    progress.final = {"checkpoint": "best", "step": step, "train": (results or progress.results).get("train", {})}
    if results:
        progress.results["validation"] = results["validation"]
        progress.tested_at = -1
    progress.stage += 1
