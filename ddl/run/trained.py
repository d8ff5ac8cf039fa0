"""A trained run: its model and the state of one of its checkpoints; evaluated or asked for outputs.

The doors are ddl/evaluate.py and ddl/predict.py; both spread their work over the ranks they are started on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ddl.arrays import Arena, Device, device, host
from ddl.checkpoint import Store
from ddl.comm import Group
from ddl.config import Job
from ddl.config import read as read_config
from ddl.config.trust import OPENING, refuse_code
from ddl.data import Inputs, Known, Normalise, Source, compare
from ddl.errors import CheckpointError, ConfigError, DdlError, UserError
from ddl.models import Model, Numbers
from ddl.nn import Context
from ddl.run.plots import samples
from ddl.run.resume import understand
from ddl.train.build import knowledge_of, model_of
from ddl.train.datasets import build_data, table_settings
from ddl.train.evaluate import batches, evaluate, own_samples
from ddl.train.state import Progress, State

T = TypeVar("T")


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
    """A trained run, loaded from its checkpoint alone; the training data need not exist any more.

    checkpoint: "newest", "best" or a checkpoint's folder. local_rank: where ranks take GPUs in turn, this one's number
    on its node; None computes on the CPU. say: called for each checkpoint passed over. trust: import and run the code
    that the run names; else such a run is refused. Everything else in a run is read as data and never executed.
    Raises ConfigError for a folder that holds no run, and for a run whose model only its own script can make."""

    def __init__(
        self,
        run: str | Path,
        checkpoint: str = "newest",
        local_rank: int | None = None,
        say: Callable[[str], None] = lambda message: None,
        trust: bool = False,
    ):
        self.folder = Path(run)
        try:
            self.job: Job = read_config(self.folder / "config.toml")
        except (OSError, ConfigError) as error:
            raise ConfigError(f"{str(run)!r} is not a run's folder: {error}") from error
        if not trust:
            refuse_code(self.job, OPENING, f"run {str(run)!r}")
        store = Store(self.folder / "checkpoints", say=say)
        try:
            path = None if checkpoint == "newest" else store.best() if checkpoint == "best" else Path(checkpoint)
            if path is None and checkpoint == "best":
                raise CheckpointError("no checkpoint was evaluated, so none is the best")
            arrays, meta = store.load(path, understand)
        except CheckpointError as error:
            raise ConfigError(f"run {str(run)!r}: {error}") from error
        knowledge = meta.get("knowledge")
        if knowledge is None:  # a checkpoint of before they kept it
            knowledge = json.loads(json.dumps(knowledge_of(self.job, build_data(self.job))))
        self._knowledge = knowledge
        self.known = Known.from_json(knowledge["data"])
        try:
            self.model: Model = model_of(self.job, self.known.fields, knowledge["options"], self.known.target)
        except ConfigError as error:
            raise ConfigError(f"run {str(run)!r}: {error}") from error
        self.device = Device()
        if local_rank is not None and self.job.comm.device != "cpu" and not self.model.on_host:
            self.device = device("auto", local_rank)
        wanted = {name: value for name, value in arrays.items() if name.startswith(("params/", "averages/"))}
        for name, (shape, _) in self.model.params.items():  # before memory is allocated, which may be any amount
            saved = wanted.get(f"params/{name}")
            if saved is None or saved.shape != tuple(shape):
                was = "missing" if saved is None else f"of shape {saved.shape}"
                raise ConfigError(f"run {str(run)!r}: {name} was saved as {was}, its model needs {tuple(shape)}")
        try:
            self.state = State(self.model, (), self.job.train.dtype, self.job.run.seed, self.device)
            self.state.load_named(wanted)
        except (ValueError, MemoryError) as error:
            raise ConfigError(f"run {str(run)!r}: {error}") from error
        self.state.progress.become(Progress.from_json(meta["progress"]))

    @property
    def transforms(self) -> Sequence[Any]:
        known = self.state.progress.normalise
        return [] if known is None else [Normalise.from_json(known)]

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
        wrong, changed = compare(self._knowledge["data"], found["data"])
        if found["samples"] != self._knowledge["samples"]:
            wrong.append(f"there were {self._knowledge['samples']} samples and are {found['samples']}")
        if wrong or changed:
            raise ConfigError(
                f"run {str(self.folder)!r}: its data changed since training: {'; '.join(wrong + changed)}"
            )
        source: Source | None = getattr(splits, name)
        if source is None:
            raise ConfigError(f"run {str(self.folder)!r} has no {name} split")
        return source

    def open_inputs(self, path: str, labelled: bool = False, targets: str = "") -> Source:
        """Samples from a file or folder, in any format that training reads, numbered as the training data were.

        labelled: with their targets; targets: the file or columns that hold them, if they differ from the job's.
        Raises UserError if they do not match."""
        data = self.job.data
        is_file = data.source == "files"
        # A job's file of targets belongs to its own samples; columns are named alike in another file.
        columns = data.targets if is_file and not Path(data.targets).is_absolute() else ""
        inputs = Inputs(
            format=data.format if is_file else "auto",
            columns=columns,
            targets=targets,
            options=data.options if is_file else {},
            is_labelled=labelled,
            dtype=self.job.train.dtype,
            table=table_settings(self.job),
        )
        return inputs.open(path, self.known)

    def evaluate(self, source: Source, group: Group) -> dict[str, Any]:
        """Loss and metrics over ``source``, the same on every rank."""
        return evaluate(
            self.model, self.state, source, group, rows=self.job.data.batch_eval, transforms=self.transforms
        )

    @property
    def symbols(self) -> Any:
        """How text becomes the model's tokens and back; plain numbers if the run was not trained on text."""
        return self.known.symbols or Numbers()

    def draw(self, count: int, seed: int) -> np.ndarray:
        """``count`` samples of a generator, in the units of the data. Raises ConfigError if the model draws none."""
        if not self.model.generates:
            raise ConfigError(f"run {str(self.folder)!r} is of model {self.job.model.name!r}, which draws no samples")
        return samples(self.model, self.state, count, seed)

    def predict(self, source: Source, group: Group) -> Mapping[str, np.ndarray] | None:
        """Outputs by name for all of ``source``, in its order, on the leader; None on other ranks.

        The reconstructions of an autoencoder are in the units of the data."""
        pieces = group.gather_objects(together(group, lambda: self._outputs(source, own_samples(source, group))))
        if not group.is_leader:
            return None
        names = dict.fromkeys(name for piece in pieces for name in piece)
        return {name: np.concatenate([piece[name] for piece in pieces if name in piece]) for name in names}

    def _outputs(self, source: Source, own: range) -> dict[str, np.ndarray]:
        source.hold([own])
        parts: dict[str, list[np.ndarray]] = {}
        for batch in batches(source, own, self.job.data.batch_eval, self.transforms):
            outputs = outputs_of(self.model, self.state, batch, self.job.run.seed)
            for name, value in outputs.items():
                parts.setdefault(name, []).append(value)
        return {name: np.concatenate(values) for name, values in parts.items()}


def outputs_of(model: Model, state: State, batch: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
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
