"""A trained run: its model and the state of one of its checkpoints; evaluated or asked for predictions.

The doors are ddl/evaluate.py and ddl/predict.py; both spread their work over the ranks they are started on. loaded.py
answers a script that has the samples in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ddl.arrays import Arena, Device, device, host
from ddl.checkpoint import Store
from ddl.comm import Group
from ddl.config import Job
from ddl.config import read as read_config
from ddl.config.trust import OPENING, refuse_code
from ddl.data import ImageSettings, Inputs, Known, Normalise, Source, compare
from ddl.errors import CheckpointError, ConfigError, DdlError, UserError
from ddl.models import Model, Numbers
from ddl.nn import Context
from ddl.nn.metric import ConfusionMatrix
from ddl.registry import UNNAMED
from ddl.run.meaning import Meaning
from ddl.run.plots import samples
from ddl.run.predictions import Column, ColumnGroup, Predictions
from ddl.train.build import knowledge_of
from ddl.train.datasets import build_data, table_settings
from ddl.train.evaluate import batches, evaluate, own_samples
from ddl.train.initial import choose_checkpoint
from ddl.train.saved import check_shapes, model_of, state_of, understand
from ddl.train.state import Progress, TrainingState

T = TypeVar("T")
PLAIN: Mapping[str, Any] = {"header": True, "delimiter": ",", "decimal": "."}  # options of a CSV file


def together(group: Group, action: Callable[[], T]) -> T:
    """Run ``action`` on every rank. An error on any rank is raised on all of them, so that none keeps waiting."""
    value: T | None = None
    problem: DdlError | None = None
    try:
        value = action()
    except UserError as error:
        problem = error
    for found in group.gather_objects(problem):
        if found is not None:
            raise found
    return value  # type: ignore[return-value]


def local_rank(group: Group) -> int:
    """This rank's number among those of its node."""
    return group.local_ranks.index(group.rank)


class Trained:
    """A model and the state that training left it in. ``open`` reads both from a checkpoint; a Trainer has its own.

    meta: what the checkpoint keeps beside the arrays. checkpoint: which one it is, in words."""

    def __init__(
        self, folder: Path, job: Job, model: Model, state: TrainingState, meta: Mapping[str, Any], checkpoint: str
    ):
        self.folder, self.job, self.model, self.state, self.meta = folder, job, model, state, meta
        self.checkpoint = f"{checkpoint}, step {state.progress.step:,}"
        self.known = Known.from_json(meta["knowledge"]["data"])

    @classmethod
    def open(
        cls,
        run: str | Path,
        checkpoint: str = "final",
        local_rank: int | None = None,
        say: Callable[[str], None] = lambda message: None,
        trust: bool = False,
        network: Any = None,
    ) -> Trained:
        """Load a run from its checkpoint alone; the training data need not exist any more.

        checkpoint: as in ``choose_checkpoint``. local_rank: where ranks take GPUs in turn, this one's number on its
        node; None computes on the CPU. say: called for each checkpoint passed over. trust: import and run the code that
        the run names; else such a run is refused. Everything else in a run is read as data and never executed. network:
        takes the place of the model that the run names, if only a script can make that. Raises ConfigError for a folder
        that holds no run, and for a run whose model only its own script can make."""
        folder = Path(run)
        try:
            job: Job = read_config(folder / "config.toml")
        except (OSError, ConfigError) as error:
            raise ConfigError(f"{str(run)!r} is not a run's folder: {error}") from error
        if not trust:
            refuse_code(job, OPENING, f"run {str(run)!r}")
        metrics = tuple(name for name in job.model.metrics if not name.startswith(UNNAMED))
        if len(metrics) < len(job.model.metrics):
            say(f"metrics of the script that trained {str(run)!r} are left out")
            job = replace(job, model=replace(job.model, metrics=metrics))
        store = Store(folder / "checkpoints", say=say)
        try:
            path, kind = choose_checkpoint(folder, checkpoint, store)
            arrays, meta = store.load(path, understand)
        except CheckpointError as error:
            raise ConfigError(f"run {str(run)!r}: {error}") from error
        if "knowledge" not in meta:  # a checkpoint of before they kept it
            meta["knowledge"] = json.loads(json.dumps(knowledge_of(job, build_data(job))))
        known = Known.from_json(meta["knowledge"]["data"])
        try:
            model = model_of(job, known.fields, meta["knowledge"]["options"], known.target, network)
        except ConfigError as error:
            raise ConfigError(f"run {str(run)!r}: {error}") from error
        where = Device()
        if local_rank is not None and job.comm.device != "cpu" and not model.on_host:
            where = device("auto", local_rank)
        state = state_of(model, job, arrays, where, f"run {str(run)!r}")
        state.progress.become(Progress.from_json(meta["progress"]))
        return cls(folder, job, model, state, meta, f"{kind} checkpoint")

    @cached_property
    def meaning(self) -> Meaning:
        """What the model's outputs mean."""
        return Meaning.of(self.model, self.known)

    @property
    def transforms(self) -> Sequence[Any]:
        return self.state.progress.transforms

    def split(self, name: str) -> Source:
        """The run's own "train", "validation" or "test" samples. Raises ConfigError if there are none of that name, or
        they cannot be loaded any more."""
        try:
            splits = build_data(self.job)
            found = json.loads(json.dumps(knowledge_of(self.job, splits)))
        except UserError as error:
            raise ConfigError(
                f"run {str(self.folder)!r}: its own {name} split cannot be opened: {error}; --input FILE evaluates on "
                "other samples"
            ) from error
        wrong, changed = compare(self.meta["knowledge"]["data"], found["data"])
        if found["samples"] != self.meta["knowledge"]["samples"]:
            wrong.append(f"there were {self.meta['knowledge']['samples']} samples and are {found['samples']}")
        if wrong or changed:
            raise ConfigError(
                f"run {str(self.folder)!r}: its data changed since training: {'; '.join(wrong + changed)}"
            )
        source: Source | None = getattr(splits, name)
        if source is None:
            raise ConfigError(f"run {str(self.folder)!r} has no {name} split")
        return source

    def open_inputs(self, path: str, labelled: bool = False, targets: str = "", is_plain: bool = False) -> Source:
        """Samples from a file or folder, in any format that training reads, numbered as the training data were.

        labelled: with their targets; targets: the file or columns that hold them, if they differ from the job's.
        is_plain: the file is UTF-8 CSV with names, commas and decimal points, whatever the job's files are.
        Raises UserError if they do not match."""
        data, table = self.job.data, table_settings(self.job)
        is_file = data.source == "files"
        # A job's file of targets belongs to its own samples; columns are named alike in another file.
        columns = data.targets if is_file and not Path(data.targets).is_absolute() else ""
        inputs = Inputs(
            format=data.format if is_file else "auto",
            columns=columns,
            targets=targets,
            options=PLAIN if is_plain else data.options if is_file else {},
            is_labelled=labelled,
            dtype=self.job.train.dtype,
            table=replace(table, encoding="") if is_plain else table,
            images=ImageSettings(damaged=data.damaged),
        )
        return inputs.open(path, self.known)

    def evaluate(self, source: Source, group: Group) -> dict[str, Any]:
        """Loss and metrics over ``source``, the same on every rank; with the confusion matrix if there are classes."""
        model = self.model.also_measuring(ConfusionMatrix()) if self.has_classes else self.model
        rows = self.job.data.batch_eval
        return evaluate(model, self.state, source, group, rows=rows, transforms=self.transforms)

    @property
    def has_classes(self) -> bool:
        """Whether each sample has one class."""
        return self.meaning.has_classes and "y" in self.known.fields and self.known.fields["y"].shape == ()

    @property
    def symbols(self) -> Any:
        """How text becomes the model's tokens and back; plain numbers if the run was not trained on text."""
        return self.known.symbols or Numbers()

    @property
    def takes_text(self) -> bool:
        """Whether a line of text is a sample."""
        return self.encode is not None

    @cached_property
    def encode(self) -> Callable[[str], np.ndarray] | None:
        """What turns a line of text into x."""
        return self.known.encode

    def refuse_text(self) -> None:
        """Raises ConfigError unless the run takes lines of text."""
        if not self.takes_text:
            hint = "; --prompt TEXT continues one" if self.known.symbols is not None else ""
            raise ConfigError(f"run {str(self.folder)!r} was not trained on lines of text{hint}")

    def refuse_generator(self) -> None:
        """Raises ConfigError for a model that takes no inputs, such as a GAN."""
        if self.model.generates:
            raise ConfigError(
                f"run {str(self.folder)!r} is of model {self.job.model.name!r}, which predicts nothing about samples: "
                "--samples N draws new ones"
            )

    def draw(self, count: int, seed: int) -> np.ndarray:
        """``count`` samples of a generator, in the units of the data. Raises ConfigError if the model draws none."""
        if not self.model.generates:
            raise ConfigError(f"run {str(self.folder)!r} is of model {self.job.model.name!r}, which draws no samples")
        return samples(self.model, self.state, count, seed)

    def predict(self, source: Source, group: Group, *, raw: bool = False, targets: bool = False) -> Predictions | None:
        """The prediction for each sample of ``source``, in its order, on the leader; None on other ranks.

        raw: outputs as the model computes them, such as logits. targets: the true answers beside them. Values, and the
        reconstructions of an autoencoder, are in the units of the data."""
        own = own_samples(source, group)
        pieces = group.gather_objects(together(group, lambda: list(self._answers(source, own, raw, targets))))
        return Predictions.joined([part for piece in pieces for part in piece]) if group.is_leader else None

    def _answers(
        self, source: Source, own: range, raw: bool, targets: bool
    ) -> Iterator[dict[str, Column | ColumnGroup]]:
        heading, names = source.identifiers()
        source.hold([own])
        start = own.start
        for batch in batches(source, own, self.job.data.batch_eval, self.transforms):
            stop = start + len(batch["x"])
            answers = self._answered(batch, raw, targets)
            if heading in answers:
                raise ConfigError(
                    f"the predictions have a column {heading!r} themselves: rename the column that names the samples"
                )
            yield {heading: names[start:stop], **answers}
            start = stop

    def _answered(self, batch: Mapping[str, np.ndarray], raw: bool, targets: bool) -> dict[str, Column | ColumnGroup]:
        outputs = outputs_of(self.model, self.state, batch, self.job.run.seed)
        first, *others = outputs
        of_first = outputs[first]
        found: dict[str, Column | ColumnGroup] = {}
        if targets and "y" in batch and not self.model.reconstructs:
            found.update(self.meaning.truths(batch["y"], of_first.shape[-1]))
        if self.model.reconstructs:
            x = batch["x"] if not self.transforms else self.transforms[0].undo(batch["x"])
            error = np.square(of_first.astype(np.float64) - x).reshape(len(x), -1).mean(axis=1)
            found["error"] = np.sqrt(error)
        found.update(self.meaning.columns(of_first, raw))
        for name in others:
            values = outputs[name]
            found[name] = values.reshape(len(values)) if values.size == len(values) else values
        return found

    def worst(self, source: Source, group: Group, count: int) -> Predictions | None:
        """The ``count`` samples with the largest loss, the largest first, with their targets; on the leader.

        Raises ConfigError if the model has no loss of single samples."""
        if self.model.generates:
            raise ConfigError(f"model {self.job.model.name!r} has no worst samples: it generates new ones")
        pieces = group.gather_objects(together(group, lambda: self._worst(source, own_samples(source, group), count)))
        if not group.is_leader:
            return None
        return Predictions.joined([piece for piece in pieces if piece]).largest("loss", count)

    def _worst(self, source: Source, own: range, count: int) -> dict[str, Column | ColumnGroup]:
        heading, names = source.identifiers()
        source.hold([own])
        start, found = own.start, None
        for batch in batches(source, own, self.job.data.batch_eval, self.transforms):
            stop = start + len(batch["x"])
            losses = losses_of(self.model, self.state, batch)
            columns = {heading: names[start:stop], "loss": losses, **self._answered(batch, False, True)}
            pieces = [columns] if found is None else [found.columns, columns]
            found, start = Predictions.joined(pieces).largest("loss", count), stop
        return {} if found is None else dict(found.columns)


def read_arrays(run: Path, checkpoint: str, model: Model) -> tuple[dict[str, np.ndarray], Progress]:
    """The parameters and averages of a run's checkpoint, below "params/" and "averages/", and its progress.

    Raises ConfigError if there is none, or a parameter of ``model`` is missing or of another shape."""
    store = Store(run / "checkpoints")
    try:
        arrays, meta = store.load(choose_checkpoint(run, checkpoint, store)[0], understand)
    except CheckpointError as error:
        raise ConfigError(f"run {str(run)!r}: {error}") from error
    wanted = {name: value for name, value in arrays.items() if name.startswith(("params/", "averages/"))}
    check_shapes(model, wanted, f"run {str(run)!r}")
    return wanted, Progress.from_json(meta["progress"])


def outputs_of(
    model: Model, state: TrainingState, batch: Mapping[str, np.ndarray], seed: int = 0
) -> dict[str, np.ndarray]:
    """The model's outputs on the host for one transformed batch; reconstructions of x are not normalised."""
    rows = len(next(iter(batch.values())))
    context = Context(segments=[slice(0, rows)], shards=[0], seed=seed, arena=Arena(state.device.xp))
    inputs = {name: state.device.array(value) for name, value in batch.items()}
    outputs = model.predict(state.params.views, state.buffers, inputs, context)
    found = {name: np.array(host(value)) for name, value in outputs.items()}
    normalise = state.progress.normalise
    if normalise is not None and model.reconstructs:
        found["output"] = Normalise.from_json(normalise).undo(found["output"])
    return found


def losses_of(model: Model, state: TrainingState, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """The loss of each sample of one transformed batch: (rows,) float64."""
    rows = len(batch["x"])
    context = Context(segments=[slice(0, rows)], shards=[0], arena=Arena(state.device.xp))
    inputs = {name: state.device.array(value) for name, value in batch.items()}
    return model.losses(state.params.views, state.buffers, inputs, context)
