"""The Python API: train a model on data, on as many ranks as the script was started on.

    run = ddl.Trainer(model=ddl.models.MLP([64, 128, 10]), loss="cross_entropy",
                      optimizer=ddl.optim.Adam(lr=1e-3), data=ddl.data.Arrays(x, y), global_batch=256)
    run.fit(epochs=10)

The same script runs alone, under mpirun and under srun; it does the same as a job file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import Device, Layout, host
from ddl.collectives import Call, check_same_call, end_script
from ddl.comm import Group
from ddl.config import Job, OptimSettings, override
from ddl.data import Arrays, Source, Splits, as_array, as_dtype, as_source, decide, lost_in_cast
from ddl.errors import ConfigError, DdlError, Stop, UserError
from ddl.fault import session
from ddl.metrics import read_summary
from ddl.metrics.console import figures
from ddl.metrics.jsonl import plain
from ddl.models import build as build_model
from ddl.models.build import takes_measurements
from ddl.optim import Adam, Groups, Optimizer, Rule, Schedule, Whole
from ddl.registry import adapter_of
from ddl.run.files import save
from ddl.run.given import parts_of, source_of
from ddl.run.history import history_of
from ddl.run.loaded import TrainedModel
from ddl.run.lr_find import LearningRates, find
from ddl.run.record import loss_name, record
from ddl.run.runner import Runner
from ddl.run.trained import Trained, outputs_of, read_arrays
from ddl.train.build import (
    assemble,
    augmentations,
    build_groups,
    callbacks,
    knowledge_of,
    learning_rate,
    normalisation,
    order_of,
    steps_of,
)
from ddl.train.evaluate import evaluate
from ddl.train.initial import load_values
from ddl.train.state import TrainingState
from ddl.train.targets import with_scaled_targets
from ddl.train.task import Task
from ddl.wording import counted

# Optimizers of other frameworks: base class -> what makes ddl's of them and of their schedules.
_OPTIMIZERS = {
    "torch.optim.optimizer.Optimizer": "ddl.torch:translated",
    "optax._src.base.GradientTransformation": "ddl.jax:translated",
}

# Settings of [optim] and [model] that count here as well; the others are arguments.
_OF_SCHEDULE = tuple(
    f"optim.{key}" for key in ("warmup_steps", "min_lr", "step_every", "step_factor", "resume_schedule")
)
_READ = (*_OF_SCHEDULE, "optim.sharded", "model.from", "model.name_map", "model.strict", "model.freeze")
_ARGUMENTS = {
    **{f"data.{key}": "data, validation, test" for key in ("source", "path", "targets", "format", "options")},
    **{f"data.{key}": "data, validation, test" for key in ("validation", "test", "stratify", "oversample")},
    "data.normalize": "normalize",
    "data.augment": "augment",
    "train.callbacks": "callbacks",
    "optim.name": "optimizer",
    "optim.schedule": "schedule",
    "optim.clip_norm": "clip_norm",
}


class Trainer:
    """model: of ``ddl.models``, a network of ``ddl.nn`` layers, or anything with the Model protocol; or a zoo name.

    data, validation, test: sources of ``ddl.data``, or pairs (x, y); the last two may be fractions of ``data``. loss,
    metrics: names or objects; None: what goes with model and data; a metric may be a function (outputs, targets) that
    returns one value per sample, or their mean. optimizer: one of ``ddl.optim``, or a name; then its numbers are
    settings, as in a job. rules: other optimizers or settings for some parameters (a GAN has two). schedule: a name of
    ``ddl.optim.SCHEDULES``, over the steps of ``fit``, or a function from the step to a factor of the learning rate.
    augment, callbacks: objects, or names as in a job. normalize: as data.normalize of a job; None: whole numbers that
    are measurements are normalised by feature, as in a job, and floating-point numbers are taken as they are. Callbacks
    are called on the leading rank with the outcome of each step; their optional methods ``on_epoch(epoch, results)``
    and ``on_end(results)`` are called too, where results are metrics by split. If that rank dies, the next leader
    repeats the call for the last step, epoch or end. settings: any other setting of a job by name, such as {"run.dir":
    "runs/mine", "checkpoint.every_s": 30}.
    Raises UserError for an incompatible combination."""

    def __init__(
        self,
        model: Any,
        data: Source | tuple[Any, Any],
        *,
        loss: Any = None,
        optimizer: Optimizer | str | Any = None,
        rules: Sequence[Rule] = (),
        metrics: Sequence[Any] | None = None,
        validation: Source | tuple[Any, Any] | float | None = None,
        test: Source | tuple[Any, Any] | float | None = None,
        global_batch: int = 64,
        shards: int | str = "auto",
        seed: int = 0,
        schedule: str | Schedule = "constant",
        clip_norm: float = 0.0,
        normalize: str | None = None,
        augment: Sequence[Any] = (),
        callbacks: Sequence[Any] = (),
        initial: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        given = parts_of(data, {"validation": validation, "test": test}, seed)
        translate = adapter_of(optimizer, _OPTIMIZERS)  # what optax makes is a tuple, but not several optimizers
        if translate is None and isinstance(optimizer, (list, tuple)):
            translate = adapter_of(optimizer[0], _OPTIMIZERS) if optimizer else None
            if translate is None:
                raise UserError(f"optimizer = {optimizer!r:.60}: several are PyTorch's; for ddl's own there are rules")
        if translate is not None:
            if rules:
                raise UserError("rules go with an optimizer of ddl: one of another framework has parameter groups")
            optimizer, rules, schedule = translate(optimizer, model, schedule)
        elif hasattr(schedule, "step"):
            raise UserError("a scheduler sets the rates of its optimizer: give that as well, as optimizer")
        self.optimizer: Any = optimizer or Adam()
        self.rules, self.schedule = tuple(rules), schedule
        self._measured = takes_measurements(model)
        if normalize is None:
            x = as_source(given["train"]).fields.get("x")
            is_whole = x is not None and x.size is None and x.dtype.kind in "iub"
            normalize = "auto" if self._measured and is_whole else "none"
        self.normalize, self.augment, self.callbacks = normalize, list(augment), list(callbacks)
        self.initial = initial
        self._check(settings or {})
        known = {"run.name": "python", "run.seed": seed, "train.global_batch": global_batch, "data.shards": shards}
        known |= {
            "data.normalize": normalize,
            "optim.clip_norm": clip_norm,
            **record(self, given, model, loss, metrics),
        }
        self.job = override(Job(), {**known, **(settings or {})})
        if isinstance(optimizer, Whole) and optimizer.needs_validation:
            if given["validation"] is None:
                raise UserError("the schedule depends on the validation loss: give validation data")
            if not self.job.train.evaluate_every:
                raise UserError("the schedule depends on the validation loss, and train.evaluate_every is 0")
        kind = self.job.data.target_kind
        self._target = decide(as_source(given["train"]), loss_name(loss), kind, measured=self._measured)
        self._keep = lost_in_cast(
            as_source(given["train"]),
            self._target,
            self.job.train.dtype,
            x=normalize != "none",
            y=self.job.data.scale_targets,
            measured=self._measured,
        )
        parts = {name: None if source is None else self._prepared(source) for name, source in given.items()}
        splits = Splits(**parts, names=parts["train"].names, target=self._target)  # type: ignore[arg-type, union-attr]
        suggested = None if self._target is None else self._target.loss
        made = build_model(model, splits.train.fields, loss, metrics, suggested=suggested)
        self.model, self._splits, self._notes = with_scaled_targets(self.job, made, splits)
        self.validation, self.test = self._splits.validation, self._splits.test
        self._keep &= {name for name, field in self.data.fields.items() if field.dtype == np.float64}
        self.summary: dict[str, Any] = {}
        self._runner: Runner | None = None
        self._loaded: TrainingState | None = None
        self.rates: Sequence[float] | None = None  # of each step, in place of optimizer and schedule

    def __repr__(self) -> str:
        count = sum(int(np.prod(shape)) for shape, _ in self.model.params.values())
        name = self.job.optim.name
        parts = [
            f"{self.job.model.name}, {counted(count, 'parameter')}",
            f"{counted(len(self.data), 'sample')}, {self.job.train.global_batch:,} per step",
            name if isinstance(self.optimizer, str) else repr(self.optimizer),
        ]
        results: Mapping[str, Any] = next(
            (self.summary[part] for part in ("test", "validation", "train") if self.summary.get(part)), {}
        )
        state = self._state
        step = "not trained yet" if state is None else f"step {state.progress.step:,}"
        return f"Trainer({'; '.join([*parts, ', '.join(filter(None, [step, figures(results)]))])})"

    @property
    def data(self) -> Source:
        """The training samples, as the model takes them."""
        return self._splits.train

    def fit(self, epochs: int | None = None, steps: int | None = None) -> dict[str, Any]:
        """Train up to ``epochs`` or ``steps``, counted from the very beginning; returns the contents of summary.json.

        Another call resumes in the same folder. Survives failures as a job does, and returns on every surviving rank.
        Raises the error that ended it early: UserError, Stop, Diverged, UserCodeError."""
        length: dict[str, Any] = {"train.epochs": self.job.train.epochs if epochs is None else epochs}
        length["train.steps"] = self.job.train.steps if steps is None and epochs is None else steps or 0
        if self.folder is not None:
            length |= {"run.dir": str(self.folder), "checkpoint.resume": "auto"}
        job = override(self.job, length)
        runner = self._runner = Runner(job, self._task, session.current(), in_script=True)
        try:
            runner.run()
        finally:
            if runner.has_started:
                session.hold(runner.group, runner.heartbeat).before_leaving = end_script
            if runner.loop is not None:
                runner.loop.keep_state()
        if self._runner.failure is not None:
            raise self._refused(self._runner.failure)
        folder = self.folder
        if folder is not None:
            self.summary = read_summary(folder)
        if self.summary.get("status") == "stopped":
            steps = self.summary["steps"]
            raise self._refused(Stop(f"training was asked to stop after step {steps}; call fit() again to resume"))
        return self.summary

    @staticmethod
    def _refused(error: DdlError) -> DdlError:
        """``error``, which every rank raises: if uncaught, it ends all of them with its status."""
        joined = session.current()
        if joined is not None:
            joined.refusal = error
        return error

    @property
    def folder(self) -> Path | None:
        """The folder of the last ``fit``."""
        log = self._runner.log if self._runner is not None else None
        return None if log is None else log.folder

    @property
    def group(self) -> Group:
        """The ranks of the last ``fit``. Raises DdlError before the first."""
        if self._runner is None or not self._runner.has_started:
            raise DdlError("there is no group before fit()")
        return self._runner.group

    @property
    def params(self) -> dict[str, np.ndarray]:
        """Copies of the trained parameters by name. Raises DdlError before the first ``fit`` or ``load``."""
        return {name: np.array(host(view)) for name, view in self._current.params.views.items()}

    @property
    def history(self) -> dict[str, list[Any]]:
        """The figures of each epoch of the run: ``history["loss"]``, ``history["validation_accuracy"]``, ...

        Training figures are means over the epoch while it ran; what was not measured in an epoch is NaN. Empty before
        the first epoch, and with metrics.jsonl = false."""
        return history_of(self.folder)

    @property
    def trained(self) -> TrainedModel:
        """The model as ``ddl.load`` returns it: it predicts labels and probabilities, and exports. Raises DdlError
        before the first ``fit`` or ``load``."""
        knowledge = json.loads(json.dumps(plain(knowledge_of(self.job, self._splits, self._notes))))
        run = Path(self.folder or "trainer")
        return TrainedModel(Trained(run, self.job, self.model, self._current, {"knowledge": knowledge}, "as trained"))

    def save(self, folder: str | Path) -> Path:
        """Write a folder with the job and the parameters, which ``ddl.load``, ``load`` and ``model.from`` read; on the
        leading rank. Raises ConfigError if it holds another run."""
        trained = self.trained.trained
        if self._runner is None or not self._runner.has_started or self._runner.group.is_leader:
            save(trained, folder)
        return Path(folder)

    def load(self, run: str | Path, checkpoint: str = "final") -> None:
        """Take the parameters, running averages and normalisation of a run, or of what ``save`` wrote: ``predict`` uses
        them, and the next ``fit`` starts from them, at step 0 in another folder.

        Raises ConfigError if they are not those of this model; nothing is changed then."""
        arrays, progress = read_arrays(Path(run), checkpoint, self.model)
        state = TrainingState(self.model, (), self.job.train.dtype, self.job.run.seed, Device())
        try:
            state.load_named(arrays)
        except ValueError as error:
            raise ConfigError(f"run {str(run)!r}: {error}") from error
        state.progress.become(progress)
        self._loaded, self._runner, self.summary = state, None, {}
        self.initial = {name.partition("/")[2]: value for name, value in state.to_named().items()}

    def lr_find(self, lowest: float = 1e-6, highest: float = 1.0, steps: int = 100) -> LearningRates:
        """Train for a few steps while the learning rate rises from ``lowest`` to ``highest``, on all ranks, and return
        the losses, with a suggestion and a plot. The parameters, and the folder of ``fit``, stay as they are.

        For an optimizer of optax the rates are factors of its rate: that rate times the suggestion is a good one."""
        return find(self, lowest, highest, steps)

    def evaluate(self, data: Source | tuple[Any, Any]) -> dict[str, Any]:
        """Loss and metrics over all of ``data``; to be called on every rank, and equal on all of them.

        Raises ValueError, on every rank, if others call something else or with another number of samples."""
        source, state = source_of(data), self._current
        if source is None:
            raise UserError("evaluation needs data")
        rows = self.job.data.batch_eval
        group = self.group if self._runner is not None else session.joined()
        check_same_call(group, Call(f"Trainer.evaluate({len(source)} samples)"))
        source = self._prepared(source)
        return evaluate(self.model, state, source, group, rows=rows, transforms=state.progress.transforms)

    def predict(self, x: Any) -> np.ndarray:
        """The model's output for samples ``x`` (rows, ...), computed on this rank alone: logits, for classes.
        ``trained`` predicts labels and probabilities.

        An autoencoder's output is in the units of the data. Raises UserError for samples of another shape."""
        x, state = as_array(x), self._current
        wanted = tuple(self.data.fields["x"].shape)
        if x.shape[1:] != wanted or not x.ndim:
            hint = ": add a batch axis, x[None]" if x.shape == wanted else ""
            raise UserError(
                f"predict takes samples of shape (rows, {', '.join(map(str, wanted))}), got {x.shape}{hint}"
            )
        batch = self._prepared(Arrays(x)).gather(np.arange(len(x)))
        for transform in state.progress.transforms:
            batch = transform(batch, [slice(0, len(x))], [])
        return next(iter(outputs_of(self.model, state, batch, self.job.run.seed).values()))

    @property
    def _state(self) -> TrainingState | None:
        loop = self._runner.loop if self._runner is not None else None
        return loop.state if loop is not None else self._loaded

    @property
    def _current(self) -> TrainingState:
        if self._state is None:
            raise DdlError("there are no parameters before fit() or load()")
        return self._state

    def _task(self, job: Job) -> Task:
        order = order_of(job, len(self.data), self.model)
        groups = self._groups(job, total := steps_of(job, order), order.steps_per_epoch)
        return assemble(
            job,
            self._splits,
            model=self.model,
            order=order,
            optimizer=groups,
            lr=self._learning_rate(job, groups.lr, total),
            total_steps=total,
            clip_norm=job.optim.clip_norm,
            normalise=normalisation(job, self.data),
            augment=augmentations(self.augment, self.data.fields, self.model),
            callbacks=callbacks(self.callbacks),
            knowledge=knowledge_of(job, self._splits, self._notes),
            **({} if self.initial is None else load_values(self.initial)),
        )

    def _groups(self, job: Job, total_steps: int, epoch_steps: int) -> Groups:
        if isinstance(self.optimizer, str):
            return build_groups(job, self.model, total_steps, epoch_steps)
        layout = Layout.of({name: shape for name, (shape, _) in self.model.params.items()}, job.train.dtype)
        freeze = [*job.model.freeze, *self.model.frozen]
        if isinstance(self.optimizer, Whole):
            return self.optimizer.over(layout, self.rules, freeze)
        return Groups(layout, self.optimizer, self.rules, freeze=freeze)

    def _learning_rate(self, job: Job, lr: float, total_steps: int) -> Callable[[int], float]:
        if self.rates is not None:
            rates = self.rates
            return lambda step: float(rates[min(step, len(rates) - 1)])
        if isinstance(self.schedule, str):
            return learning_rate(job, total_steps, lr)
        factor = self.schedule
        factor(max(total_steps - 1, 0))  # a schedule that does not cover all steps should fail now
        return lambda step: lr * factor(step)

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Raises UserError for a setting that an argument says already."""
        free = [*_READ, *(f"optim.{f.name}" for f in fields_of(OptimSettings) if isinstance(self.optimizer, str))]
        for name in settings:
            if name.startswith("parallel."):
                raise UserError(f"{name} is no setting of a Trainer yet: only `python -m ddl.train` trains in stages")
            if name in _ARGUMENTS or (name.startswith(("optim.", "model.")) and name not in free):
                said_by = _ARGUMENTS.get(name, "model, loss, metrics, optimizer, rules")
                raise UserError(f"{name} is no setting of a Trainer: its arguments say that ({said_by})")
        if not isinstance(self.schedule, str):
            if said := sorted(set(settings) & set(_OF_SCHEDULE)):
                raise UserError(f"schedule is a function and says itself what {said[0]} would")
            if not callable(self.schedule):
                raise UserError(f"schedule = {self.schedule!r} is neither a name nor a function of the step")
        if isinstance(self.optimizer, str) and self.rules:
            raise UserError('rules go with an optimizer that is an object; with a name, set "optim.groups"')

    def _prepared(self, source: Source) -> Source:
        """``source`` in the job's type. Bytes are measurements if the model takes such, if they form rows and columns,
        or if they are to be normalised, else token numbers."""
        source = as_source(source) if self._target is None else self._target.apply(as_source(source))
        x = source.fields.get("x")
        is_tokens = self.normalize == "none" and not self._measured
        if x is not None and x.dtype == np.uint8 and len(x.shape) < 2 and is_tokens:
            return source
        return as_dtype(source, self.job.train.dtype, keep=self._keep, measured=self._measured)
