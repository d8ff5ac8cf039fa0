"""Distillation: a finished run, the teacher, answers the samples that another model learns from.

The loss that uses its answers is ``Taught`` (ddl/nn/losses.py). Without augmentation each answer is computed once and
kept beside its sample; with it, an answer is that to the sample as it was augmented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import Arena, Device
from ddl.checkpoint import Store
from ddl.config import Job
from ddl.config import read as read_config
from ddl.config.folder import holds_run
from ddl.config.trust import OPENING, is_of_another_user, refuse_code
from ddl.data import Field, Known, Source, Transform, Wrapper, as_source, compare
from ddl.data.held import Held
from ddl.errors import CheckpointError, ConfigError
from ddl.models import Model, Supervised
from ddl.nn import Context
from ddl.nn.losses import CrossEntropy, Taught
from ddl.nn.metric import BitsPerByte, Perplexity
from ddl.registry import adapt
from ddl.train.initial import choose_checkpoint
from ddl.train.saved import model_of, state_of, understand
from ddl.train.state import Progress, TrainingState

FIELD = "teacher"  # of a batch: the teacher's answers
MOST_KEPT = 1 << 29  # bytes of answers that a rank keeps for the shards it holds


class Teacher:
    """A trained model and its state, which answer on the CPU. dtype: of its answers. digest: of its parameters."""

    def __init__(self, model: Supervised, state: TrainingState, dtype: str):
        self.model, self.state, self.dtype = model, state, np.dtype(dtype)
        self.digest = state.parameters_digest()

    @property
    def field(self) -> Field:
        """What it adds to a sample."""
        return Field(tuple(self.model.spec.output), self.dtype)

    def answers(self, batch: Mapping[str, np.ndarray], before: Sequence[Any] = ()) -> np.ndarray:
        """Its logits, (rows, ..., classes). before: what the student's samples have gone through already; the
        normalisation among it is undone, since the teacher has its own."""
        x = batch["x"]
        for transform in before:
            x = transform.undo(x)
        own: Any = {name: value for name, value in batch.items() if name == "categories"}
        own["x"] = x.astype(self.state.params.flat.dtype) if x.dtype.kind == "f" else x
        for transform in self.state.progress.transforms:
            own = transform(own, [slice(0, len(x))], [])
        context = Context(segments=[slice(0, len(x))], shards=[0], arena=Arena(np))
        output = self.model.predict(self.state.params.views, self.state.buffers, own, context)["output"]
        return np.asarray(output, self.dtype)

    def after(self, transforms: Sequence[Any]) -> Transform:
        """The transform that adds its answers to a batch that went through ``transforms`` and augmentation."""

        def teach(batch: dict[str, np.ndarray], segments: Any, generators: Any) -> dict[str, np.ndarray]:
            batch[FIELD] = self.answers(batch, transforms)
            return batch

        return adapt(teach, Transform)

    def taught(self, student: Supervised, temperature: float, alpha: float) -> Supervised:
        """``student`` with a loss that also takes the teacher's answers."""
        assert isinstance(student.loss, CrossEntropy)
        loss = Taught(student.loss.label_smoothing, student.loss.class_weights, temperature, alpha)
        # The loss is no longer the cross-entropy from which a perplexity could be computed.
        metrics = [
            replace(m, of_outputs=True) if isinstance(m, Perplexity | BitsPerByte) else m for m in student.metrics
        ]
        return replace(student, loss=loss, metrics=metrics)


class Answered(Wrapper):
    """The samples of ``source`` with the teacher's answers. Each is computed when it is first gathered, and kept as
    long as its shard is held: a rank that takes over a shard computes the same answers again."""

    def __init__(self, source: Source, teacher: Teacher):
        super().__init__(as_source(source))
        self.teacher = teacher
        self._held = Held([])
        self._kept: np.ndarray | None = None  # None: too large to keep
        self._known = np.zeros(0, bool)

    @property
    def fields(self) -> Mapping[str, Field]:
        return {**self.source.fields, FIELD: self.teacher.field}

    def hold(self, ranges: Sequence[range]) -> None:
        super().hold(ranges)
        self._held, field = Held(ranges), self.teacher.field
        count = len(self._held)
        is_kept = count * prod(field.shape) * field.dtype.itemsize <= MOST_KEPT
        self._kept = np.empty((count, *field.shape), field.dtype) if is_kept else None
        self._known = np.zeros(count, bool)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = super().gather(indices)
        # Two threads may compute the same answers at once: they write equal values, and mark them afterwards.
        kept, known = self._kept, self._known
        if kept is None:
            batch[FIELD] = self.teacher.answers(batch)
            return batch
        places = self._held.places(indices)
        if len(new := np.flatnonzero(~known[places])):
            kept[places[new]] = self.teacher.answers({name: value[new] for name, value in batch.items()})
            known[places[new]] = True
        batch[FIELD] = kept[places]
        return batch


def open_teacher(job: Job, student: Model, knowledge: Mapping[str, Any]) -> Teacher | None:
    """The run that ``model.teacher`` names; None if the setting is empty.

    knowledge: of the student's data. Raises ConfigError if the run cannot be opened, if it was trained on samples or
    classes of another form, or if either model does not decide between classes."""
    if not job.model.teacher:
        return None
    what, folder = f"model.teacher = {job.model.teacher!r}", Path(job.model.teacher)
    if not isinstance(student, Supervised) or not isinstance(student.loss, CrossEntropy):
        raise ConfigError(f"{what}: a teacher needs a network of ddl.nn and loss cross_entropy")
    if not holds_run(folder):
        raise ConfigError(f"{what} is not a run's folder")
    if is_of_another_user(folder / "config.toml"):
        refuse_code(read_config(folder / "config.toml"), OPENING, f"{what}, another user's run,")
    try:
        of_teacher = read_config(folder / "config.toml")
        store = Store(folder / "checkpoints")
        arrays, meta = store.load(choose_checkpoint(folder, "final", store)[0], understand)
    except (OSError, CheckpointError) as error:
        raise ConfigError(f"{what}: {error}") from error
    if "knowledge" not in meta:
        raise ConfigError(f"{what}: its checkpoints do not say what its data were; train it again")
    wrong, _ = compare(meta["knowledge"]["data"], knowledge["data"])
    if wrong:
        raise ConfigError(f"{what} learned from other data: {'; '.join(wrong)}")
    known = Known.from_json(meta["knowledge"]["data"])
    model = model_of(of_teacher, known.fields, meta["knowledge"]["options"], known.target)
    if not isinstance(model, Supervised) or model.output_kind != "logits":
        raise ConfigError(f"{what}: its model does not decide between classes")
    if model.spec.output != student.spec.output:
        raise ConfigError(f"{what}: its outputs are {model.spec.output}, the model's are {student.spec.output}")
    state = state_of(model, of_teacher, arrays, Device(), what)
    state.progress.become(Progress.from_json(meta["progress"]))
    return Teacher(model, state, job.train.dtype)
