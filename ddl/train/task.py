"""A task: all that a training job computes, as objects. What is settled here does not depend on ranks.

build.py makes one from a job's settings; the Python API makes one from arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ddl.collectives import Tuning
from ddl.data import Order, Source, Transform
from ddl.models.model import Model
from ddl.optim import Groups


@dataclass(frozen=True)
class Task:
    """model ... order: what is learned, from what, in which order. total_steps: where training ends.

    lr: step -> learning rate. parts: micro-batches per step. normalise: "none" or a name that data.moments knows.
    evaluate_every: epochs between evaluations on the validation split (0: only at the end).
    patience: evaluations without improvement after which training ends (0: never).
    callbacks: called on the leader with the Outcome of each step, in order and at least once: when the leader dies, the
    next one calls them with the last committed step, whether the one before had come to that or not.
    limits: skip_limit, check_every (steps between comparisons of replicas; 0: never)."""

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
    evaluate_rows: int = 256
    evaluate_every: int = 1
    patience: int = 0
    skip_limit: int = 10
    check_every: int = 0
    algorithm: str = "auto"
    bucket_mib: float = 4.0
    overlap: Literal["auto", "on", "off"] = "auto"
    gpu: Literal["auto", "direct", "staged"] = "auto"
    sharded: Literal["auto", "on", "off"] = "auto"
    tuning: Tuning | None = None
    callbacks: Sequence[Any] = ()  # called with each step's outcome; may have on_epoch(epoch, results), on_end(results)
    initial: Callable[[Any], list[str]] | None = None  # changes the fresh state, and says what people should know of it
    settings: dict[str, Any] = field(default_factory=dict)  # plain values that the checkpoint keeps beside the state

    @property
    def epochs(self) -> float:
        return self.total_steps / self.order.steps_per_epoch
