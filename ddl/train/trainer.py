"""The Python API: train a model on data, on as many ranks as the script was started on.

    run = ddl.Trainer(model=ddl.models.MLP([64, 128, 10]), loss="cross_entropy",
                      optimizer=ddl.optim.Adam(lr=1e-3), data=ddl.data.Arrays(x, y), global_batch=256)
    run.fit(epochs=10)

The same script runs alone, under mpirun and under srun; what it does is what a job file does."""

from __future__ import annotations

import atexit
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import Layout
from ddl.comm import Group, mpi
from ddl.config import Job
from ddl.data import Arrays, Known, Source, Splits
from ddl.errors import DdlError, Stop, UserError
from ddl.models import build as build_model
from ddl.optim import Adam, Groups, Optimizer, schedule
from ddl.train.build import assemble, order_of
from ddl.train.evaluate import evaluate
from ddl.train.loop import Loop
from ddl.train.run import Runner
from ddl.train.task import Task

# Settings of [optim] and [model] that count here as well; the others are arguments.
_READ = ("optim.warmup_steps", "model.from", "model.strict", "model.freeze")
_ARGUMENTS = {
    **{f"data.{key}": "data, validation, test" for key in ("source", "path", "targets", "format", "options")},
    **{f"data.{key}": "data, validation, test" for key in ("validation", "test", "stratify", "oversample")},
    "data.normalize": "normalize",
    "data.augment": "augment",
    "train.callbacks": "callbacks",
}


class Trainer:
    """model: of ``ddl.models``, a network of ``ddl.nn`` layers, or anything with the Model protocol; or a zoo name.

    data, validation, test: sources of ``ddl.data``, or pairs (x, y). loss, metrics: names or objects; None: what goes
    with model and data. schedule: a name of ``ddl.optim.SCHEDULES``, over the steps of ``fit``. settings: any other
    setting of a job by name, such as {"run.dir": "runs/mine", "checkpoint.every_s": 30}.
    Raises UserError for what does not fit together."""

    def __init__(
        self,
        model: Any,
        data: Source | tuple[Any, Any],
        *,
        loss: Any = None,
        optimizer: Optimizer | None = None,
        metrics: Sequence[Any] | None = None,
        validation: Source | tuple[Any, Any] | None = None,
        test: Source | tuple[Any, Any] | None = None,
        global_batch: int = 64,
        shards: int | str = "auto",
        seed: int = 0,
        schedule: str = "constant",
        clip_norm: float = 0.0,
        normalize: str = "none",
        augment: Sequence[Any] = (),
        callbacks: Sequence[Callable[[Any], None]] = (),
        settings: Mapping[str, Any] | None = None,
    ):
        self.data, self.validation, self.test = _source(data), _source(validation), _source(test)
        if self.data is None:
            raise UserError("a Trainer needs data")
        self.model = build_model(model, self.data.fields, loss, metrics)
        self.optimizer = optimizer or Adam()
        self.schedule, self.clip_norm, self.normalize = schedule, clip_norm, normalize
        self.augment, self.callbacks = list(augment), list(callbacks)
        for name in settings or {}:
            if name in _ARGUMENTS or (name.startswith(("optim.", "model.")) and name not in _READ):
                said_by = _ARGUMENTS.get(name, "model, loss, metrics, optimizer, schedule, clip_norm")
                raise UserError(f"{name} is no setting of a Trainer: its arguments say that ({said_by})")
        known = {"run.name": "python", "run.seed": seed, "train.global_batch": global_batch, "data.shards": shards}
        self.job = Job().override(**{**known, **(settings or {})})
        self.summary: dict[str, Any] = {}
        self._runner: Runner | None = None

    def fit(self, epochs: int | None = None, steps: int | None = None) -> dict[str, Any]:
        """Train up to ``epochs`` or ``steps``, as counted from the very beginning; what summary.json holds.

        Called again it goes on from where it stood, in the same folder. Survives failures as a job does, and
        returns on every rank that is left. Raises what ended it early: UserError, Stop, Diverged, UserCodeError."""
        length: dict[str, Any] = {"train.epochs": self.job.train.epochs if epochs is None else epochs}
        length["train.steps"] = self.job.train.steps if steps is None and epochs is None else steps or 0
        if self.folder is not None:
            length |= {"run.dir": str(self.folder), "checkpoint.resume": "auto"}
        job = self.job.override(**length)
        before = self._runner if self._runner is not None and self._runner.has_started else None
        self._runner = Runner(job, self._task, before, in_script=True)
        self._runner.run()
        if before is None and self._runner.has_started:
            atexit.register(self._leave)
        if self._runner.failure is not None:
            raise self._runner.failure
        folder = self.folder
        if folder is not None:
            self.summary = json.loads((folder / "summary.json").read_text())
        if self.summary.get("status") == "stopped":
            raise Stop(f"training was asked to stop after step {self.summary['steps']}; fit() again goes on from there")
        return self.summary

    @property
    def folder(self) -> Path | None:
        """The folder of the last ``fit``."""
        journal = self._runner.journal if self._runner is not None else None
        return None if journal is None else journal.folder

    @property
    def group(self) -> Group:
        """The ranks of the last ``fit``. Raises DdlError before the first."""
        if self._runner is None or not self._runner.has_started:
            raise DdlError("there is no group before fit()")
        return self._runner.group

    @property
    def params(self) -> dict[str, np.ndarray]:
        """Copies of the trained parameters by name. Raises DdlError before the first ``fit``."""
        from ddl.arrays import host

        return {name: np.array(host(view)) for name, view in self._loop.state.params.views.items()}

    def evaluate(self, data: Source | tuple[Any, Any]) -> dict[str, Any]:
        """Loss and metrics over all of ``data``; to be called on every rank, and equal on all of them."""
        source, loop = _source(data), self._loop
        assert source is not None
        rows = self.job.data.batch_eval
        return evaluate(self.model, loop.state, source, self.group, rows=rows, transforms=loop.transforms)

    def predict(self, x: Any) -> np.ndarray:
        """The model's output for samples ``x`` (rows, ...), computed on this rank alone."""
        from ddl.arrays import host
        from ddl.nn import Context

        state = self._loop.state
        batch: dict[str, Any] = {"x": np.array(x)}
        for transform in self._loop.transforms:
            batch = transform(batch, [slice(0, len(x))], [])
        context = Context(segments=[slice(0, len(x))], shards=[0])
        batch = {name: state.device.array(value) for name, value in batch.items()}
        outputs = self.model.predict(state.params.views, state.averages.views, batch, context)
        return np.array(host(next(iter(outputs.values()))))

    @property
    def _loop(self) -> Loop:
        if self._runner is None or self._runner.loop is None:
            raise DdlError("there are no parameters before fit()")
        return self._runner.loop

    def _task(self, job: Job) -> Task:
        assert self.data is not None
        order = order_of(job, len(self.data))
        total = job.train.steps or job.train.epochs * order.steps_per_epoch
        layout = Layout.of({name: shape for name, (shape, _) in self.model.params.items()}, job.train.dtype)
        factor = schedule(self.schedule, total, warmup_steps=job.optim.warmup_steps)
        lr = self.optimizer.lr
        return assemble(
            job,
            Splits(self.data, self.validation, self.test),
            model=self.model,
            order=order,
            optimizer=Groups(layout, self.optimizer, freeze=job.model.freeze),
            lr=lambda step: lr * factor(step),
            total_steps=total,
            clip_norm=self.clip_norm,
            normalise=self.normalize,
            augment=self.augment,
            callbacks=self.callbacks,
            knowledge={"data": Known.of(self.data).to_json(), "options": {}},
        )

    def _leave(self) -> None:
        """At the interpreter's end: all ranks part together, so that nobody takes it for a death."""
        if self._runner is not None:
            self._runner.end()
            mpi.part(self._runner.group)


def _source(data: Source | tuple[Any, Any] | None) -> Source | None:
    if isinstance(data, tuple):
        return Arrays(*data)
    return data
