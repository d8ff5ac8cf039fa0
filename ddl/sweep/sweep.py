"""A sweep: run the trials of a search space on disjoint cores, stop the hopeless ones, and rank the others.

space.py gives the settings of a trial, halving.py decides which ones stop, trial.py starts and reads one."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddl.config import Job, load
from ddl.errors import ConfigError
from ddl.launcher.evidence import read_json, write_json
from ddl.sweep.halving import Seen, rungs, stops
from ddl.sweep.space import Settings, check_space, shuffled, trials_of, words_of
from ddl.sweep.trial import EX_USAGE, History, RunProcess, is_finished, reason
from ddl.wording import counted, listed

MINIMISED = ("loss", "mse", "mae", "rmse", "perplexity", "bits_per_byte")
TICK_S = 0.2
SHOWN = 10  # trials in the table


@dataclass(frozen=True)
class Result:
    """A trial. status: "waiting", "running", "finished", "stopped" (by halving) or "failed". value: of the metric.

    epoch: of the value. reason: of a failure."""

    number: int
    settings: Mapping[str, Any]
    folder: Path
    status: str
    value: float | None = None
    epoch: int = 0
    reason: str = ""


@dataclass
class Sweep:
    """Trials of one job. job: words of ``ddl train``, such as a job file and settings. space: setting -> its values.

    folder: everything is kept there; a sweep that was killed continues when it is run again. trials: how many random
    ones; a grid has one for each combination. metric: of the validation split. mode: "min", "max" or "auto", which
    minimises losses and errors. halving: trials are compared after ``first_epochs``, ``halving`` times as many, and so
    on, and only the best 1/halving continue; 0: all are trained to the end. parallel: trials at a time; 0: as many as
    the cores allow. retries: how often a trial that was lost starts again from its checkpoint."""

    job: Sequence[str]
    space: Mapping[str, Any]
    folder: str | Path = "sweeps/sweep"
    trials: int = 16
    sampler: str = "random"
    seed: int = 0
    metric: str = "loss"
    mode: str = "auto"
    halving: int = 0
    first_epochs: int = 1
    ranks_per_trial: int = 1
    parallel: int = 0
    retries: int = 2
    _trials: list[_Trial] = field(default_factory=list, init=False, repr=False)
    _ends: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        problems = [] if str(self.folder).strip() else ["folder = '' must name a folder"]
        self.folder = Path(self.folder)
        for name, least in (
            ("trials", 1),
            ("ranks_per_trial", 1),
            ("first_epochs", 1),
            ("parallel", 0),
            ("retries", 0),
        ):
            if getattr(self, name) < least:
                problems.append(f"{name} = {getattr(self, name)} must be at least {least}")
        if self.halving < 0 or self.halving == 1:
            problems.append(f"halving = {self.halving} must be 2 or more, or 0 for none")
        if self.mode not in ("auto", "min", "max"):
            problems.append(f"mode = {self.mode!r} must be auto, min or max")
        if problems:
            raise ConfigError("; ".join(problems))
        check_space(self.space, self.sampler)

    @property
    def is_minimised(self) -> bool:
        return self.metric in MINIMISED if self.mode == "auto" else self.mode == "min"

    @property
    def results(self) -> list[Result]:
        """Every trial, by number."""
        return [trial.result(1.0 if self.is_minimised else -1.0) for trial in self._trials]

    @property
    def best(self) -> Result | None:
        """The best trial that was trained to its end."""
        finished = [one for one in self._ranked() if one.status == "finished"]
        return finished[0] if finished else None

    def end(self) -> None:
        """Ask the running trials to save their state; ``run`` then returns. Safe to call in a signal handler."""
        self._ends = True

    def run(self, say: Callable[[str], None] = lambda line: None) -> list[Result]:
        """Run all trials that are not done, and return the results; they are in sweep.csv, too.

        say: called with a line about each trial that ends. Raises ConfigError for an impossible sweep, or one that
        differs from what the folder holds."""
        settings = trials_of(self.space, self.sampler, self.seed, self.trials)
        if self.halving and self.sampler == "grid":
            settings = shuffled(settings, self.seed)
        jobs = [self._job_of(one, number) for number, one in enumerate(settings)]
        self._claim(settings)
        folder, sign = Path(self.folder), 1.0 if self.is_minimised else -1.0
        self._trials = [
            _Trial(number, one, folder / "trials" / f"{number:03}", self.metric, sign)
            for number, one in enumerate(settings)
        ]
        at = rungs(self.first_epochs, self.halving, _epochs(jobs)) if self.halving else []
        free = self._slots()
        self._decide(at)
        self._write()
        while True:
            changed = False
            for trial in self._trials:
                if trial.process is not None and (status := trial.process.status()) is not None:
                    free.append(trial.process.cores)
                    trial.ended(status, self.retries, self._ends)
                    changed = True
                changed |= trial.history.update()
            if changed:
                for trial in self._decide(at):
                    say(self._line(trial))
                self._write()
            if self._ends:
                for trial in self._trials:
                    if trial.process is not None:
                        trial.process.end()
            waiting = [] if self._ends else [trial for trial in self._trials if trial.is_waiting]
            for trial in waiting[: len(free)]:
                words = [*self.job, *words_of(trial.settings), *self._own_words(trial.number)]
                trial.start(words, self.ranks_per_trial, free.pop(0))
            if not waiting and all(trial.process is None for trial in self._trials):
                break
            time.sleep(TICK_S)
        self._check_metric()
        return self.results

    def _own_words(self, number: int) -> list[str]:
        folder = Path(self.folder) / "trials" / f"{number:03}"
        return [f"--run.dir={folder}", f"--run.name={Path(self.folder).name}-{number:03}"]

    def _job_of(self, settings: Settings, number: int) -> Job:
        """The job of a trial. Raises ConfigError naming the trial and its settings."""
        try:
            job = load([*self.job, *words_of(settings), *self._own_words(number)], ranks=self.ranks_per_trial)
        except ConfigError as error:
            given = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
            raise ConfigError(f"trial {number} ({given}): {error}") from error
        if self.halving and (job.train.steps or job.train.evaluate_every != 1):
            raise ConfigError("halving compares trials by epochs: leave train.steps out, with train.evaluate_every = 1")
        if job.data.validation == 0.0:
            raise ConfigError("a sweep compares trials on the validation split, and data.validation is 0")
        return job

    def _claim(self, settings: Sequence[Settings]) -> None:
        """Record the sweep in its folder. Raises ConfigError if another one is there."""
        folder = Path(self.folder)
        now = {
            **{name: getattr(self, name) for name in ("sampler", "seed", "metric", "mode", "halving", "first_epochs")},
            "job": list(self.job),
            "trials": list(settings),
        }
        path = folder / "sweep.json"
        kept = read_json(path)
        if kept:
            different = [name for name in now if json.dumps(kept.get(name)) != json.dumps(now[name])]
            if different:
                raise ConfigError(
                    f"{folder} holds another sweep: {listed(different, 'and')} "
                    f"{'differs' if len(different) == 1 else 'differ'}; choose another folder"
                )
        try:
            (folder / "trials").mkdir(parents=True, exist_ok=True)
            write_json(path, now)
        except OSError as error:
            raise ConfigError(f"the folder {folder} cannot be used: {error.strerror}") from error

    def _slots(self) -> list[list[int]]:
        """Disjoint sets of cores, one for each trial that runs at the same time."""
        cores, ranks = sorted(os.sched_getaffinity(0)), self.ranks_per_trial
        count = max(len(cores) // ranks, 1)
        if self.parallel > count:
            each = f" of {ranks} ranks" if ranks > 1 else ""
            raise ConfigError(
                f"parallel = {self.parallel} trials{each} need more than the {counted(len(cores), 'core')} here"
            )
        count = self.parallel or count
        share = len(cores) // count
        return [cores[place * share : (place + 1) * share] for place in range(count)]

    def _decide(self, at: Sequence[int]) -> list[_Trial]:
        """Apply the rules to what is known; the trials that are over since the last call."""
        seen = [Seen(trial.history.by_epoch, trial.is_ended) for trial in self._trials]
        for trial, rung in zip(self._trials, stops(seen, at, self.halving), strict=True):
            if rung is not None:
                trial.stop(rung)
        over = [trial for trial in self._trials if trial.is_over and not trial.is_reported]
        for trial in over:
            trial.is_reported = True
        return over

    def _ranked(self) -> list[Result]:
        """Best first: trained to the end, then stopped ones, then those without a value."""
        sign = 1.0 if self.is_minimised else -1.0

        def key(one: Result) -> tuple[int, float, int]:
            value = math.inf if one.value is None else sign * one.value
            return (one.status != "finished", value if one.value is not None else math.inf, one.number)

        return sorted(self.results, key=key)

    def _line(self, trial: _Trial) -> str:
        one, results = trial.result(1.0 if self.is_minimised else -1.0), self.results
        value = "" if one.value is None else f", {self.metric} {one.value:.4g}"
        after = f" after {counted(one.epoch, 'epoch')}" if one.status == "stopped" else ""
        over = sum(other.status in ("finished", "stopped", "failed") for other in results)
        best = self.best
        leader = "" if best is None else f"; best is trial {best.number} with {best.value:.4g}"
        why = f" ({one.reason})" if one.reason else ""
        return f"trial {one.number} {one.status}{after}{value}{why}; {over} of {len(results)} are done{leader}"

    def table(self) -> list[str]:
        """The best trials as lines of text, best first."""
        names = list(self.space)
        shown = [one for one in self._ranked() if one.value is not None or one.status != "waiting"][:SHOWN]
        rows = [["trial", "status", self.metric, "epoch", *(name.split(".", 1)[-1] for name in names)]]
        for one in shown:
            value = "" if one.value is None else f"{one.value:.4g}"
            own = [_text(one.settings[name]) for name in names]
            rows.append([str(one.number), one.status, value, str(one.epoch or ""), *own])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    def _write(self) -> None:
        """sweep.csv, one line per trial in the order of their numbers, and the link to the best."""
        folder, names = Path(self.folder), list(self.space)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", "status", self.metric, "epoch", *names, "folder"])
        for one in self.results:
            own = [_text(one.settings[name]) for name in names]
            value = "" if one.value is None else repr(one.value)
            writer.writerow([one.number, one.status, value, one.epoch or "", *own, one.folder.relative_to(folder)])
        aside = folder / "sweep.csv.tmp"
        aside.write_text(text.getvalue(), encoding="utf-8")
        os.replace(aside, folder / "sweep.csv")
        if (best := self.best) is not None:
            link = folder / "best.tmp"
            link.unlink(missing_ok=True)
            link.symlink_to(best.folder.relative_to(folder))
            os.replace(link, folder / "best")

    def _check_metric(self) -> None:
        """Raises ConfigError if no trial reported the metric."""
        names = {name for trial in self._trials for name in trial.history.names}
        if names and self.metric not in names:
            raise ConfigError(
                f"metric = {self.metric!r}: validation reports {listed(sorted(names - {'samples'}), 'and')}"
            )


class _Trial:
    """A trial and its process, while it has one."""

    def __init__(self, number: int, settings: Settings, folder: Path, metric: str, sign: float):
        self.number, self.settings, self.folder = number, settings, folder
        self.log = folder.with_suffix(".log")
        self.history = History(folder, metric, sign)
        self.history.update()
        self.process: RunProcess | None = None
        self.is_finished = is_finished(folder)
        self.failure = ""
        self.stopped_at: int | None = None
        self.is_reported = self.is_finished
        self._losses = 0

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will be known of it."""
        return self.is_finished or bool(self.failure)

    @property
    def is_over(self) -> bool:
        return self.process is None and (self.is_ended or self.stopped_at is not None)

    @property
    def is_waiting(self) -> bool:
        return self.process is None and not self.is_over

    def start(self, words: Sequence[str], ranks: int, cores: Sequence[int]) -> None:
        if (self.folder / "config.toml").exists() or not self.folder.exists():
            self.process = RunProcess(words, ranks, cores, self.log)
            return
        shutil.rmtree(self.folder)  # killed before its run began
        self.process = RunProcess(words, ranks, cores, self.log)

    def ended(self, status: int, retries: int, is_asked: bool) -> None:
        self.process = None
        self.history.update()
        self.is_finished = status == 0 and is_finished(self.folder)
        if self.is_finished or self.stopped_at is not None or is_asked:
            return
        self._losses += 1
        if status == EX_USAGE or self._losses > retries:
            self.failure = reason(self.folder, self.log)

    def stop(self, rung: int) -> None:
        """Halving has decided against it."""
        if self.stopped_at is None:
            self.stopped_at = rung
            if self.process is not None:
                self.process.end()

    def result(self, sign: float) -> Result:
        status = "failed" if self.failure else "stopped" if self.stopped_at is not None else "finished"
        if not self.failure and self.stopped_at is None and not self.is_finished:
            status = "waiting" if self.process is None else "running"
        epoch = max(self.history.by_epoch, default=0)
        if self.stopped_at is not None:  # what it did after the decision was due is not its result
            epoch = min((one for one in self.history.by_epoch if one >= self.stopped_at), default=0)
        value = self.history.by_epoch.get(epoch)
        return Result(
            self.number,
            self.settings,
            self.folder,
            status,
            None if value is None else sign * value,
            epoch,
            self.failure,
        )


def _epochs(jobs: Sequence[Job]) -> int:
    """The epochs of the shortest job. Raises ConfigError if one leaves them to its data."""
    known = [job.train.epochs for job in jobs if job.train.epochs != "auto"]
    if len(known) < len(jobs):
        raise ConfigError("successive halving counts epochs: set train.epochs in the job")
    return min(known)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
