"""A folder of checkpoints: each is complete or absent; the newest and the best are kept.

A checkpoint is a folder ``step_00000040`` of two files, arrays.safetensors and state.json. It is written under a
temporary name, synced to the disk and renamed; only then may an older one be deleted."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import Array
from ddl.checkpoint.file import Probe, digest_of, no_probe, pieces_of, read_file, sync_folder, write_file
from ddl.checkpoint.lease import RunFolderLease
from ddl.errors import CheckpointError
from ddl.reading import parse_object, read_regular, take

ARRAYS, STATE = "arrays.safetensors", "state.json"
FORMAT = 1
_NAME = re.compile(r"step_(\d{8,})(?:-(\d+))?")


Check = Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], None]
"""Raises CheckpointError for (arrays, meta) that their reader cannot use."""


def silent(line: str) -> None:
    """The default of ``say``."""


def no_check(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """The default of ``check``."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint as described by its state.json; ``problem`` says why it cannot be used, if that is known already.

    serial: counts the checkpoints written to the folder: after a resume from an older one, steps are not in order."""

    path: Path
    step: int
    serial: int = -1
    score: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class _Arrays:
    """A file of arrays. description: its {"bytes", "sha256"}. changed_ns: its time of change after it was written."""

    path: Path
    step: int
    description: dict[str, Any]
    changed_ns: int


def _is_linked(path: Path, other: Path) -> bool:
    """Whether the arrays of two checkpoints are one file."""
    try:
        return (path / ARRAYS).samefile(other / ARRAYS)
    except OSError:
        return False


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json, verified by its checksum. Raises CheckpointError."""
    try:
        state = parse_object(read_regular(path / STATE))
    except FileNotFoundError as error:
        raise CheckpointError(f"{STATE} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{STATE} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{STATE} is truncated or altered: {error}") from error
    if state.pop("sha256", None) != _digest(state):
        raise CheckpointError(f"{STATE} is altered: its checksum differs")
    try:
        _check(state)
    except ValueError as error:
        raise CheckpointError(f"{STATE} cannot be understood: {error}") from error
    return state


def _check(state: Mapping[str, Any]) -> None:
    """Raises ValueError if a field is missing or of another type than ``Store.save`` writes."""
    if (known := take(state, "format", int)) != FORMAT:
        raise ValueError(f"its format is {known}, this version of ddl reads {FORMAT}")
    take(state, "step", int), take(state, "serial", int), take(state, "meta", dict)
    take(state, "score", float, int, type(None), least=None)
    arrays = take(take(state, "files", dict), ARRAYS, dict)
    take(arrays, "bytes", int), take(arrays, "sha256", str)


class Store:
    """Checkpoints in ``folder``. One process writes, protected by ``lease``; any process may read.

    keep: how many of the newest are kept. keep_best: the one with the highest score is kept as well.
    say: called with a line about each checkpoint that was skipped. probe: called at every system call."""

    mode = 0o644  # of the files

    def __init__(
        self,
        folder: str | Path,
        keep: int = 3,
        keep_best: bool = True,
        *,
        lease: RunFolderLease | None = None,
        say: Callable[[str], None] = silent,
        probe: Probe = no_probe,
    ):
        if keep < 1:
            raise ValueError(f"keep at least one checkpoint, not {keep}")
        self.folder, self.keep, self.keep_best = Path(folder), keep, keep_best
        self.lease, self.say, self.probe = lease, say, probe
        self._cleaned = False
        self._newest_arrays: _Arrays | None = None  # of the checkpoint that this store wrote last

    # Reading.

    def entries(self) -> list[Entry]:
        """All committed checkpoints, oldest first. Those whose state cannot be read are placed by their step.

        Raises CheckpointError if the folder exists but cannot be read."""
        readable, broken = [], []
        for path in self._paths():
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue  # unfinished, or not a checkpoint
            try:
                state = self._state(path)
                readable.append(Entry(path, state["step"], state["serial"], state["score"]))
            except CheckpointError as error:
                broken.append(Entry(path, int(match[1]), problem=str(error)))
        entries = sorted(readable, key=lambda entry: entry.serial)
        for lost in sorted(broken, key=lambda entry: entry.step):
            older = [index for index, entry in enumerate(entries) if entry.step <= lost.step]
            entries.insert(older[-1] + 1 if older else 0, lost)
        return entries

    def _paths(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except OSError as error:
            if not os.path.lexists(self.folder):
                return []
            raise CheckpointError(f"{self.folder} cannot be read: {error.strerror}") from error

    def newest(self) -> Path | None:
        """The newest checkpoint that looks usable, though its arrays are not verified; None if there is none at all."""
        entries = self.entries()
        usable = [entry for entry in entries if not entry.problem] or entries
        return usable[-1].path if usable else None

    def newest_step(self) -> int:
        """The step of the newest checkpoint whose state can be read; -1 if there is none."""
        return next((entry.step for entry in reversed(self.entries()) if not entry.problem), -1)

    def best(self) -> Path | None:
        """The checkpoint with the highest score."""
        scored = [e for e in self.entries() if e.score is not None]
        return max(scored, key=lambda e: (e.score, e.serial)).path if scored else None

    def load(
        self, path: str | Path | None = None, check: Check = no_check
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays, meta) of the checkpoint at ``path``, or of the newest that is complete and passes ``check``.

        Says which newer ones were skipped, and why. Raises CheckpointError if none can be used."""
        if path is not None:
            try:
                return self._read(Path(path), check)
            except CheckpointError as error:
                raise CheckpointError(f"checkpoint {path} cannot be used: {error}") from error
        problems = []
        for entry in reversed(self.entries()):
            try:
                return self._read(entry.path, check)
            except CheckpointError as error:
                problems.append(f"{entry.path.name} skipped: {error}")
                self.say(f"checkpoint {problems[-1]}")
        reasons = "; ".join(problems) if problems else "there is none"
        raise CheckpointError(f"no checkpoint in {self.folder} can be used: {reasons}")

    def _read(self, path: Path, check: Check) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        state = self._state(path)
        arrays, meta = read_file(path / ARRAYS, state["files"][ARRAYS]), state["meta"]
        check(arrays, meta)
        return arrays, meta

    def _state(self, path: Path) -> dict[str, Any]:
        return read_state(path)

    # Writing.

    def save(self, step: int, arrays: Mapping[str, Array], meta: Mapping[str, Any], score: float | None = None) -> Path:
        """Write a checkpoint and return its folder. It then survives a power cut; older ones may have been deleted, and
        earlier ones of the same step are.

        Raises CheckpointError if it cannot be written (the disk is full): earlier checkpoints are then untouched.
        Raises LeaseLost if a newer generation holds the run folder."""
        aside = self.folder / f"step_{step:08d}.tmp-{os.getpid()}"
        try:
            self._make_folder()
            if not self._cleaned:
                self.clean()
            entries = self.entries()
            written = self._write(aside, step, arrays, meta, score, 1 + max((e.serial for e in entries), default=0))
            final = self._publish(aside, step)
            self._newest_arrays = replace(written, path=final / ARRAYS)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full" if full else error.strerror or str(error)
            raise CheckpointError(
                f"checkpoint of step {step} was not written to {self.folder}: {reason}; earlier ones are untouched"
            ) from error
        except Exception:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        with contextlib.suppress(OSError):  # an old checkpoint that cannot be deleted does no harm
            self._rotate(final)
        return final

    def _make_folder(self) -> None:
        """Before every checkpoint: the user may have deleted the folder since the last one."""
        self.probe("checkpoint.mkdir")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.probe("checkpoint.mkdir.done")

    def make_room(self) -> bool:
        """Delete the oldest checkpoint, the best after all others and never the newest; whether one was deleted.

        Raises LeaseLost if a newer generation holds the run folder."""
        if self.lease:
            self.lease.check()
        usable = [entry.path for entry in self.entries() if not entry.problem]
        best = self.best() if self.keep_best else None
        # Without one that has the newest one's arrays, nothing would be freed.
        older = [path for path in usable[:-1] if not _is_linked(path, usable[-1])]
        for path in sorted(older, key=lambda path: path == best):
            with contextlib.suppress(OSError):
                self._delete(path)
                self.say(f"checkpoint {path.name} was deleted, to make room for the last one")
                return True
        return False

    def clean(self) -> None:
        """Remove unfinished files of earlier writers. Only the writer that holds the lease may do this."""
        if self.lease:
            self.lease.check()
        for path in self.folder.glob("step_*.tmp-*"):
            shutil.rmtree(path, ignore_errors=True)
        self._cleaned = True

    def _write(
        self,
        aside: Path,
        step: int,
        arrays: Mapping[str, Array],
        meta: Mapping[str, Any],
        score: float | None,
        serial: int,
    ) -> _Arrays:
        shutil.rmtree(aside, ignore_errors=True)
        self.probe("checkpoint.mkdir")
        aside.mkdir(self.mode | (self.mode & 0o444) >> 2)
        self.probe("checkpoint.mkdir.done")
        pieces = list(pieces_of(arrays))
        description = self._link(aside / ARRAYS, step, pieces)
        if description is None:
            description = write_file(aside / ARRAYS, iter(pieces), self.probe, self.mode)
        files = {ARRAYS: description}
        # Converted to JSON and back, so that the checksum is that of the values a reader gets.
        state = json.loads(
            json.dumps(
                {"format": FORMAT, "step": step, "serial": serial, "score": score, "files": files, "meta": dict(meta)}
            )
        )
        text = json.dumps({**state, "sha256": _digest(state)}, indent=1).encode()
        write_file(aside / STATE, iter([memoryview(text)]), self.probe, self.mode)
        sync_folder(aside, self.probe)
        return _Arrays(aside / ARRAYS, step, description, (aside / ARRAYS).stat().st_mtime_ns)

    def _link(self, path: Path, step: int, pieces: list[memoryview]) -> dict[str, Any] | None:
        """Link ``path`` to the arrays that this store wrote last, if they are of the same step, equal and untouched.

        Returns their description, or None if they must be written. The last step is saved again if it is the best."""
        newest = self._newest_arrays
        if newest is None or newest.step != step or digest_of(pieces) != newest.description["sha256"]:
            return None
        try:
            if newest.path.stat().st_mtime_ns != newest.changed_ns:
                return None
            self.probe("checkpoint.link")
            os.link(newest.path, path)
            self.probe("checkpoint.link.done")
        except OSError:  # it was deleted, or the file system has no hard links
            return None
        return newest.description

    def _publish(self, aside: Path, step: int) -> Path:
        """Give the finished checkpoint its name; beside another one of the same step it gets a number."""
        final, copy = self.folder / f"step_{step:08d}", 1
        while final.exists():
            copy += 1
            final = self.folder / f"step_{step:08d}-{copy}"
        if self.lease:
            self.lease.check()
        self.probe("checkpoint.rename")
        os.rename(aside, final)
        self.probe("checkpoint.rename.done")
        sync_folder(self.folder, self.probe)
        return final

    def _rotate(self, newest: Path) -> None:
        """Delete all but the newest and the best; ``newest`` has just been committed."""
        entries = self.entries()
        step = next((entry.step for entry in entries if entry.path == newest), -1)
        usable = [e for e in entries if not e.problem and (e.step != step or e.path == newest)]
        kept = {newest, *(entry.path for entry in usable[-self.keep :])}
        # An earlier one of this step is the same state; it only stays if it alone has the best score.
        best = self.best() if self.keep_best else None
        for entry in entries:
            if entry.path not in kept and entry.path != best:
                self._delete(entry.path)

    def _delete(self, path: Path) -> None:
        # Renamed first: a half-deleted checkpoint must not look like one.
        gone = self.folder / f"{path.name}.tmp-{os.getpid()}"
        self.probe("checkpoint.rename")
        os.rename(path, gone)
        self.probe("checkpoint.rename.done")
        self.probe("checkpoint.delete")
        shutil.rmtree(gone, ignore_errors=True)
        self.probe("checkpoint.delete.done")
