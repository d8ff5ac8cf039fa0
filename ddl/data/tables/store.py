"""Rows of float64 in files: what a table is converted to. The files of a small table vanish with the process; a large
one is converted once on each node, by all processes that open it, and stays in the user's cache folder.

convert.py writes the rows; source.py reads those of a rank's shards."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from ddl.data.held import Held

PIECE_BYTES = 4 * 2**20
CACHED_FROM = 32 * 2**20  # bytes of the files
KEPT_S = 14 * 86400  # after its last use, a converted table is removed when another one is written
STILL_S = 120.0  # a part that another process has not finished in so long without progress is converted again
POLL_S = 0.1
VERSION = 2


class Conversion(Protocol):
    """A table to be converted, see convert.py."""

    def convert(self, share: Share) -> int: ...

    def conclude(self, parts: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None: ...


class RowStore:
    """(rows, columns) float64 in the files of a folder, one after another, and their schema: what convert.py learned.
    Its "numbers" replace, for each file and column of categories, the numbers in the file."""

    def __init__(self, folder: Path):
        self.schema = json.loads((folder / "schema.json").read_text())
        self.columns: int = self.schema["width"]
        self._files = [open(folder / name, "rb") for name in self.schema["files"]]  # noqa: SIM115
        sizes = [os.fstat(file.fileno()).st_size // (8 * max(self.columns, 1)) for file in self._files]
        self._edges = np.cumsum([0, *sizes]).tolist()
        self.rows: int = self._edges[-1]

    def pieces(self, held: Held) -> Iterator[np.ndarray]:
        """The held rows, (n, columns), a few MiB of a file at a time; nothing of them stays in memory."""
        size = 8 * self.columns
        most = max(PIECE_BYTES // max(size, 1), 1)
        for file, numbers, (low, high) in zip(self._files, self.schema["numbers"], pairwise(self._edges), strict=True):
            others = {int(at): np.array([*table, np.nan]) for at, table in numbers.items()}
            for start in range(low, high, most):
                rows = held.ranges.within(start, min(start + most, high)).numbers()
                if not len(rows):
                    continue
                first, many = int(rows[0]), int(rows[-1] - rows[0]) + 1
                content = os.pread(file.fileno(), many * size, (first - low) * size)
                found = np.frombuffer(content, np.float64).reshape(many, self.columns)
                found = found if len(rows) == many else found[rows - first]
                if others:
                    found = found.copy()
                for at, table in others.items():
                    found[:, at] = table[np.where(np.isnan(found[:, at]), -1, found[:, at]).astype(np.int64)]
                yield found


def make(paths: Sequence[Path], key: Mapping[str, Any], work: Conversion) -> RowStore:
    """The converted table of ``paths``. key: everything else that its rows depend on."""
    stats = [path.stat() for path in paths]
    folder = _cache() if sum(stat.st_size for stat in stats) >= CACHED_FROM else None
    if folder is None:
        return _alone(work)
    names = [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in zip(paths, stats, strict=True)]
    digest = hashlib.sha256(json.dumps([VERSION, names, key], sort_keys=True, default=str).encode()).hexdigest()[:24]
    place = folder / digest
    try:
        if not (place / "schema.json").exists():
            _together(place, work)
        os.utime(place)
        return RowStore(place)
    except OSError:
        return _alone(work)  # no space, or a file system without locks


def _alone(work: Conversion) -> RowStore:
    with tempfile.TemporaryDirectory(prefix="ddl-table-") as folder:
        _convert(Path(folder), work, "")
        return RowStore(Path(folder))


def _convert(folder: Path, work: Conversion, note: str) -> None:
    """Convert the table into ``folder`` with the other processes that do. note: for the banner, about {} seconds and {}
    MiB."""
    began = time.monotonic()
    for attempt in count():
        with contextlib.closing(Share(folder, attempt)) as share:
            parts = work.convert(share)
            while not share.wait(parts):
                work.convert(share)
            if (schema := work.conclude(share.found(parts))) is not None:
                break
    assert schema is not None
    files = [share.name(part, "rows") for part in range(parts)]
    size = sum(file.stat().st_size for file in files) / 2**20
    notes = [*schema["notes"], note.format(f"{time.monotonic() - began:.0f}", f"{size:,.0f}")]
    _publish(
        folder / "schema.json", {**schema, "files": [file.name for file in files], "notes": list(filter(None, notes))}
    )


class Share:
    """The parts of a table that this process converts: each that no other one has begun. A part is a file of ``folder``
    and a lock, which ends with its process: another one then converts the part."""

    def __init__(self, folder: Path, attempt: int):
        self._folder, self._attempt, self._waits = folder, attempt, True
        self._open: list[IO[Any]] = []

    def name(self, part: int, suffix: str) -> Path:
        return self._folder / f"{self._attempt}-{part}.{suffix}"

    def begin(self, part: int) -> IO[bytes] | None:
        """A file for the rows of a part; None if another process converts it."""
        if self.name(part, "json").exists():
            return None
        lock = open(self.name(part, "lock"), "w")  # noqa: SIM115
        if not _locked(lock) and self._waits:
            lock.close()
            return None
        self._open = [lock, open(self.name(part, f"{os.getpid()}"), "wb")]  # noqa: SIM115
        return self._open[1]

    def end(self, part: int, found: Mapping[str, Any]) -> None:
        """The rows are written; ``found``, as JSON, goes to ``Conversion.conclude`` of every process."""
        lock, rows = self._open
        rows.close()
        os.rename(rows.name, self.name(part, "rows"))
        _publish(self.name(part, "json"), found)
        lock.close()

    def found(self, parts: int) -> Iterator[Mapping[str, Any]]:
        for part in range(parts):
            yield json.loads(self.name(part, "json").read_text())

    def wait(self, parts: int) -> bool:
        """Wait for the parts that others convert: True when all are ready, False if this process can convert some of
        them: their processes have ended, or make no progress."""
        since, size = time.monotonic(), -1
        while absent := [part for part in range(parts) if not self.name(part, "json").exists()]:
            if any(map(self._is_given_up, absent)):
                return False
            # Reading what the others have written is a sign of life for the watcher of this process.
            grown = sum(map(_peek, self._folder.iterdir()))
            if grown != size:
                since, size = time.monotonic(), grown
            elif time.monotonic() - since > STILL_S:
                self._waits = False
                return False
            time.sleep(POLL_S)
        return True

    def _is_given_up(self, part: int) -> bool:
        with open(self.name(part, "lock"), "w") as lock:
            return _locked(lock) and not self.name(part, "json").exists()

    def close(self) -> None:
        for file in self._open:
            file.close()


def _together(place: Path, work: Conversion) -> None:
    """Convert the table with all processes that want it now, into a folder aside, and rename that."""
    aside, began = place.with_name(f"{place.name}.part"), time.monotonic()
    with open(place.with_name(f"{place.name}.lock"), "w") as users:
        while not _locked(users, fcntl.LOCK_SH):
            if time.monotonic() - began > STILL_S:
                raise OSError("another process does not release the table")
            time.sleep(POLL_S)
        try:
            if not (place / "schema.json").exists():
                shutil.rmtree(place, ignore_errors=True)
                aside.mkdir(exist_ok=True)
                _convert(aside, work, f"converted in {{}} s, once, into {place} ({{}} MiB)")
                os.rename(aside, place)
                _tidy(place)
        except OSError:
            if not (place / "schema.json").exists():
                raise  # else another process was faster
        finally:
            if _locked(users):  # the last one
                shutil.rmtree(aside, ignore_errors=True)


def _tidy(place: Path) -> None:
    """Remove what is left of the conversion, and tables that have not been used for long."""
    used = (*json.loads((place / "schema.json").read_text())["files"], "schema.json")
    for path in place.iterdir():
        if path.name not in used:
            path.unlink(missing_ok=True)
    for other in place.parent.iterdir():
        if time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other) if other.is_dir() else other.unlink()


def _publish(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that others see whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(content))
    os.rename(aside, path)


def _locked(file: IO[Any], kind: int = fcntl.LOCK_EX) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    return False


def _cache() -> Path | None:
    """The user's cache folder for tables; None if there is none that only this user can write."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(base):  # of a user whom the system does not know it is "~"
        return None
    folder = Path(base) / "ddl" / "tables"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError:
        return None
    return folder if status.st_uid == os.geteuid() and not status.st_mode & 0o022 else None


def _peek(path: Path) -> int:
    """The size of a file, whose last 128 KiB are read; 0 if it does not exist."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 2**17, 0))
            file.read()
    except OSError:
        return 0
    return size
