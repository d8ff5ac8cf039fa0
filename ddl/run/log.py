"""The journal: what the leader tells people and files while a job runs.

Any rank may have to take it up, and what it then says in metrics.jsonl, the ledger and summary.json goes on
with what the leader before it said. How things look on a screen is metrics' business."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddl.comm import Group, Member
from ddl.data import Plan
from ddl.data.ledger import Ledger, Record, audit, read
from ddl.data.ledger import Start as LedgerStart
from ddl.errors import CheckpointError, DataError, DdlError, Stop
from ddl.fault.decision import Death
from ddl.fault.recover import Report
from ddl.metrics import (
    CheckpointSaved,
    EpochDone,
    Event,
    Failure,
    Finished,
    FirstStep,
    Hub,
    JobStarted,
    JsonLines,
    RankFailed,
    Recovered,
    Samples,
    Sink,
    StepDone,
    Summary,
    Warned,
    read_lines,
    versions,
    write_summary,
)
from ddl.train.state import Progress
from ddl.train.step import Outcome
from ddl.train.task import Task

if TYPE_CHECKING:
    from ddl.train.loop import Loop

TOUCH_S = 10.0
TAIL_BYTES = 1 << 16  # how far a new leader looks back in metrics.jsonl


class Journal:
    """Silent until ``lead`` makes this rank the one that writes.

    sinks: makes what listens beside the files (a console). jsonl: write metrics.jsonl; the ledger and summary.json
    are written in any case. Without a folder nothing is written to disk."""

    def __init__(
        self,
        task: Task,
        sinks: Callable[[], Sequence[Sink]] = tuple,
        say: Callable[[str], None] | None = None,
        jsonl: bool = True,
    ):
        self.task, self._sinks, self._jsonl = task, sinks, jsonl
        self._say: Callable[[str], None] = say or (lambda message: None)
        self.launch = ""
        self.on_known: Callable[[], None] = lambda: None  # called once this rank knows launch and folder
        self.folder: Path | None = None
        self.ranks_started = 0
        self.serial: int | None = None  # this launch's number among those of the folder
        self.failures: list[Failure] = []
        self.began = time.time()
        self._hub: Hub | None = None
        self._is_silent = False
        self._files: list[JsonLines | Ledger] = []  # those that lines may wait for
        self._has_announced = False
        self._recovered = 0  # the generation of which no step has been told yet
        self._touched = 0.0
        self._ledger: Ledger | None = None
        self._mark = time.monotonic()
        self._owners_of: Plan | None = None  # the plan of the last step told, and who computes its shards
        self._owners: tuple[int, ...] = ()
        self._told = self._told_epoch = -1  # the last steps of which the files tell, and tell as the end of an epoch

    # What a newcomer must know to take it up.

    def to_json(self) -> dict[str, Any]:
        return {
            "launch": self.launch,
            "folder": None if self.folder is None else str(self.folder),
            "ranks_started": self.ranks_started,
            "began": self.began,
            "serial": self.serial,
            "failures": [asdict(failure) for failure in self.failures],
        }

    def become(self, values: Mapping[str, Any]) -> None:
        self.launch, self.ranks_started = values["launch"], values["ranks_started"]
        self.folder = None if values["folder"] is None else Path(values["folder"])
        self.began, self.serial = values["began"], values["serial"]
        self.failures = [Failure(**failure) for failure in values["failures"]]
        self.on_known()

    # The leader's voice.

    def lead(self) -> None:
        """This rank writes from now on, after what an earlier leader may have written."""
        if self._hub is not None or self._is_silent:
            return
        sinks = list(self._sinks())
        if self.folder is not None:
            self._ledger = Ledger(self.folder / "ledger.jsonl", self._say)
            self._files.append(self._ledger)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._told, self._told_epoch = _last_told(self.folder, self._jsonl)
                if self._jsonl:
                    sinks.append(events := JsonLines(self.folder / "metrics.jsonl", say=self._say))
                    self._files.append(events)
            except OSError as error:
                self._say(f"metrics.jsonl is not written any more: {error}")
        self._hub = Hub(sinks, self._say)
        self._mark = time.monotonic()

    def fall_silent(self) -> None:
        """The folder is in newer hands: nothing more is written or said by this rank."""
        with self._hub.lock if self._hub is not None else contextlib.nullcontext():  # a checkpoint may be told of
            for file in self._files:
                file.forget()
            self.close()
            self._hub = self._ledger = None
        self._is_silent = True

    def touch(self) -> None:
        """Tell whoever watches the folder's files that the job goes on, where nothing is to be written for long."""
        now = time.monotonic()
        if self._hub is not None and self.folder is not None and now - self._touched > TOUCH_S:
            self._touched = now
            with contextlib.suppress(OSError):
                os.utime(self.folder / "ledger.jsonl")

    @property
    def leads(self) -> bool:
        return self._hub is not None

    @property
    def has_started(self) -> bool:
        """Whether the ledger tells of this launch: the first thing that its first leader enters is the start."""
        if self.folder is None or self._has_announced:  # a full disk may keep it from the ledger
            return True
        path = self.folder / "ledger.jsonl"
        try:
            return path.exists() and any(line.get("launch") == self.launch for line in read_lines(path, TAIL_BYTES))
        except OSError:
            return True

    def emit(self, event: Event) -> None:
        hub = self._hub  # the checkpoint writer's thread emits too, while this rank may fall silent
        if hub is not None:
            hub.emit(event)

    def warn(self, message: str) -> None:
        self.emit(Warned(message))

    def started(self, event: JobStarted) -> None:
        self._has_announced = True
        self.emit(event)
        if self._ledger is not None:
            start = LedgerStart(self.launch, 0, event.step, self.task.order)
            self._enter(lambda ledger: ledger.start(start))
        for lost in self.failures:
            self.emit(RankFailed(lost.step, lost.rank, lost.host, lost.kind, "", lost.phase, lost.note))
        self._told = event.step
        self._mark = time.monotonic()

    def step(self, outcome: Outcome, group: Group, plan: Plan) -> None:
        """Tell of a committed step, and enter it in the ledger."""
        self._told = outcome.step
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        if self._recovered:
            self.emit(FirstStep(outcome.step, self._recovered, seconds))
            self._recovered = 0
        if self.folder is not None and self._ledger is not None:
            if self._owners_of is not plan:
                self._owners_of, self._owners = plan, tuple(group.members[rank].identity for rank in plan.owners)
            samples = None if outcome.skipped else outcome.samples
            record = Record(self.launch, group.generation, outcome.step - 1, self._owners, outcome.skipped, samples)
            self._enter(lambda ledger: ledger.append(record))
        self.emit(
            StepDone(
                step=outcome.step,
                epoch=outcome.epoch + 1,
                loss=outcome.loss,
                lr=outcome.lr,
                samples=outcome.samples,
                seconds=seconds,
                metrics=outcome.metrics,
                gradient_norm=outcome.gradient_norm,
                skipped=outcome.skipped,
            )
        )
        if outcome.skipped:
            named = f"shard(s) {list(outcome.bad_shards)}" if outcome.bad_shards else "a shard that could not be named"
            self.warn(f"step {outcome.step} skipped on all ranks: values of {named} are not finite")

    def _enter(self, what: Callable[[Ledger], None]) -> None:
        """Write to the ledger. A disk that takes no more, for good, costs the proof, not the job."""
        if self._ledger is None:
            return
        try:
            what(self._ledger)
        except OSError as error:
            self._ledger.close()
            self._ledger = None
            self.warn(f"ledger.jsonl is not written any more, so its audit will miss steps: {error}")

    def missed(self, outcome: Outcome | None, group: Group, plan: Plan) -> None:
        """After a recovery: tell the last committed step, if the leader before, or this one, did not come to it.

        group, plan: those that computed it."""
        if outcome is not None and outcome.step > self._told:
            self.step(outcome, group, plan)

    def missed_epoch(self, epoch: int, progress: Progress) -> None:
        """After a recovery: tell the end of an epoch that has been evaluated, if nobody has come to that."""
        if progress.evaluated_at == progress.step > self._told_epoch:
            self.epoch(epoch, progress)

    def epoch(self, epoch: int, progress: Progress) -> None:
        self._told_epoch = progress.step
        results = progress.results
        self.emit(EpochDone(epoch, progress.step, results.get("train", {}), results.get("validation", {})))

    def checkpointed(self, step: int, path: Path) -> None:
        self.emit(CheckpointSaved(step, str(path)))

    def lost_at_start(self, members: Sequence[Member], step: int) -> None:
        """Ranks died in the set-up, when there was nothing to recover. Every rank keeps that; ``started`` tells it."""
        for member in members:
            self.failures.append(Failure(step, member.identity, member.host, "crash", 0.0, 0.0))

    def recovered(self, report: Report, detect_s: Mapping[int, float] | None = None) -> None:
        """Every rank keeps the failure, since any may have to sum up; the leader tells of it.

        detect_s: identity -> seconds from its death to the beginning of recovery, as ``fault.recover.detection_s``
        finds them; the longest stands among the phases of the recovery."""
        known = detect_s or {}
        for death in report.deaths:
            seconds = known.get(death.identity, 0.0)
            note = self._note_of(death)
            self.failures.append(
                Failure(report.step, death.identity, death.host, death.kind, seconds, report.seconds, death.phase, note)
            )
            self.emit(RankFailed(report.step, death.identity, death.host, death.kind, death.error, death.phase, note))
        self.emit(
            Recovered(
                report.step,
                report.generation,
                report.survivors,
                report.seconds,
                {"detect": max(known.values(), default=0.0), **report.phases},
                report.moved,
                report.promoted,
            )
        )
        self._recovered = report.generation
        self._mark = time.monotonic()

    def _note_of(self, death: Death) -> str:
        """The file with the traceback or stack of a rank that is gone; "" where none was left."""
        if self.folder is None or not death.traceback:
            return ""
        return str(notes_of(self.folder, self.launch) / f"rank-{death.identity}.json")

    def end(self, loop: Loop, status: str, failure: DdlError | None = None) -> DdlError | None:
        """Write summary.json and say how it ended; what is returned is why that could not be done."""
        progress, order = loop.state.progress, self.task.order
        wall = time.time() - self.began
        summary = Summary(
            status=status,
            launch=self.launch,
            steps=progress.step,
            epochs=round(progress.step / order.steps_per_epoch, 4),
            global_batch=order.global_batch,
            shards=order.shards,
            ranks_started=self.ranks_started,
            ranks_finished=loop.group.size,
            train=progress.results.get("train", {}),
            validation=progress.results.get("validation", {}),
            test=progress.results.get("test", {}),
            samples=self._samples_of(progress),
            failures=self.failures,
            parameters_sha256=loop.state.parameters_digest(),
            samples_per_s=round(loop.samples / loop.train_seconds, 1) if loop.train_seconds else 0.0,
            wall_s=round(wall, 3),
            versions=versions(),
            error="" if failure is None else str(failure),
            exit_status=failure.exit_status if failure else Stop.exit_status if status == "stopped" else 0,
        )
        if self.folder is not None:
            try:
                write_summary(self.folder, summary)
            except OSError as error:
                self.warn(f"summary.json was not written: {error}")
                return CheckpointError(f"the summary was not written to {self.folder}: {error}")
        self.emit(Finished(status, summary.to_json(), "" if self.folder is None else str(self.folder)))
        return None

    def _samples_of(self, progress: Progress) -> Samples:
        """What the ledger proves; without one, what the counters say."""
        counted = Samples(expected=progress.samples, used=progress.samples)
        try:
            if self._ledger is None or not self._ledger.catch_up():
                return counted
            found = audit(read(self._ledger.path), self.task.order, progress.step)
        except (DataError, OSError) as error:
            self.warn(f"the ledger cannot be audited: {error}")
            return counted
        return Samples(**found.samples)

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
        if self._hub is not None:
            self._hub.close()


def notes_of(folder: Path, launch: str) -> Path:
    """Where the ranks of a launch leave word of how they died."""
    return folder / "notes" / launch


def _last_told(folder: Path, jsonl: bool) -> tuple[int, int]:
    """(the last step that the files of a run tell of, the last that ended an epoch); -1 where none does."""
    path = folder / ("metrics.jsonl" if jsonl else "ledger.jsonl")
    lines = read_lines(path, TAIL_BYTES) if path.exists() else []
    if not jsonl:  # the ledger numbers steps from 0, everybody else counts how many are done; it knows no epochs
        told = (line["start"] if "start" in line else line["step"] + 1 for line in reversed(lines))
        return next(told, -1), -1
    starts = [place for place, line in enumerate(lines) if line.get("event") == "start"]
    lines = lines[starts[-1] :] if starts else lines  # what an earlier launch told is told again
    told = (line["step"] for line in reversed(lines) if line.get("event") in ("start", "step"))
    ends = (line["step"] for line in reversed(lines) if line.get("event") == "epoch")
    return next(told, -1), next(ends, -1)
