"""A trained run: its settings, its data and the state of one of its checkpoints; evaluated or asked for outputs.

The doors are ddl/evaluate.py and ddl/predict.py; both spread their work over the ranks they are started on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ddl.arrays import Device, host
from ddl.checkpoint import Store
from ddl.comm import Group
from ddl.config import Job
from ddl.config import read as read_config
from ddl.data import Normalise, Source, open_dataset
from ddl.errors import CheckpointError, ConfigError, DataError, DdlError, UserError
from ddl.models import GAN, Model
from ddl.nn import Context
from ddl.train.build import build_task
from ddl.train.evaluate import batches, evaluate, own_samples
from ddl.train.pictures import samples
from ddl.train.state import Progress, State
from ddl.train.task import Task

T = TypeVar("T")


def together(group: Group, action: Callable[[], T]) -> T:
    """Do something on every rank. A mistake that any of them meets is raised on all alike, so that none waits alone."""
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


class Trained:
    """checkpoint: "newest", "best" or a checkpoint's folder. say: told which checkpoints were passed over.
    Raises ConfigError for a folder that holds no run."""

    def __init__(
        self,
        run: str | Path,
        checkpoint: str = "newest",
        device: Device | None = None,
        say: Callable[[str], None] = lambda message: None,
    ):
        self.folder = Path(run)
        try:
            self.job: Job = read_config(self.folder / "config.toml")
        except (OSError, ConfigError) as error:
            raise ConfigError(f"{str(run)!r} is not a run's folder: {error}") from error
        self.task: Task = build_task(self.job)
        self.model: Model = self.task.model
        self.device = device or Device()
        self.state = State(self.model, self.task.optimizer.slots, self.task.dtype, self.task.seed, self.device)
        store = Store(self.folder / "checkpoints", say=say)
        try:
            path = {"newest": None, "best": store.best()}.get(checkpoint, Path(checkpoint))
            if path is None and checkpoint == "best":
                raise CheckpointError("no checkpoint was evaluated, so none is the best")
            arrays, meta = store.load(path)
            self.state.load_named(arrays)
        except (CheckpointError, ValueError) as error:
            raise ConfigError(f"run {str(run)!r}: {error}") from error
        self.state.progress.become(Progress.from_json(meta["progress"]))

    @property
    def transforms(self) -> Sequence[Any]:
        known = self.state.progress.normalise
        return [] if known is None else [Normalise.from_json(known)]

    def split(self, name: str) -> Source:
        """The run's own "train", "validation" or "test" samples. Raises ConfigError where it has none of that name."""
        source: Source | None = getattr(self.task, name)
        if source is None:
            raise ConfigError(f"run {str(self.folder)!r} has no {name} split")
        return source

    def open_inputs(self, path: str) -> Source:
        """Samples from a file or folder, in any format that training reads. Raises UserError when they do not fit."""
        format = self.job.data.format if self.job.data.source == "files" else "auto"
        source = open_dataset("files", path=path, format=format, validation=0.0, test=0.0, dtype=self.task.dtype).train
        wanted, found = self.task.train.fields["x"].shape, source.fields["x"].shape
        if wanted != found:
            raise DataError(f"holds samples of shape {found}, the run was trained on {wanted}", path)
        return source

    def evaluate(self, source: Source, group: Group) -> dict[str, Any]:
        """Loss and metrics over ``source``, the same on every rank."""
        return evaluate(self.model, self.state, source, group, rows=self.task.evaluate_rows, transforms=self.transforms)

    @property
    def symbols(self) -> Any:
        """How the run's data number text; None where they do not (bytes are then taken)."""
        source: Any = self.task.train
        while not hasattr(source, "symbols") and hasattr(source, "source"):
            source = source.source
        return getattr(source, "symbols", None)

    def draw(self, count: int, seed: int) -> np.ndarray:
        """``count`` samples of a generator, in the units of the data. Raises ConfigError where a model draws none."""
        if not isinstance(self.model, GAN):
            raise ConfigError(f"run {str(self.folder)!r} is of model {self.job.model.name!r}, which draws no samples")
        return samples(self.model, self.state, count, seed)

    def predict(self, source: Source, group: Group) -> Mapping[str, np.ndarray] | None:
        """Outputs by name for all of ``source``, in its order, on the leader; None on other ranks."""
        pieces = group.gather_objects(together(group, lambda: self._outputs(source, own_samples(source, group))))
        if not group.is_leader:
            return None
        names = dict.fromkeys(name for piece in pieces for name in piece)
        return {name: np.concatenate([piece[name] for piece in pieces if name in piece]) for name in names}

    def _outputs(self, source: Source, own: range) -> dict[str, np.ndarray]:
        source.hold([own])
        parts: dict[str, list[np.ndarray]] = {}
        for batch in batches(source, own, self.task.evaluate_rows, self.transforms):
            rows = len(next(iter(batch.values())))
            context = Context(training=False, segments=[slice(0, rows)], shards=[0], seed=self.task.seed)
            inputs = {name: self.device.array(value) for name, value in batch.items()}
            outputs = self.model.predict(self.state.params.views, self.state.averages.views, inputs, context)
            for name, value in outputs.items():
                parts.setdefault(name, []).append(np.array(host(value)))
        return {name: np.concatenate(values) for name, values in parts.items()}
