"""The sinks of a job: what its settings say about who receives the events.

metrics/ defines the sinks; log.py opens them on the leader."""

from __future__ import annotations

from collections.abc import Callable

from ddl.config import Job
from ddl.kernels.backend import on_compilation
from ddl.metrics import Console, Noted, Sink
from ddl.metrics.tensorboard import TensorBoard
from ddl.run.log import RunLog

COMPILES = "compiling kernels (once, about 20 s)"


def open_sinks(job: Job, log: RunLog, say: Callable[[str], None]) -> list[Sink]:
    """The sinks of ``job`` besides metrics.jsonl, on the leader. say: called with a line about one that cannot be."""
    assert log.folder is not None
    task, metrics = log.task, job.metrics
    sinks: list[Sink] = []
    if metrics.console_every_s:
        per_epoch = task.order.steps_per_epoch
        sinks.append(Console(metrics.console_every_s, steps=task.total_steps, steps_per_epoch=per_epoch))
    if metrics.tensorboard:
        try:
            sinks.append(TensorBoard(log.folder / "tensorboard"))
        except OSError as error:
            say(f"no files for TensorBoard are written: {error}")
    on_compilation(lambda: log.emit(Noted(COMPILES)))
    return sinks
