"""The folder of a run: which one, and what in it tells one launch from another."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from ddl.config import Job


def new_launch() -> str:
    """This launch's id: the supervisor's, where there is one, so that it knows its own summary.json."""
    return os.environ.get("DDL_LAUNCH") or f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


def holds_run(folder: Path) -> bool:
    """Whether somebody has trained in this folder before."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "config.toml", "checkpoints", "ledger.jsonl"))


def run_folder(job: Job) -> Path:
    """The folder that a job writes to: ``run.dir``, or runs/NAME, or runs/NAME-2, -3, ... where that is taken."""
    if job.run.dir:
        return Path(job.run.dir)
    base = Path("runs") / job.run.name
    folder, number = base, 1
    while holds_run(folder):
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder
