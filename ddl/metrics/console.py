"""The console: prints a banner, a progress line, failures and the final figures of a job.

Only the leader has one. jsonl.py and summary.py write files."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, TextIO

from ddl.metrics.events import (
    CheckpointSaved,
    EpochDone,
    Event,
    Finished,
    FirstStep,
    JobStarted,
    Noted,
    RankFailed,
    Recovered,
    ShardsMoved,
    StepDone,
    Warned,
)
from ddl.output import SafeStream
from ddl.wording import counted

_PLAIN_COLUMNS = 80
_PLAIN_MOST_S = 60.0  # progress lines become rarer, so that a long job does not fill its log file
_MANY_EPOCHS = 1000  # a job of more has no line for each
DETECT = "detect"  # the phase that ends before the recovery begins: its time is none of the recovery's
_LAUNCHERS = ("mpirun", "prterun", "prte", "mpiexec", "orterun")


def duration(seconds: float) -> str:
    """Seconds as "5.2 s", "3:07" or "1:02:45"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figures(metrics: Mapping[str, Any]) -> str:
    """Scalar metrics as "loss 0.0312, accuracy 98.61 %"."""
    shown = []
    for name, value in metrics.items():
        if name == "samples" or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        shown.append(f"{name} {100 * value:.2f} %" if is_share(name) else f"{name} {value:.4g}")
    return ", ".join(shown)


def is_share(name: str) -> bool:
    """Whether a metric is a fraction of one, shown in percent: accuracy, top3, validation_f1."""
    return _SHARE.search(name) is not None


_SHARE = re.compile(r"(^|_)(accuracy|top\d+|precision|recall|f1)$")


class Console:
    """Rewrites one progress line in place on a terminal; prints plain lines, ever more rarely, elsewhere.

    Writing never raises: see ddl/output.py. every_s: seconds between the first progress lines; 0: none. out: default
    stdout. live: whether to rewrite in place; default: ``is_live()``. columns: width of a progress line, 0: unlimited;
    default: that of the terminal, or 80. steps, steps_per_epoch: of the whole job, for a leader that takes over and
    receives no JobStarted; 0: unknown."""

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
        self.out = SafeStream(out if out is not None else sys.stdout)
        self.live = is_live() if live is None else live
        self.columns = columns if columns is not None else terminal_columns() if self.live else _PLAIN_COLUMNS
        self.every_s, self.clock = every_s, clock
        self._started = self._shown_at = self._since = clock()
        self._samples = 0
        self._first: StepDone | None = None
        self._width = 0
        self._has_explained = False

    def write(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, JobStarted):
            self.steps, self.steps_per_epoch, self._first = event.steps, event.steps_per_epoch, None
            self._started = self._shown_at = self._since = self.clock()
            self._line(banner(event))
        elif isinstance(event, EpochDone):
            self._epoch(event)
        elif isinstance(event, Noted):
            self._line(event.message)
        elif isinstance(event, Warned):
            self._line(f"warning: {event.message}")
        elif isinstance(event, RankFailed):
            what = f": {event.error}" if event.error else ""
            where = f" in {event.phase}" if event.phase else ""
            note = f"; see {event.note}" if event.note else ""
            self._line(f"lost rank {event.rank} on {event.host} at step {event.step} ({event.how}{where}){what}{note}")
        elif isinstance(event, Recovered):
            self._line(recovery(event))
        elif isinstance(event, ShardsMoved):
            self._line(balance(event))
        elif isinstance(event, FirstStep):
            self._line(f"first step after the recovery: {1000 * event.seconds:.0f} ms")
        elif isinstance(event, Finished):
            self._line(ending(event))
        elif isinstance(event, CheckpointSaved):
            return  # frequent and of little interest; metrics.jsonl has it

    def _epoch(self, event: EpochDone) -> None:
        """A line for each epoch; for every epoch that is due where there are very many."""
        epochs = -(-self.steps // self.steps_per_epoch)
        is_due = self._is_due(self.clock())
        if not self.every_s or (epochs > _MANY_EPOCHS and 1 < event.epoch < epochs and not is_due):
            return
        if not self._has_explained:
            self._has_explained = True
            self._line(EXPLANATION)
        self._line(epoch_line(event, epochs, self.columns if self.live else 0), is_wide=True)

    def close(self) -> None:
        if self._width:
            self.out.write("\n")
            self._width = 0
        self.out.flush()

    def _is_due(self, now: float) -> bool:
        """Whether a progress line is due; if so, it counts as shown."""
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
            self._first, self._since, self._samples = event, now, 0  # the first step includes start-up time
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
        while True:  # a terminal cannot rewrite a wrapped line; drop the last metrics first
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

    def _line(self, text: str, is_wide: bool = False) -> None:
        """Print ``text``; in a file or pipe its lines are wrapped, unless ``is_wide``: an epoch is one line there."""
        if self._width:  # replace the progress line
            self.out.write("\r" + " " * self._width + "\r")
            self._width = 0
        lines = text.split("\n") if self.live or is_wide else map(_fit, text.split("\n"))
        self.out.write("\n".join(lines) + "\n")
        self.out.flush()


def is_live(process: Path = Path("/proc")) -> bool:
    """Whether stdout is a terminal that can rewrite a line.

    mpirun gives every rank a pseudo-terminal as stdout, even when its own output goes to a file, and pipes as stdin
    and stderr. So under mpirun the question is what mpirun's own stdout is: it is the parent of the ranks on its host.
    Ranks on other hosts, or under other launchers, print plain lines."""
    if os.environ.get("TERM", "dumb") == "dumb" or sys.stdout is None or not sys.stdout.isatty():
        return False
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    parent = process / str(os.getppid())
    try:
        name, output = (parent / "comm").read_text().strip(), os.readlink(parent / "fd" / "1")
    except OSError:
        return False
    return name in _LAUNCHERS and output.startswith(("/dev/pts/", "/dev/tty"))


def terminal_columns(process: Path = Path("/proc")) -> int:
    """Width of the terminal (mpirun's, if this process is one of its ranks); 0: unknown."""
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
    spares = f" and {job.spares} spare" if job.spares else ""
    versions = ", ".join(f"{name} {version}" for name, version in job.versions.items())
    epochs = job.steps / job.steps_per_epoch
    lines = [
        f"{job.name}: {job.model}, {counted(job.parameters, 'parameter')}, on {job.device}",
        f"{counted(job.ranks, 'rank')}{spares} ({', '.join(f'{host}: {ranks}' for host, ranks in job.hosts.items())})",
        f"{counted(job.samples, 'sample')} in {counted(job.shards, 'shard')}, {job.global_batch:,} per step; "
        f"{counted(job.steps, 'step')}, {epochs:.4g} epoch{'' if epochs == 1 else 's'}",
        *job.data,
        versions,
        job.tolerance,
        job.status,
        f"resumes from step {job.step}" if job.step else "",
    ]
    return "\n".join([*(_fit(line) for line in lines if line), f"folder: {job.folder}"])


def _fit(line: str) -> str:
    """``line`` wrapped at 80 columns; long words, such as paths, stay whole."""
    if len(line) <= _PLAIN_COLUMNS or line.startswith("folder: "):
        return line
    return fill(line, _PLAIN_COLUMNS, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


EXPLANATION = "(train: running mean while the epoch trains; validation: after it)"


def epoch_line(event: EpochDone, epochs: int = 0, columns: int = 0) -> str:
    """The metrics of an epoch in a line, or in two where ``columns`` (0: unlimited) do not suffice."""
    parts = [f"epoch {event.epoch}{f'/{epochs}' if epochs else ''}: train {figures(event.train) or 'skipped'}"]
    if event.validation:
        parts.append(f"validation {figures(event.validation)}{' (best so far)' if event.best else ''}")
    whole = "; ".join(parts)
    return whole if not columns or len(whole) <= columns else "\n    ".join(parts)


def _moves(moved: Mapping[int, Sequence[int]]) -> str:
    return "; ".join(
        f"shard{'' if len(shards) == 1 else 's'} {_runs(shards)} to rank {rank}" for rank, shards in moved.items()
    )


def balance(event: ShardsMoved) -> str:
    slowest, fastest = (choose(event.seconds, key=event.seconds.__getitem__) for choose in (max, min))
    times = event.seconds[slowest] / event.seconds[fastest]
    return (
        f"{_moves(event.moved)} after step {event.step}: rank {slowest} takes {times:.1f} times as long for a shard as "
        f"rank {fastest}"
    )


def recovery(event: Recovered) -> str:
    moved = _moves(event.moved)
    phases = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in event.phases.items() if name != DETECT)
    ranks = len(event.ranks)
    detected = f"detected after {1000 * event.phases[DETECT]:.0f} ms, " if DETECT in event.phases else ""
    parts = [
        f"{detected}recovered in {1000 * event.seconds:.0f} ms ({phases}): {counted(ranks, 'rank')} "
        f"continue{'s' if ranks == 1 else ''} after step {event.step}",
        moved,
        f"spares promoted: rank {', '.join(map(str, event.promoted))}" if event.promoted else "",
    ]
    return "; ".join(part for part in parts if part)


def _runs(numbers: Any) -> str:
    """Integers as sorted runs: "0-4, 7"."""
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
        f"{event.status} after {counted(s.get('steps', 0), 'step')}, {s.get('epochs', 0):.4g} epoch"
        f"{'' if s.get('epochs') == 1 else 's'}, "
        f"in {duration(s.get('wall_s', 0.0))} ({s.get('samples_per_s', 0.0):,.0f} samples/s)"
    ]
    if s.get("stopped_early"):
        lines.append(f"  stopped early: {s['stopped_early']}")
    lines += best_line(s)
    for split in ("train", "validation", "test"):
        if text := figures(s.get(split) or {}):
            lines.append(f"  {split:<11}{text}{' (running mean of the last epoch)' * (split == 'train')}")
    if failures := s.get("failures"):
        lines.append(f"  {counted(len(failures), 'rank')} lost, {s.get('ranks_finished')} finished")
    if s.get("error"):
        lines.append(f"  {s['error']}")
    if event.folder:
        saved = ": the state is saved; start again to resume" if event.status == "stopped" else ""
        lines.append(f"  {event.folder}{saved}")
    return "\n".join(lines)


def best_line(summary: Mapping[str, Any]) -> list[str]:
    """Which epoch had the lowest validation loss, and whether its state is the final one."""
    best, final = summary.get("best") or {}, summary.get("final") or {}
    if not best:
        return []
    if final.get("checkpoint") == "best":
        what = "its state is the final one" if final.get("step") == summary.get("steps") else "its state is restored"
    elif best["step"] == summary.get("steps"):
        what = "the newest"
    else:
        what = "the state is the newest; train.restore_best keeps this one"
    return [f"  best       epoch {best['epoch']:g}, validation loss {best['loss']:.4g}: {what}"]
