"""The console: what a person at the terminal sees of a job - a banner, a line of progress, the end.

Only the leader has one. Files are jsonl.py's and summary.py's."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from ddl.metrics.events import (
    CheckpointSaved,
    EpochDone,
    Evaluated,
    Event,
    Finished,
    FirstStep,
    JobStarted,
    RankFailed,
    Recovered,
    StepDone,
    Warned,
)

_PLAIN_MOST_S = 60.0  # a log file of a long job is not to be filled
_LAUNCHERS = ("mpirun", "prterun", "prte", "mpiexec", "orterun")


def duration(seconds: float) -> str:
    """5.2 s, 3:07, 1:02:45: as short as people write it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figures(metrics: Mapping[str, Any]) -> str:
    """loss 0.0312, accuracy 98.61 %: scalars only; shares of one as percent."""
    shown = []
    for name, value in metrics.items():
        if name == "samples" or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        shown.append(f"{name} {100 * value:.2f} %" if is_share(name) else f"{name} {value:.4g}")
    return ", ".join(shown)


def is_share(name: str) -> bool:
    """Whether a metric is a share of one, which people read as percent: accuracy, top3, validation_f1."""
    return _SHARE.search(name) is not None


_SHARE = re.compile(r"(^|_)(accuracy|top\d+|precision|recall|f1)$")


class Console:
    """Writes to ``out``; rewrites one line in place on a terminal, prints a plain line now and then elsewhere.

    every_s: seconds between progress lines, at first: plain lines become rarer; 0: none. live: in place or not;
    default: as ``is_live`` finds. columns: that a line of progress may take, 0: any number; default: those of the
    terminal. steps, steps_per_epoch: of the whole job, for a leader that takes over and hears
    no JobStarted; 0: not known."""

    def __init__(
        self,
        every_s: float = 1.0,
        out: TextIO | None = None,
        live: bool | None = None,
        columns: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        steps: int = 0,
        steps_per_epoch: int = 1,
    ):
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.out = out if out is not None else sys.stdout
        self.live = is_live() if live is None else live
        self.columns = columns if columns is not None else terminal_columns() if self.live else 0
        self.every_s, self.clock = every_s, clock
        self._started = self._shown_at = self._since = clock()
        self._samples = 0
        self._first: StepDone | None = None
        self._width = 0

    def write(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, JobStarted):
            self.steps, self.steps_per_epoch, self._first = event.steps, event.steps_per_epoch, None
            self._started = self._shown_at = self._since = self.clock()
            self._line(banner(event))
        elif isinstance(event, EpochDone):
            if event.validation and self._is_due(self.clock()):
                self._line(f"epoch {event.epoch}: train {figures(event.train)}; validation {figures(event.validation)}")
        elif isinstance(event, Evaluated):
            self._line(f"{event.split}: {figures(event.metrics)}")
        elif isinstance(event, Warned):
            self._line(f"warning: {event.message}")
        elif isinstance(event, RankFailed):
            what = f": {event.error}" if event.error else ""
            where = f" in {event.phase}" if event.phase else ""
            note = f"; see {event.note}" if event.note else ""
            self._line(f"lost rank {event.rank} on {event.host} at step {event.step} ({event.how}{where}){what}{note}")
        elif isinstance(event, Recovered):
            self._line(recovery(event))
        elif isinstance(event, FirstStep):
            self._line(f"first step after the recovery: {1000 * event.seconds:.0f} ms")
        elif isinstance(event, Finished):
            self._line(ending(event))
        elif isinstance(event, CheckpointSaved):
            return  # it happens often and says nothing new; metrics.jsonl has it

    def close(self) -> None:
        if self._width:
            self.out.write("\n")
            self._width = 0
        self.out.flush()

    def _is_due(self, now: float) -> bool:
        """Is it time for a line of progress? If so, it counts as shown."""
        if not self.every_s or now - self._shown_at < self.every_s:
            return False
        self._shown_at = now
        if not self.live:
            self.every_s = min(1.5 * self.every_s, max(_PLAIN_MOST_S, self.every_s))
        return True

    def _step(self, event: StepDone) -> None:
        now = self.clock()
        self._samples += event.samples
        if self._first is None:
            self._first, self._since, self._samples = event, now, 0  # the first step's time is start-up
        if self._is_due(now):
            rate = self._samples / (now - self._since) if now > self._since else 0.0
            self._progress(self._progress_text(event, rate, now))

    def _progress_text(self, event: StepDone, rate: float, now: float) -> str:
        assert self._first is not None
        parts = [f"epoch {event.epoch}", f"step {event.step}"]
        left = ""
        if self.steps:
            parts = [f"epoch {event.epoch}/{-(-self.steps // self.steps_per_epoch)}", f"step {event.step}/{self.steps}"]
            done = event.step - self._first.step
            if done > 0:
                left = f"{duration((self.steps - event.step) * (now - self._since) / done)} left"
        rest = [f"{rate:,.0f} samples/s"] if rate else []
        if left:
            rest.append(left)
        names = list(event.metrics)
        while True:  # the line must fit, else the terminal could not rewrite it: the first metrics tell most
            shown = figures({"loss": event.loss, **{name: event.metrics[name] for name in names}})
            text = "  ".join([*parts, shown, *rest])
            if not names or not self.columns or len(text) < self.columns:
                return text
            names.pop()

    def _progress(self, text: str) -> None:
        if not self.live:
            self._line(text)
            return
        self.out.write("\r" + text + " " * max(0, self._width - len(text)))
        self.out.flush()
        self._width = len(text)

    def _line(self, text: str) -> None:
        if self._width:  # a line of progress stands there: put the news in its place
            self.out.write("\r" + " " * self._width + "\r")
            self._width = 0
        self.out.write(text + "\n")
        self.out.flush()


def is_live(process: Path = Path("/proc")) -> bool:
    """Does a person look at a terminal that can rewrite a line?

    mpirun gives every rank a terminal of its own on stdout, even where its own output goes to a file, and pipes
    as stdin and stderr. The truth is with mpirun itself, the parent of the ranks on its host: the first rank asks
    what its parent's stdout is. A rank elsewhere, or under something else, takes lines to be plain."""
    if os.environ.get("TERM", "dumb") == "dumb" or not sys.stdout.isatty():
        return False
    if sys.stderr.isatty():
        return True
    parent = process / str(os.getppid())
    try:
        name, output = (parent / "comm").read_text().strip(), os.readlink(parent / "fd" / "1")
    except OSError:
        return False
    return name in _LAUNCHERS and output.startswith(("/dev/pts/", "/dev/tty"))


def terminal_columns(process: Path = Path("/proc")) -> int:
    """How wide the terminal is that a person looks at; 0: not known. Of mpirun's own where it stands between."""
    for name in (process / str(os.getppid()) / "fd" / "1", process / "self" / "fd" / "1"):
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if columns := os.get_terminal_size(file).columns:
                return columns
        except OSError:
            pass
        finally:
            os.close(file)
    return 0


def banner(job: JobStarted) -> str:
    hosts = ", ".join(f"{host}: {ranks}" for host, ranks in job.hosts.items())
    versions = ", ".join(f"{name} {version}" for name, version in job.versions.items())
    spares = f" and {job.spares} spare" if job.spares else ""
    ranks, shards = (f"{n:,} {noun}{'' if n == 1 else 's'}" for n, noun in ((job.ranks, "rank"), (job.shards, "shard")))
    lines = [
        f"{job.name}: {job.model}, {job.parameters:,} parameters, on {job.device}",
        f"{ranks}{spares} ({hosts}); {job.samples:,} samples in {shards}, "
        f"{job.global_batch} a step, {job.steps:,} steps in {job.steps / job.steps_per_epoch:.4g} epochs",
        *job.data,
        versions,
    ]
    if job.tolerance:
        lines.append(job.tolerance)
    if job.step:
        lines.append(f"goes on from step {job.step}")
    lines.append(f"folder: {job.folder}")
    return "\n".join(line for line in lines if line)


def recovery(event: Recovered) -> str:
    moved = "; ".join(f"shards {_runs(shards)} to rank {rank}" for rank, shards in event.moved.items())
    phases = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in event.phases.items())
    promoted = f"; rank(s) {list(event.promoted)} stepped in" if event.promoted else ""
    return (
        f"recovered in {1000 * event.seconds:.0f} ms ({phases}): {len(event.ranks)} ranks go on after step {event.step}"
        + (f"; {moved}" if moved else "")
        + promoted
    )


def _runs(numbers: Any) -> str:
    """0-4, 7: whole numbers in order, neighbours joined."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)


def ending(event: Finished) -> str:
    s = event.summary
    lines = [
        f"{event.status} after {s.get('steps', 0):,} steps, {s.get('epochs', 0):.4g} epochs, "
        f"in {duration(s.get('wall_s', 0.0))} ({s.get('samples_per_s', 0.0):,.0f} samples/s)"
    ]
    for split in ("train", "validation", "test"):
        if text := figures(s.get(split) or {}):
            lines.append(f"  {split:<11}{text}")
    if failures := s.get("failures"):
        lines.append(f"  {len(failures)} rank(s) lost on the way, {s.get('ranks_finished')} finished")
    if s.get("error"):
        lines.append(f"  {s['error']}")
    if event.folder:
        lines.append(f"  {event.folder}")
    return "\n".join(lines)
