"""One trial of a sweep: an ordinary run in its own folder, started as a process on its own cores.

What is known of a trial is read from its run folder, so a sweep that was killed knows as much when it starts again."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ddl.launcher.evidence import read_json
from ddl.reading import parse_object

EX_USAGE = 2
END_S = 30.0  # for a run to save its state
PR_SET_PDEATHSIG = 1


class History:
    """The validation metric of a run by epoch, read from metrics.jsonl as it grows."""

    def __init__(self, folder: Path, metric: str, sign: float):
        self.path, self.metric, self.sign = folder / "metrics.jsonl", metric, sign
        self.by_epoch: dict[int, float] = {}
        self.names: set[str] = set()  # of the metrics seen
        self._read = 0

    def update(self) -> bool:
        """Read the lines written since the last call; whether an epoch ended. Smaller values are better."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        before = len(self.by_epoch)
        for line in whole.splitlines():
            if b'"epoch"' not in line:
                continue
            try:
                event = parse_object(line)
            except ValueError:  # a line that a killed writer left unfinished
                continue
            found = event.get("validation")
            if event.get("event") == "epoch" and isinstance(found, dict):
                self.names |= found.keys()
                value = found.get(self.metric)
                if isinstance(value, int | float) and math.isfinite(value):
                    self.by_epoch[int(event["epoch"])] = self.sign * value
                elif self.metric in found:
                    self.by_epoch[int(event["epoch"])] = math.inf
        return len(self.by_epoch) > before


class RunProcess:
    """A run in progress. It ends when the sweep's process dies, and with all its ranks."""

    def __init__(self, words: Sequence[str], ranks: int, cores: Sequence[int], log: Path):
        verb = ["ddl.launch", "-n", str(ranks)] if ranks > 1 else ["ddl.train"]
        parent = os.getpid()
        libc = ctypes.CDLL(None)

        def settle() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)
            os.sched_setaffinity(0, cores)

        with open(log, "ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", *verb, *words],
                # Only the sweep is a Slurm job's script, which is queued again when it ends early.
                env={name: value for name, value in os.environ.items() if name != "ENVIRONMENT"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=settle,
                start_new_session=True,
            )
        self.cores = list(cores)
        self._end_at: float | None = None

    def end(self) -> None:
        """Ask the run to save its state and end; it is killed if it does not."""
        if self._end_at is None:
            self._end_at = time.monotonic() + END_S
            self._signal(signal.SIGTERM)

    def status(self) -> int | None:
        """The exit status; None while it runs."""
        if self._end_at is not None and time.monotonic() > self._end_at:
            self._signal(signal.SIGKILL)
        return self._popen.poll()

    def _signal(self, number: int) -> None:
        try:
            if number == signal.SIGKILL:
                os.killpg(self._popen.pid, number)
            else:
                self._popen.send_signal(number)
        except ProcessLookupError:
            pass


def is_finished(folder: Path) -> bool:
    """Whether the run in ``folder`` reached its end."""
    return read_json(folder / "summary.json").get("status") == "finished"


def reason(folder: Path, log: Path) -> str:
    """Why a run failed, in one line: its own error, or the last line that it printed."""
    error = str(read_json(folder / "summary.json").get("error") or "")
    if error:
        return error.splitlines()[0]
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it printed nothing"
