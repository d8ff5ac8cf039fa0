"""Send a job's metrics to MLflow: a callback, so nothing of ddl changes.

    cd launch/examples && MLFLOW_TRACKING_URI=sqlite:///mlruns.db ddl launch -n 4 \\
        --train.callbacks=mlflow_callback:MLflow --optim.lr=0.01

In a script: ``ddl.Trainer(..., callbacks=[MLflow({"lr": 0.01})])``. Needs ``pip install mlflow``."""

from __future__ import annotations

import math
import os
import socket
import sys
from typing import Any


class MLflow:
    """Logs every ``every``-th step, every epoch and the end. ddl calls it on the leading rank only; when that one dies,
    the next leader continues the same MLflow run.

    params: what is logged as parameters; default: the settings on the command line."""

    def __init__(self, params: dict[str, Any] | None = None, every: int = 10):
        words = (
            word.removeprefix("--").partition("=") for word in sys.argv[1:] if word.startswith("--") and "=" in word
        )
        self.params = {name: value for name, _, value in words} if params is None else params
        self.every, self.step, self._mlflow = every, 0, None

    def __call__(self, outcome) -> None:
        self.step = outcome.step
        if outcome.step % self.every == 0 and not outcome.skipped:
            self._log({"step/loss": outcome.loss, "step/lr": outcome.lr, **_named("step", outcome.metrics)})

    def on_epoch(self, epoch: int, results: dict[str, dict[str, Any]]) -> None:
        self._log(
            {"epoch": epoch, **{name: v for split in results for name, v in _named(split, results[split]).items()}}
        )

    def on_end(self, results: dict[str, dict[str, Any]]) -> None:
        self._log({name: v for split in results for name, v in _named(f"final/{split}", results[split]).items()})
        if self._mlflow is not None:
            self._mlflow.end_run()

    def _log(self, metrics: dict[str, float]) -> None:
        if self._mlflow is None:
            import mlflow  # on the leader only

            # The ranks of a launch have the same supervisor or mpirun, so the next leader finds its run by this tag.
            launch = os.environ.get("DDL_LAUNCH") or f"{socket.gethostname()}-{os.getppid()}"
            known = mlflow.search_runs(filter_string=f"tags.ddl_launch = '{launch}'", output_format="list")
            mlflow.start_run(run_id=known[0].info.run_id if known else None, tags={"ddl_launch": launch})
            if not known:
                mlflow.log_params(self.params)
            self._mlflow = mlflow
        self._mlflow.log_metrics(metrics, step=self.step)


def _named(split: str, metrics: dict[str, Any]) -> dict[str, float]:
    """Finite scalars by names such as "validation/loss"."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    return {f"{split}/{name}": value for name, value in numbers.items() if math.isfinite(value)}
