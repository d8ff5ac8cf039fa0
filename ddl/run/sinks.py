"""The sinks of a job: what its settings say about who receives the events.

metrics/ defines the sinks; log.py opens them on the leader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ddl.config import Job
from ddl.kernels.backend import on_compilation
from ddl.metrics import Console, Noted, Sink
from ddl.metrics.prometheus import Prometheus
from ddl.metrics.tensorboard import TensorBoard
from ddl.run.log import RunLog

COMPILES = "compiling kernels (once, about 20 s)"


def open_sinks(job: Job, log: RunLog, say: Callable[[str], None]) -> list[Sink]:
    """The sinks of ``job`` except metrics.jsonl, on the leader. say: called with a line about one that cannot be."""
    assert log.folder is not None
    task, metrics = log.task, job.metrics
    sinks: list[Sink] = []
    if metrics.console_every_s:
        per_epoch = task.order.steps_per_epoch
        sinks.append(Console(metrics.console_every_s, steps=task.total_steps, steps_per_epoch=per_epoch))
    if metrics.tensorboard:
        try:
            sinks.append(TensorBoard(log.folder / "tensorboard", hyperparameters(job)))
        except OSError as error:
            say(f"no files for TensorBoard are written: {error}")
    if metrics.prometheus:
        sinks.append(Prometheus(metrics.prometheus, log.folder.name, log.ranks_started, len(log.failures)))
    on_compilation(lambda: log.emit(Noted(COMPILES)))
    return sinks


def hyperparameters(job: Job) -> dict[str, Any]:
    """The settings that decide what is learned, by name, as plain values."""
    found: dict[str, Any] = {"run.seed": job.run.seed}
    for section in ("data", "model", "optim", "train"):
        settings = getattr(job, section)
        for field in fields(settings):
            value = getattr(settings, field.name)
            if value not in ("", (), {}):
                is_plain = isinstance(value, (bool, int, float, str))
                found[f"{section}.{field.name.rstrip('_')}"] = value if is_plain else str(value)
    return found
