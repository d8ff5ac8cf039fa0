"""The folder that a job writes to: known before MPI starts, so that a supervisor can name it.

What lies in it is train's."""

from __future__ import annotations

from pathlib import Path

from ddl.config.sections import Job


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
