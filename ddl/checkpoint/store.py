"""A folder of checkpoints: each is there whole or not at all; the newest and the best are kept.

A checkpoint is a folder ``step_00000040`` of two files, arrays.safetensors and state.json. It is written
aside, brought to the disk and renamed; only then may an older one go. What the arrays mean is train's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import Array
from ddl.checkpoint.file import Probe, no_probe, pieces_of, read_file, sync_folder, write_file
from ddl.checkpoint.lease import Fence
from ddl.errors import CheckpointError

ARRAYS, STATE = "arrays.safetensors", "state.json"
_NAME = re.compile(r"step_(\d{8,})(?:-(\d+))?")


def silent(line: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint as its state.json tells it; ``problem`` says why it cannot be used, if that shows already.

    serial: counts the checkpoints written to the folder, so the newest is known although steps may go back."""

    path: Path
    step: int
    serial: int = -1
    score: float | None = None
    problem: str = ""


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json, checked against its own sum. Raises CheckpointError."""
    try:
        state = json.loads((path / STATE).read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{STATE} is missing") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{STATE} is truncated or altered: {error}") from error
    if not isinstance(state, dict) or state.pop("sha256", None) != _digest(state):
        raise CheckpointError(f"{STATE} is altered: its checksum differs")
    return state


class Store:
    """Checkpoints in ``folder``; one process writes (fenced), any may read.

    keep: how many of the newest stay. keep_best: the one with the highest score stays as well.
    say: gets one line about each checkpoint that was passed over. probe: called at every system call."""

    def __init__(
        self,
        folder: str | Path,
        keep: int = 3,
        keep_best: bool = True,
        *,
        fence: Fence | None = None,
        say: Callable[[str], None] = silent,
        probe: Probe = no_probe,
    ):
        if keep < 1:
            raise ValueError(f"keep at least one checkpoint, not {keep}")
        self.folder, self.keep, self.keep_best = Path(folder), keep, keep_best
        self.fence, self.say, self.probe = fence, say, probe
        self._cleaned = False

    # Reading.

    def entries(self) -> list[Entry]:
        """All committed checkpoints, oldest first. One whose state cannot be read stands where its step puts it."""
        readable, broken = [], []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue  # written aside and not finished, or not ours
            try:
                state = read_state(path)
                readable.append(Entry(path, state["step"], state["serial"], state["score"]))
            except CheckpointError as error:
                broken.append(Entry(path, int(match[1]), problem=str(error)))
        entries = sorted(readable, key=lambda entry: entry.serial)
        for lost in sorted(broken, key=lambda entry: entry.step):
            older = [place for place, entry in enumerate(entries) if entry.step < lost.step]
            entries.insert(older[-1] + 1 if older else 0, lost)
        return entries

    def newest(self) -> Path | None:
        """The newest checkpoint that looks usable, not yet verified in full; None where there is none at all."""
        entries = self.entries()
        usable = [entry for entry in entries if not entry.problem] or entries
        return usable[-1].path if usable else None

    def newest_step(self) -> int:
        """The step of the newest checkpoint whose state can be read; -1 without one."""
        return next((entry.step for entry in reversed(self.entries()) if not entry.problem), -1)

    def best(self) -> Path | None:
        """The checkpoint with the highest score."""
        scored = [e for e in self.entries() if e.score is not None]
        return max(scored, key=lambda e: (e.score, e.serial)).path if scored else None

    def load(self, path: str | Path | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays, meta) of the checkpoint at ``path``, or of the newest that is whole.

        Says which newer ones were passed over, and why. Raises CheckpointError if none can be used."""
        if path is not None:
            try:
                return self._read(Path(path))
            except CheckpointError as error:
                raise CheckpointError(f"checkpoint {path} cannot be used: {error}") from error
        problems = []
        for entry in reversed(self.entries()):
            try:
                return self._read(entry.path)
            except CheckpointError as error:
                problems.append(f"{entry.path.name} passed over: {error}")
                self.say(f"checkpoint {problems[-1]}")
        told = "; ".join(problems) if problems else "there is none"
        raise CheckpointError(f"no checkpoint in {self.folder} can be used: {told}")

    def _read(self, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        state = read_state(path)
        return read_file(path / ARRAYS, state["files"][ARRAYS]), state["meta"]

    # Writing.

    def save(self, step: int, arrays: Mapping[str, Array], meta: Mapping[str, Any], score: float | None = None) -> Path:
        """Write a checkpoint and return its folder; afterwards it survives a power cut, and older ones may be gone.

        Raises CheckpointError when it cannot be written (the disk is full): what was there before is untouched.
        Raises Fenced when a newer generation owns the run folder."""
        aside = self.folder / f"step_{step:08d}.tmp-{os.getpid()}"
        try:
            if not self._cleaned:
                self.clean()
            entries = self.entries()
            self._write(aside, step, arrays, meta, score, 1 + max((e.serial for e in entries), default=0))
            final = self._publish(aside, step)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full" if full else error.strerror or str(error)
            raise CheckpointError(
                f"checkpoint of step {step} was not written to {self.folder}: {reason}; those before are untouched"
            ) from error
        except Exception:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        with contextlib.suppress(OSError):  # an old checkpoint that stays does no harm, the new one is there
            self._rotate(final)
        return final

    def clean(self) -> None:
        """Remove what earlier writers left unfinished. Only the one writer of the folder may do this."""
        self.probe("checkpoint.mkdir")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.probe("checkpoint.mkdir.done")
        if self.fence:
            self.fence.check()
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
    ) -> None:
        shutil.rmtree(aside, ignore_errors=True)
        self.probe("checkpoint.mkdir")
        aside.mkdir()
        self.probe("checkpoint.mkdir.done")
        files = {ARRAYS: write_file(aside / ARRAYS, pieces_of(arrays), self.probe)}
        # Through JSON once, so that the sum is taken of what a reader will see.
        state = json.loads(
            json.dumps(
                {"format": 1, "step": step, "serial": serial, "score": score, "files": files, "meta": dict(meta)}
            )
        )
        text = json.dumps({**state, "sha256": _digest(state)}, indent=1).encode()
        write_file(aside / STATE, iter([memoryview(text)]), self.probe)
        sync_folder(aside, self.probe)

    def _publish(self, aside: Path, step: int) -> Path:
        """Give the finished checkpoint its name; another one of the same step gets a number, nothing is replaced."""
        final, copy = self.folder / f"step_{step:08d}", 1
        while final.exists():
            copy += 1
            final = self.folder / f"step_{step:08d}-{copy}"
        if self.fence:
            self.fence.check()
        self.probe("checkpoint.rename")
        os.rename(aside, final)
        self.probe("checkpoint.rename.done")
        sync_folder(self.folder, self.probe)
        return final

    def _rotate(self, newest: Path) -> None:
        """Delete what is neither among the newest nor the best; ``newest`` has just been committed."""
        entries = self.entries()
        usable = [entry for entry in entries if not entry.problem]
        kept = {newest, *(entry.path for entry in usable[-self.keep :])}
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
