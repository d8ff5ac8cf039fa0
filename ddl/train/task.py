"""A task: what a training job computes, as objects that do not depend on the number of ranks; and its callbacks.

build.py makes one from settings, run/trainer.py from the arguments of a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ddl.collectives import Tuning
from ddl.data import Order, Source, Transform
from ddl.models.model import Model
from ddl.optim import Groups, LearningRate
from ddl.pipeline import Pipeline
from ddl.registry import adapt


class Callback:
    """Code that the leader calls during training. Any callable, or object with one of these methods, serves as one.

    Each step, epoch and end is reported at least once: when the leader dies, the next leader reports the last one
    again, because it cannot know whether the previous leader did. results: split -> metrics."""

    def __call__(self, outcome: Any) -> None:
        """After each committed step, with its Outcome (ddl/train/step.py)."""

    def on_epoch(self, epoch: int, results: dict[str, dict[str, Any]]) -> None:
        """After each epoch, counted from 1, and its evaluation."""

    def on_end(self, results: dict[str, dict[str, Any]]) -> None:
        """After training has finished."""


class Teaches(Protocol):
    """A model that answers training samples, for another one that learns from it (teacher.py)."""

    def after(self, transforms: Sequence[Transform]) -> Transform:
        """The transform that adds its answers to a batch that went through ``transforms`` and augmentation."""
        ...


@dataclass(frozen=True)
class Task:
    """model ... order: what is trained, on which data, in which order. total_steps: where training ends.

    lr: step -> learning rate. parts: micro-batches per step. normalise: "none" or a name in data.moments.
    evaluate_every: epochs between evaluations on the validation split (0: only at the end).
    patience: evaluations without improvement after which training ends (0: never).
    restore_best: training ends with the state of the best validation loss, not with the newest.
    check_every: steps between comparisons of replicas (0: never). balance: shards move to faster ranks.
    mixed: forward and backward compute in float16.
    resume_schedule: what becomes of the schedule if training is resumed with another number of steps.
    teacher: adds its answers to each batch after augmentation. teacher_digest: of the teacher, on every rank.
    initial: changes the fresh state and returns messages for the user. initial_digest: of the values that it sets, if
    each rank has its own copy of them.
    pipeline: how the model is cut into stages, if it is.
    settings: plain values that the checkpoint keeps beside the state."""

    model: Model
    train: Source
    validation: Source | None
    test: Source | None
    order: Order
    optimizer: Groups
    lr: Callable[[int], float]
    total_steps: int
    dtype: str = "float32"
    seed: int = 0
    parts: int = 1
    clip_norm: float = 0.0
    normalise: str = "none"
    augment: Sequence[Transform] = ()
    prefetch: int = 2
    evaluate_rows: int | str = "auto"
    evaluate_every: int = 1
    patience: int = 0
    restore_best: bool = False
    skip_limit: int = 10
    check_every: int = 0
    balance: bool = False
    mixed: bool = False
    resume_schedule: Literal["rescale", "restart", "hold"] = "rescale"
    algorithm: str = "auto"
    bucket_mib: float = 4.0
    overlap: Literal["auto", "on", "off"] = "auto"
    gpu: Literal["auto", "direct", "staged"] = "auto"
    wire: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    sharded: Literal["auto", "on", "off"] = "auto"
    tuning: Tuning | None = None
    callbacks: Sequence[Callback] = ()
    teacher: Teaches | None = None
    teacher_digest: str = ""
    initial: Callable[[Any], list[str]] | None = None
    initial_digest: str = ""
    pipeline: Pipeline | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "callbacks", [adapt(one, Callback) for one in self.callbacks])
        object.__setattr__(self, "model", adapt(self.model, Model))

    def lr_over(self, span: Sequence[int]) -> Callable[[int], float]:
        """step -> learning rate, where the schedule is made for the steps of ``span``; empty: for all steps."""
        return self.lr.over(*span) if span and isinstance(self.lr, LearningRate) else self.lr

    @property
    def early_steps(self) -> int:
        """The first epoch, or the first half of a run of less than two: the loss at the end is compared with theirs."""
        return min(self.order.steps_per_epoch, max(self.total_steps // 2, 1))

    @property
    def epochs(self) -> float:
        return self.total_steps / self.order.steps_per_epoch
