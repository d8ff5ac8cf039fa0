"""summary.json: the result of a launch, under names that scripts read; written atomically.

``status`` says whether the job succeeded; mpirun's exit status does not."""

from __future__ import annotations

import functools
import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ddl.errors import DataError
from ddl.metrics.jsonl import plain
from ddl.reading import parse_object, read_regular, take
from ddl.version import __version__

EARLY_STOPS = 3  # so many launches in a row that a signal ended before their second step: the next will end the same
TOO_EARLY = (
    f"a signal has ended {EARLY_STOPS} launches in a row before they could train: raise the job's time limit (sbatch "
    "--time), or send the signal later (its lead is the number in sbatch --signal=B:USR1@SECONDS)"
)


@dataclass(frozen=True)
class Samples:
    """The ledger's verdict on all samples of the launch's lineage, counted in sample uses."""

    expected: int = 0
    used: int = 0
    missing: int = 0
    repeated: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Failure:
    """A rank that was lost. kind: crash, exception, hang, stopped, recovery; times in seconds.

    detect_s: from the death to the start of the recovery. Its companion saw the first, the leader the second, each by
    the clock of its host. For a rank that hung or was stopped it counts from the last sign of life; for a death that no
    companion could report, from the leader's failing call, so the death may be older. recover_s: from there until all
    survivors were ready for the next step. Both are 0 for a rank that died before the first step. phase: what the rank
    was doing, if known. note: the file with its traceback, or with the stack where it hung."""

    step: int
    rank: int
    host: str
    kind: str
    detect_s: float
    recover_s: float
    phase: str = ""
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """status: "finished" when training reached its end, "stopped" when it ended early, "failed" otherwise.

    final: the state in which training ended: {"checkpoint": "best" or "newest", "step": ..., "epoch": ..., and its
    metrics by split}; validation, test and parameters_sha256 are of it as well. train: the running means of the last
    epoch. Evaluation, prediction and export use this checkpoint unless they are asked for another."""

    status: str
    launch: str
    steps: int
    epochs: float
    global_batch: int
    shards: int
    ranks_started: int
    ranks_finished: int
    train: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    best: Mapping[str, Any] = field(default_factory=dict)  # of the lowest validation loss: step, epoch, loss
    stopped_early: str = ""  # why training ended before its last step, when early stopping ended it
    samples: Samples = field(default_factory=Samples)
    failures: Sequence[Failure] = ()
    parameters_sha256: str = ""
    samples_per_s: float = 0.0
    wall_s: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    warning: str = ""  # why it has probably learned nothing, although it finished
    error: str = ""  # why it ended, when it did not finish
    exit_status: int = 0  # what each rank ended with
    early_stops: int = 0  # launches in a row, up to this one, that a signal ended before their second step

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = plain(asdict(self))
        return values


def write_summary(folder: str | Path, summary: Summary) -> Path:
    """Write ``folder``/summary.json: a reader sees the old one or the new one, never half of one."""
    path = Path(folder) / "summary.json"
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8") as file:
            json.dump(summary.to_json(), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return path


def early_stops(folder: str | Path) -> int:
    """``early_stops`` of the summary in ``folder``; 0 if there is none that can be read."""
    try:
        return int(take({"early_stops": 0, **read_summary(folder)}, "early_stops", int))
    except (DataError, ValueError):
        return 0


def read_summary(folder: str | Path) -> dict[str, Any]:
    """What ``write_summary`` wrote, or for a launch that never trained the launcher or the watcher of its start; empty
    if there is no summary. Raises DataError for anything else."""
    path = Path(folder) / "summary.json"
    try:
        summary = {"steps": 0, **parse_object(read_regular(path))}
        # A launch that ended before its ranks met has no steps.
        filled = {"status": "", "steps": 0, **summary}
        take(filled, "status", str), take(filled, "launch", str), take(filled, "steps", int)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path) from error
    except ValueError as error:
        raise DataError(f"not a summary: {error}", path) from error
    return summary


def versions(mpi: str = "") -> dict[str, str]:
    """name -> version of the software in use. mpi: the library's version string, which only comm knows."""
    found = {"ddl": __version__, "python": platform.python_version()}
    found |= _installed()
    if mpi:
        found["mpi"] = mpi
    return found


@functools.cache
def _installed() -> dict[str, str]:
    """name -> version of the installed libraries. Cached, because reading package metadata is slow."""
    found = {}
    for name in ("numpy", "mpi4py", "numba", "cupy-cuda12x"):
        with suppress(metadata.PackageNotFoundError):
            found[name.partition("-")[0]] = metadata.version(name)
    return found
