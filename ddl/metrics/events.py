"""Events that training emits, as frozen values; their fields give the names and units used in files.

hub.py passes them to the sinks; ddl/train decides when to emit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """The root. ``kind`` is what ``event`` says in metrics.jsonl; fields go beside it under their own names."""

    kind: ClassVar[str] = ""

    def values(self) -> dict[str, Any]:
        """Field -> value; metrics of any name are lifted to the top, where they hide no field."""
        known = dict(self.__dict__)
        metrics = known.pop("metrics", None)
        return {**metrics, **known} if metrics else known


@dataclass(frozen=True)
class JobStarted(Event):
    """The job starts, or resumes after ``step``. hosts: host -> ranks on it.

    data: what was decided when the data were read, one line each."""

    kind: ClassVar[str] = "start"
    name: str
    folder: str
    launch: str
    ranks: int
    spares: int
    hosts: Mapping[str, int]
    device: str
    model: str
    parameters: int
    samples: int
    shards: int
    global_batch: int
    steps: int
    steps_per_epoch: int
    step: int = 0
    tolerance: str = ""  # whether a rank's death is survived and why, in one line
    status: str = ""  # which command's exit status is the job's, in one line
    versions: Mapping[str, str] = field(default_factory=dict)
    data: Sequence[str] = ()


@dataclass(frozen=True)
class StepDone(Event):
    """A step was committed: steps and epochs count from 1. loss and metrics are means; seconds is wall time."""

    kind: ClassVar[str] = "step"
    step: int
    epoch: int
    loss: float
    lr: float
    samples: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    gradient_norm: float = 0.0
    skipped: bool = False


@dataclass(frozen=True)
class EpochDone(Event):
    """An epoch ended. train: running means over the steps of the epoch, during which the parameters changed.
    validation: over the whole split, empty if it was not evaluated; best: whether its loss is the lowest so far.
    waited: rank -> seconds that it spent in the sums of this epoch's steps: for other ranks and for messages."""

    kind: ClassVar[str] = "epoch"
    epoch: int
    step: int
    train: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)
    best: bool = False
    waited: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Warned(Event):
    """A message for the user; training continues."""

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True)
class Noted(Event):
    """What is happening while nothing else is shown, such as the compilation of kernels."""

    kind: ClassVar[str] = "note"
    message: str


@dataclass(frozen=True)
class RankFailed(Event):
    """A rank was lost. how: "crash", "hang", "exception", ...; error: its exception in one line, if any. phase: what it
    was doing, if known. note: the file with its traceback, or with the stack where it hung."""

    kind: ClassVar[str] = "failure"
    step: int
    rank: int
    host: str
    how: str
    error: str = ""
    phase: str = ""
    note: str = ""


@dataclass(frozen=True)
class Recovered(Event):
    """A generation of survivors continues. phases: name -> seconds; moved: rank -> shards it took over."""

    kind: ClassVar[str] = "recovery"
    step: int
    generation: int
    ranks: Sequence[int]
    seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)
    moved: Mapping[int, Sequence[int]] = field(default_factory=dict)
    promoted: Sequence[int] = ()


@dataclass(frozen=True)
class ShardsMoved(Event):
    """After ``step`` shards moved to ranks that compute faster (``train.balance``). moved: rank -> shards that it got;
    seconds: rank -> seconds in which it computed one of its shards before."""

    kind: ClassVar[str] = "balance"
    step: int
    moved: Mapping[int, Sequence[int]]
    seconds: Mapping[int, float]


@dataclass(frozen=True)
class FirstStep(Event):
    """The first step of a generation of survivors is committed, so many seconds after its recovery."""

    kind: ClassVar[str] = "first_step"
    step: int
    generation: int
    seconds: float


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A complete checkpoint was written."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Finished(Event):
    """The job's end; summary: the contents of summary.json."""

    kind: ClassVar[str] = "end"
    status: str
    summary: Mapping[str, Any]
    folder: str = ""
