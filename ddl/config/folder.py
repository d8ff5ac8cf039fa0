"""Choice of the run folder. It needs no MPI, so the supervisor can compute it too.

The contents of the folder are written by run/."""

from __future__ import annotations

from pathlib import Path

from ddl.config.sections import Job


def holds_run(folder: Path) -> bool:
    """Whether ``folder`` already contains a run."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "config.toml", "checkpoints", "ledger.jsonl"))


def run_folder(job: Job) -> Path:
    """The folder that a job writes to: ``run.dir``, or the first of runs/NAME, runs/NAME-2, ... without a run."""
    if job.run.dir:
        return Path(job.run.dir)
    base = Path("runs") / job.run.name
    folder, number = base, 1
    while holds_run(folder):
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder
