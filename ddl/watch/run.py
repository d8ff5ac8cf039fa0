"""A run as its files record it: steps, epochs, ranks and their shards, failures, the end.

Reads metrics.jsonl, ledger.jsonl and summary.json; nothing in them is trusted. terminal.py and ddl/dashboard show
it."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddl.errors import DataError
from ddl.metrics import read_summary
from ddl.reading import parse_object, take
from ddl.watch.follow import Follower
from ddl.watch.series import Curves, short

PARSED_BYTES = 3 << 20  # of steps at a time: of a longer backlog only every n-th step is parsed
RECENT = 64  # steps that throughput and the time left are computed from
KEPT = {"failures": 500, "recoveries": 500, "warnings": 50, "plans": 500, "epochs": 2000, "launches": 100}
SILENT_S = 120.0
_STEP = b'{"event":"step"'
_KNOWN = ("event", "time", "step", "epoch", "samples", "seconds", "skipped")
_FILES = ("metrics.jsonl", "ledger.jsonl", "summary.json")


def find_runs(folder: Path, depth: int = 3) -> dict[str, Path]:
    """Name -> folder of the runs in ``folder``: itself under ".", or those below it by their relative path."""
    if any((folder / name).is_file() for name in _FILES):
        return {".": folder}
    found: dict[str, Path] = {}
    level = [folder]
    for _ in range(depth):
        below: list[Path] = []
        for parent in level:
            with suppress(OSError):
                below += sorted(child for child in parent.iterdir() if child.is_dir() and not child.is_symlink())
        found |= {str(path.relative_to(folder)): path for path in below if any((path / n).is_file() for n in _FILES)}
        level = [path for path in below if str(path.relative_to(folder)) not in found]
    return found


class RunView:
    """What is known of the run in ``folder``; ``refresh`` reads what is new.

    version: changes whenever anything does. notes: what could not be read, one line each."""

    def __init__(self, folder: str | Path, clock: Callable[[], float] = time.time):
        self.folder, self.clock = Path(folder), clock
        self._metrics, self._ledger = Follower(self.folder / "metrics.jsonl"), Follower(self.folder / "ledger.jsonl")
        self.version = 0
        self._forget()

    def _forget(self) -> None:
        self.start: dict[str, Any] = {}
        self.curves = Curves()
        self.step: dict[str, Any] = {}  # the newest
        self.epochs: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.recoveries: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []
        self.launches: list[dict[str, Any]] = []
        self.plans: list[tuple[int, list[int]]] = []  # (first step, owner of each shard), where the owners change
        self.summary: dict[str, Any] = {}
        self.has_ended = False
        self.passed_over: list[int] = []  # numbers of damaged lines
        self.sampled = 1  # every how many-th step was read, at the most
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._summary_at = -1.0
        self._is_unreadable = ""

    def refresh(self, budget_s: float = math.inf) -> bool:
        """Read the new bytes of the files, for at most about ``budget_s``; whether all have been read."""
        ends = time.monotonic() + budget_s
        followers = (self._metrics, b"", self._enter_metrics), (self._ledger, b'"plan"', self._enter_ledger)
        if any(follower.backlog() < 0 for follower, *_ in followers):  # the folder was deleted and made again
            for follower, *_ in followers:
                follower.restart()
            self._forget()
            self.version += 1
        for follower, marker, enter in followers:
            backlog = follower.backlog()
            if not backlog:
                continue
            self.version += 1
            every = max(1, backlog // PARSED_BYTES) if follower is self._metrics else 1
            self.sampled = max(self.sampled, every)
            try:
                for lines in follower.chunks(marker):
                    enter(lines, follower.lines - len(lines) + 1, every)
                    if time.monotonic() > ends:
                        return False
            except OSError as error:
                self._is_unreadable = f"{follower.path.name} cannot be read: {error.strerror}"
        self._read_summary()
        return True

    # Files.

    def _enter_metrics(self, lines: list[bytes], number: int, every: int) -> None:
        last = len(lines) - 1
        for place, line in enumerate(lines):
            if every > 1 and (number + place) % every and place != last and line.startswith(_STEP):
                continue
            if not line:
                continue
            try:
                event = parse_object(line)
                kind = take(event, "event", str)
                take(event, "time", int, float)
                enter = self._EVENTS.get(kind)
                if enter is not None:
                    enter(self, event)
            except (ValueError, TypeError):
                self.passed_over = [*self.passed_over, number + place][:1000]

    def _enter_ledger(self, lines: list[bytes], number: int, every: int) -> None:
        for line in lines:
            # Only where the owners change does a line name them; the others need not be parsed.
            if b'"plan"' not in line:
                continue
            with suppress(ValueError):  # ``ddl audit`` reports a damaged ledger
                entry = parse_object(line)
                plan = [owner for owner in take(entry, "plan", list) if type(owner) is int]
                step = take(entry, "step", int)
                while self.plans and self.plans[-1][0] >= step:
                    self.plans.pop()
                if not self.plans or self.plans[-1][1] != plan:
                    self._keep("plans", (step, plan))

    def _read_summary(self) -> None:
        try:
            changed_at = os.stat(self.folder / "summary.json").st_mtime
        except OSError:
            return
        if changed_at == self._summary_at:
            return
        self._summary_at = changed_at
        self.version += 1
        try:
            self.summary = read_summary(self.folder)
        except DataError as error:
            self._is_unreadable = str(error)

    def _keep(self, name: str, entry: Any) -> None:
        kept = getattr(self, name)
        kept.append(entry)
        if len(kept) > KEPT[name]:
            # Of epochs, every other one goes, so that the curve keeps its shape; of all else, the oldest.
            del kept[slice(0, -1, 2) if name == "epochs" else 0]

    # Events.

    def _on_start(self, event: dict[str, Any]) -> None:
        numbers = {name: take(event, name, int) for name in ("ranks", "spares", "shards", "steps", "steps_per_epoch")}
        step = take({"step": 0, **event}, "step", int)
        take(event, "hosts", dict)
        names = {name: take(event, name, str) for name in ("name", "launch", "model", "device")}
        self.start = {**event, **numbers, **names, "steps_per_epoch": max(numbers["steps_per_epoch"], 1)}
        self.has_ended = False
        self._recent.clear()
        self.curves.cut(step)
        self.epochs = [one for one in self.epochs if one["step"] <= step]
        self._keep("launches", {"time": event["time"], "step": step, "ranks": numbers["ranks"]})
        for known in (self.failures, self.recoveries):
            for one in known:
                one["old"] = True  # of an earlier launch: its ranks are started again

    def _on_step(self, event: dict[str, Any]) -> None:
        step, samples = take(event, "step", int), take(event, "samples", int)
        seconds = float(take(event, "seconds", int, float))
        values = {name: float(v) for name, v in event.items() if name not in _KNOWN and type(v) in (int, float)}
        self.curves.add(step, event["time"], samples, seconds, values)
        self.step = event
        self._recent.append((samples, seconds))

    def _on_epoch(self, event: dict[str, Any]) -> None:
        entry = {"epoch": take(event, "epoch", int), "step": take(event, "step", int), "time": event["time"]}
        for split in ("train", "validation"):
            entry[split] = _scalars(take({split: {}, **event}, split, dict))
        waited = {int(rank): v for rank, v in take({"waited": {}, **event}, "waited", dict).items() if _is_number(v)}
        self._keep("epochs", {**entry, "best": event.get("best") is True, "waited": waited})

    def _on_failure(self, event: dict[str, Any]) -> None:
        words = {name: str(event.get(name, "")) for name in ("host", "how", "phase", "error", "note")}
        self._keep("failures", {"time": event["time"], **_whole(event, "step", "rank"), **words})

    def _on_recovery(self, event: dict[str, Any]) -> None:
        ranks = [rank for rank in take(event, "ranks", list) if type(rank) is int]
        entry = {**_whole(event, "step", "generation"), "ranks": ranks, "time": event["time"]}
        seconds = float(take(event, "seconds", int, float))
        phases = _scalars(take({"phases": {}, **event}, "phases", dict))
        self._keep("recoveries", {**entry, "seconds": seconds, "phases": phases})

    def _on_warning(self, event: dict[str, Any]) -> None:
        self._keep("warnings", {"time": event["time"], "message": take(event, "message", str)})

    def _on_end(self, event: dict[str, Any]) -> None:
        take(event, "status", str)
        self.has_ended = True

    _EVENTS: Mapping[str, Callable[[RunView, dict[str, Any]], None]] = {
        "start": _on_start,
        "step": _on_step,
        "epoch": _on_epoch,
        "failure": _on_failure,
        "recovery": _on_recovery,
        "warning": _on_warning,
        "end": _on_end,
    }

    # What follows from it.

    @property
    def name(self) -> str:
        return self.start.get("name") or self.folder.absolute().name

    @property
    def status(self) -> str:
        """ "running", or "silent" where nothing was written for long; else what summary.json says."""
        is_newest = self.summary and self.summary["launch"] == self.start.get("launch", self.summary["launch"])
        if self.summary and is_newest and (self.has_ended or not self.start):
            return str(self.summary["status"])
        newest = 0.0
        for name in _FILES[:2]:  # the leader touches the ledger while it evaluates
            with suppress(OSError):
                newest = max(newest, os.stat(self.folder / name).st_mtime)
        if not newest:
            return "empty"
        return "running" if self.clock() - newest < SILENT_S else "silent"

    @property
    def steps_done(self) -> int:
        return max(self.step.get("step", 0), self.launches[-1]["step"] if self.launches else 0)

    @property
    def dead(self) -> set[int]:
        """Ranks of the newest launch that were lost."""
        return {one["rank"] for one in self.failures if "old" not in one}

    @property
    def alive(self) -> list[int]:
        """Ranks of the newest launch that train; spares only once they have been promoted."""
        recent = [one["ranks"] for one in self.recoveries if "old" not in one]
        known = recent[-1] if recent else range(self.start.get("ranks", 0))
        return [rank for rank in known if rank not in self.dead]

    @property
    def shards(self) -> dict[int, int]:
        """Rank -> how many shards it holds."""
        counts = dict.fromkeys(self.alive, 0)
        for owner in self.plans[-1][1] if self.plans else []:
            counts[owner] = counts.get(owner, 0) + 1
        return counts

    @property
    def samples_per_s(self) -> float:
        """Of the newest steps."""
        seconds = sum(one for _, one in self._recent)
        return sum(samples for samples, _ in self._recent) / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, at the pace of the newest; None if it is not known, or the run has ended."""
        if self.status != "running" or not self._recent or not self.start:
            return None
        pace = sum(seconds for _, seconds in self._recent) / len(self._recent)
        return max(self.start["steps"] - self.steps_done, 0) * pace

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch of the lowest validation loss."""
        known = [one for one in self.epochs if _is_number(one["validation"].get("loss"))]
        return min(known, key=lambda one: one["validation"]["loss"], default=None)

    @property
    def notes(self) -> list[str]:
        found = [self._is_unreadable] if self._is_unreadable else []
        if not self.start and not self._is_unreadable:
            found.append("metrics.jsonl has no start of a launch yet, or is not written (metrics.jsonl = false)")
        if self.passed_over:
            count, few = len(self.passed_over), ", ".join(map(str, self.passed_over[:5]))
            more = ", ..." if count > 5 else ""
            plural = "s were" if count > 1 else " was"
            found.append(f"{count} damaged line{plural} passed over in metrics.jsonl (line {few}{more})")
        if self.sampled > 1:
            found.append(f"the file is long: of the steps before it was opened, every {self.sampled}th is shown")
        return found

    def overview(self) -> dict[str, Any]:
        """A few values for a list of runs."""
        newest = self.epochs[-1] if self.epochs else {"train": {}, "validation": {}}
        values = ("steps", "steps_per_epoch", "model", "device", "parameters", "shards", "global_batch", "ranks")
        return {
            "version": self.version,
            "name": self.name,
            "status": self.status,
            "step": self.steps_done,
            "loss": self.step.get("loss"),
            "samples_per_s": short(self.samples_per_s),
            "seconds_left": self.seconds_left,
            "train": newest["train"],
            "validation": next((one["validation"] for one in reversed(self.epochs) if one["validation"]), {}),
            "best": self.best,
            "alive": self.alive,
            "dead": sorted(self.dead),
            "lost": len(self.failures),
            "began": self.launches[0]["time"] if self.launches else None,
            "notes": self.notes,
            **{name: self.start.get(name) for name in values},
        }

    def to_json(self) -> dict[str, Any]:
        """Everything that a page shows of the run."""
        return {
            **self.overview(),
            "folder": str(self.folder),
            "curves": self.curves.to_json(),
            "epochs": self.epochs,
            "failures": self.failures,
            "recoveries": self.recoveries,
            "launches": self.launches,
            "warnings": self.warnings[-10:],
            "plans": self.plans,
            "hosts": self.start.get("hosts", {}),
            "tolerance": self.start.get("tolerance", ""),
            "summary": {
                name: self.summary.get(name)
                for name in ("status", "final", "error", "warning", "wall_s", "stopped_early", "test", "samples_per_s")
            },
        }


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if _is_number(value)}


def _whole(event: Mapping[str, Any], *names: str) -> dict[str, int]:
    return {name: take(event, name, int) for name in names}
