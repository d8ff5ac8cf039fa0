"""A file for the node exporter of Prometheus: the newest values of a run, in its text format, replaced atomically.

The exporter's textfile collector reads all *.prom files of a folder."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ddl.metrics.events import EpochDone, Event, Finished, JobStarted, RankFailed, Recovered, StepDone

EVERY_S = 5.0  # between two writes for steps; Prometheus asks every 15 s or less often


class Prometheus:
    """Writes ``path``. run: the label of all values. ranks, failures: what a leader that takes over knows already."""

    def __init__(
        self,
        path: str | Path,
        run: str,
        ranks: int = 0,
        failures: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.path, self.run, self.clock = Path(path), run, clock
        self._values: dict[tuple[str, str, str], float] = {}  # (name, label, value of the label) -> value
        self._written = -math.inf
        self._put("ddl_ranks", ranks)
        self._put("ddl_rank_failures_total", failures)
        self._status("running")

    def write(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._put("ddl_step", event.step)
            self._put("ddl_epoch", event.epoch)
            self._put("ddl_learning_rate", event.lr)
            self._put("ddl_samples_per_second", event.samples / event.seconds if event.seconds else math.nan)
            self._metrics("step", {"loss": event.loss, **event.metrics})
            if self.clock() - self._written < EVERY_S:
                return
        elif isinstance(event, JobStarted):
            self._put("ddl_ranks", event.ranks)
            self._put("ddl_steps", event.steps)
            self._put("ddl_step", event.step)
            self._status("running")
        elif isinstance(event, EpochDone):
            self._metrics("train", event.train)
            self._metrics("validation", event.validation)
        elif isinstance(event, RankFailed):
            self._put("ddl_rank_failures_total", self._values["ddl_rank_failures_total", "", ""] + 1)
        elif isinstance(event, Recovered):
            self._put("ddl_ranks", len(event.ranks))
            self._put("ddl_recovery_seconds", event.seconds)
        elif isinstance(event, Finished):
            self._metrics("test", event.summary.get("test") or {})
            self._status(event.status)
        else:
            return
        self._replace()

    def close(self) -> None:
        self._replace()

    def _put(self, name: str, value: float, label: str = "", of: str = "") -> None:
        self._values[name, label, of] = value

    def _metrics(self, split: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "samples":
                self._put(f"ddl_{split}_metric", value, "metric", name)

    def _status(self, status: str) -> None:
        for one in ("running", "finished", "stopped", "failed"):
            self._put("ddl_status", float(one == status), "status", one)

    def _replace(self) -> None:
        """The reader sees the old values or the new ones. Raises OSError."""
        self._written = self.clock()
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")  # the exporter reads names in .prom alone
        try:
            with open(aside, "w", encoding="utf-8") as file:
                file.writelines(self._lines())
                os.fchmod(file.fileno(), 0o644)  # the exporter is another user
            os.replace(aside, self.path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise

    def _lines(self) -> Iterator[str]:
        families: dict[str, list[str]] = {}
        for (name, label, of), value in self._values.items():
            labels = {"run": self.run, **({label: of} if label else {})}
            text = ",".join(f'{key}="{_escaped(one)}"' for key, one in labels.items())
            families.setdefault(name, []).append(f"{name}{{{text}}} {_number(value)}\n")
        for name, lines in families.items():
            yield f"# HELP {name} {MEANINGS[name]}\n"
            yield f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n"
            yield from lines


MEANINGS = {
    "ddl_ranks": "Ranks that train.",
    "ddl_rank_failures_total": "Ranks lost since the launch.",
    "ddl_recovery_seconds": "Duration of the newest recovery.",
    "ddl_steps": "Steps of the whole job.",
    "ddl_step": "Steps committed.",
    "ddl_epoch": "Epoch, counted from 1.",
    "ddl_learning_rate": "Learning rate of the newest step.",
    "ddl_samples_per_second": "Throughput of the newest step.",
    "ddl_step_metric": "Metrics of the newest step's batch.",
    "ddl_train_metric": "Running means of the newest epoch.",
    "ddl_validation_metric": "Metrics of the newest evaluation of the validation split.",
    "ddl_test_metric": "Metrics of the test split, at the end.",
    "ddl_status": "1 for the status of the run, 0 for the others.",
}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return (
        "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf") if math.isinf(value) else repr(float(value))
    )
