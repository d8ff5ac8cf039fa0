"""The run log: what the leader writes about a job, to the user and to the files of the run folder.

Any rank may become the leader, and then continues metrics.jsonl, the ledger and summary.json where the previous leader
stopped. How events look on a screen is decided in ddl/metrics."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddl.comm import Member
from ddl.data.ledger import Ledger, Record, audit, read
from ddl.data.ledger import Start as LedgerStart
from ddl.errors import CheckpointError, DataError, DdlError, Stop
from ddl.fault.decision import RankDeath
from ddl.fault.recover import Report
from ddl.metrics import (
    EARLY_STOPS,
    TOO_EARLY,
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
    ShardsMoved,
    Sink,
    StepDone,
    Summary,
    Warned,
    early_stops,
    read_lines,
    versions,
    write_summary,
)
from ddl.train.services import Reporter
from ddl.train.state import Progress, TrainingState
from ddl.train.step import Outcome
from ddl.train.task import Task
from ddl.train.verdict import doubt
from ddl.wording import counted

TOUCH_S = 10.0
TAIL_BYTES = 1 << 16  # how far a new leader looks back in metrics.jsonl


class RunLog(Reporter):
    """Writes nothing until ``lead`` makes this rank the leader.

    sinks: creates further sinks, such as a console. jsonl: write metrics.jsonl; the ledger and
    summary.json are always written. Without a folder nothing is written to disk."""

    def __init__(
        self,
        task: Task,
        sinks: Callable[[], Sequence[Sink]] = tuple,
        say: Callable[[str], None] | None = None,
        jsonl: bool = True,
    ):
        self.task, self._sinks, self._jsonl = task, sinks, jsonl
        self._say: Callable[[str], None] = say or (lambda message: None)
        self.launch = self.run = ""  # the ids of this launch, and of the run that it belongs to
        self.on_known: Callable[[], None] = lambda: None  # called when launch and folder are known
        self.folder: Path | None = None
        self.ranks_started = self.first_step = 0
        self.serial: int | None = None  # this launch's number among the launches in the folder
        self.failures: list[Failure] = []
        self.began = time.time()
        self._hub: Hub | None = None
        self._is_silent = False
        self._files: list[JsonLines | Ledger] = []  # lines may wait in memory for them
        self._has_announced = False
        self._recovered = 0  # a new generation whose first step has not been reported yet
        self._touched = 0.0
        self._ledger: Ledger | None = None
        self._mark = time.monotonic()
        # The last step in the files, and the last that they have as the end of an epoch.
        self._reported = self._reported_epoch = -1

    # What another rank needs to continue the log.

    def to_json(self) -> dict[str, Any]:
        return {
            "launch": self.launch,
            "run": self.run,
            "folder": None if self.folder is None else str(self.folder),
            "ranks_started": self.ranks_started,
            "first_step": self.first_step,
            "began": self.began,
            "serial": self.serial,
            "failures": [asdict(failure) for failure in self.failures],
        }

    def become(self, values: Mapping[str, Any]) -> None:
        self.launch, self.run, self.ranks_started = values["launch"], values["run"], values["ranks_started"]
        self.first_step = values["first_step"]
        self.folder = None if values["folder"] is None else Path(values["folder"])
        self.began, self.serial = values["began"], values["serial"]
        self.failures = [Failure(**failure) for failure in values["failures"]]
        self.on_known()

    # What the leader writes.

    def lead(self) -> None:
        """This rank writes from now on, and appends to what an earlier leader has written."""
        if self._hub is not None or self._is_silent:
            return
        sinks = list(self._sinks())
        if self.folder is not None:
            self._ledger = Ledger(self.folder / "ledger.jsonl", self._say)
            self._files.append(self._ledger)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._reported, self._reported_epoch = _last_reported(self.folder, self._jsonl)
                if self._jsonl:
                    sinks.append(events := JsonLines(self.folder / "metrics.jsonl", say=self._say))
                    self._files.append(events)
            except OSError as error:
                self._say(f"metrics.jsonl is no longer written: {error}")
        self._hub = Hub(sinks, self._say)
        self._mark = time.monotonic()

    def fall_silent(self) -> None:
        """A newer launch or generation holds the folder: this rank writes nothing any more."""
        with (
            self._hub.lock if self._hub is not None else contextlib.nullcontext()
        ):  # the checkpoint writer's thread may be emitting
            for file in self._files:
                file.forget()
            self.close()
            self._hub = self._ledger = None
        self._is_silent = True

    def touch(self) -> None:
        """Show the supervisor that the job is alive while nothing is written for long: it watches the files' times."""
        now = time.monotonic()
        if self._hub is not None and self.folder is not None and now - self._touched > TOUCH_S:
            self._touched = now
            with contextlib.suppress(OSError):
                os.utime(self.folder / "ledger.jsonl")

    @property
    def leads(self) -> bool:
        return self._hub is not None

    @property
    def has_started(self) -> bool:  # type: ignore[override]
        """Whether the ledger contains this launch: the first line that its first leader writes is the start."""
        if self.folder is None or self._has_announced:  # a full disk may have kept it out of the ledger
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
        self._reported = event.step
        self._mark = time.monotonic()

    def step(self, outcome: Outcome, generation: int, owners: tuple[int, ...]) -> None:
        self._reported = outcome.step
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        if self._recovered:
            self.emit(FirstStep(outcome.step, self._recovered, seconds))
            self._recovered = 0
        if self.folder is not None and self._ledger is not None:
            samples = None if outcome.skipped else outcome.samples
            record = Record(self.launch, generation, outcome.step - 1, owners, outcome.skipped, samples)
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
            self.warn(f"step {outcome.step} skipped on all ranks: {outcome.why_skipped}")

    def _enter(self, what: Callable[[Ledger], None]) -> None:
        """Write to the ledger. A permanently full disk costs the audit, not the job."""
        if self._ledger is None:
            return
        try:
            what(self._ledger)
        except OSError as error:
            self._ledger.close()
            self._ledger = None
            self.warn(f"ledger.jsonl is no longer written, so its audit will miss steps: {error}")

    def moved(self, step: int, moved: Mapping[int, Sequence[int]], seconds: Mapping[int, float]) -> None:
        self.emit(ShardsMoved(step, moved, seconds))

    def missed(self, outcome: Outcome, generation: int, owners: tuple[int, ...]) -> None:
        if outcome.step > self._reported:
            self.step(outcome, generation, owners)

    def missed_epoch(self, epoch: int, progress: Progress, waited: Mapping[int, float]) -> None:
        if progress.evaluated_at == progress.step > self._reported_epoch:
            self.epoch(epoch, progress, waited)

    def epoch(self, epoch: int, progress: Progress, waited: Mapping[int, float]) -> None:
        self._reported_epoch = progress.step
        train, is_new = progress.results.get("train", {}), progress.validated_at == progress.step
        validation = progress.results.get("validation", {}) if is_new else {}
        is_best = is_new and progress.best_step == progress.step
        self.emit(EpochDone(epoch, progress.step, train, validation, is_best, waited))

    def checkpointed(self, step: int, path: Path) -> None:
        self.emit(CheckpointSaved(step, str(path)))

    def lost_at_start(self, members: Sequence[Member], step: int) -> None:
        """Ranks died during set-up, when there was nothing to recover. ``started`` reports them."""
        for member in members:
            self.failures.append(Failure(step, member.identity, member.host, "crash", 0.0, 0.0))

    def recovered(self, report: Report) -> None:
        """Every rank records the failures, since every rank may write the summary; the leader reports them."""
        known = report.detect_s
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

    def _note_of(self, death: RankDeath) -> str:
        """The file with the traceback or stack of a dead rank; "" if there is none."""
        if self.folder is None or not death.traceback:
            return ""
        return str(notes_of(self.folder, self.launch) / f"rank-{death.identity}.json")

    def end(
        self,
        state: TrainingState,
        digest: str,
        ranks: int,
        samples_per_s: float,
        status: str,
        failure: DdlError | None = None,
    ) -> DdlError | None:
        progress, order, wall, early = state.progress, self.task.order, time.time() - self.began, 0
        if self.folder is not None and progress.step - self.first_step <= 1:
            # A stop that nothing but a signal explains.
            early = early_stops(self.folder) + (status == "stopped" and failure is None and not self.failures)
            if status == "stopped" and early >= EARLY_STOPS:
                status, failure = "failed", DdlError(TOO_EARLY)
        warning = doubt(self.task, progress, state.buffers) if status == "finished" and failure is None else ""
        if warning:
            self.warn(warning)
        summary = Summary(
            status=status,
            launch=self.launch,
            steps=progress.step,
            epochs=round(progress.step / order.steps_per_epoch, 4),
            global_batch=order.global_batch,
            shards=order.shards,
            ranks_started=self.ranks_started,
            ranks_finished=ranks,
            train=progress.results.get("train", {}),
            validation=progress.results.get("validation", {}),
            test=progress.results.get("test", {}),
            final=_final(progress, order.steps_per_epoch) if status != "failed" else {},
            best=_best(progress, order.steps_per_epoch),
            stopped_early=_why_early(self.task, progress) if status == "finished" else "",
            samples=self._samples_of(progress),
            failures=self.failures,
            parameters_sha256=digest,
            samples_per_s=samples_per_s,
            wall_s=round(wall, 3),
            versions=versions(),
            warning=warning,
            error="" if failure is None else str(failure),
            exit_status=failure.exit_status if failure else Stop.exit_status if status == "stopped" else 0,
            early_stops=early,
        )
        if self.folder is not None:
            try:
                write_summary(self.folder, summary)
            except OSError as error:
                self.warn(f"summary.json was not written: {error}")
                return CheckpointError(f"the summary was not written to {self.folder}: {error}")
        self.emit(Finished(status, summary.to_json(), "" if self.folder is None else str(self.folder)))
        return failure

    def _samples_of(self, progress: Progress) -> Samples:
        """The counts that the ledger proves, or those of this rank if there is no ledger."""
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


def _final(progress: Progress, steps_per_epoch: int) -> dict[str, Any]:
    """Summary.final: what the state is, and its metrics."""
    state = {
        "checkpoint": "newest",
        "step": progress.step,
        "train": progress.results.get("train", {}),
        **progress.final,
    }
    state["epoch"] = round(state["step"] / steps_per_epoch, 4)
    is_evaluated = state["checkpoint"] == "best" or progress.validated_at == progress.step
    splits = {"validation": is_evaluated, "test": progress.tested_at == progress.step}
    return state | {name: progress.results[name] for name, is_its_own in splits.items() if is_its_own}


def _best(progress: Progress, steps_per_epoch: int) -> dict[str, Any]:
    """Summary.best; empty if no evaluation was finite, or the checkpoint of an earlier version did not record it."""
    step = progress.best_step
    return {"step": step, "epoch": round(step / steps_per_epoch, 4), "loss": progress.best} if step >= 0 else {}


def _why_early(task: Task, progress: Progress) -> str:
    if not progress.ended or progress.step >= task.total_steps:
        return ""
    return f"no lower validation loss in {counted(task.patience, 'evaluation')} (train.patience)"


def notes_of(folder: Path, launch: str) -> Path:
    """The folder for notes about the deaths of a launch's ranks."""
    return folder / "notes" / launch


def _last_reported(folder: Path, jsonl: bool) -> tuple[int, int]:
    """(the last step in the files of a run, the last that they have as the end of an epoch); -1 if there is none."""
    path = folder / ("metrics.jsonl" if jsonl else "ledger.jsonl")
    lines = read_lines(path, TAIL_BYTES) if path.exists() else []
    lines = [line for line in lines if type(line.get("start", line.get("step"))) is int]
    if not jsonl:  # the ledger numbers steps from 0, all others count completed steps; it has no epochs
        steps = (line["start"] if "start" in line else line["step"] + 1 for line in reversed(lines))
        return next(steps, -1), -1
    starts = [place for place, line in enumerate(lines) if line.get("event") == "start"]
    lines = lines[starts[-1] :] if starts else lines  # this launch reports again what an earlier one reported
    reported = (line["step"] for line in reversed(lines) if line.get("event") in ("start", "step"))
    ends = (line["step"] for line in reversed(lines) if line.get("event") == "epoch")
    return next(reported, -1), next(ends, -1)
