"""Rows of float64 in a file: what a table is converted to. Small tables go to a file that has no name and vanishes
with the process; large ones are converted once on each node and stay in the user's cache folder.

convert.py writes the rows; source.py reads those of a rank's shards."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

PIECE_BYTES = 4 * 2**20
CACHED_FROM = 32 * 2**20  # bytes of the files
KEPT_S = 14 * 86400  # after its last use, a converted table is removed when another one is written
STILL_S = 120.0  # a conversion by another process that has made no progress for so long is done again
POLL_S = 0.1
VERSION = 1


class RowStore:
    """(rows, columns) float64 in ``file``, which ends with them. schema: what convert.py learned, as JSON."""

    def __init__(self, file: IO[bytes], columns: int, schema: Mapping[str, Any]):
        self._file, self.columns, self.schema = file, columns, schema
        self.rows = os.fstat(file.fileno()).st_size // (8 * max(columns, 1))

    def pieces(self, ranges: Sequence[range]) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first row, rows) over ``ranges``, a few MiB at a time; nothing of them stays in memory."""
        size = 8 * self.columns
        most = max(PIECE_BYTES // max(size, 1), 1)
        for r in ranges:
            for start in range(r.start, r.stop, most):
                count = min(most, r.stop - start)
                content = os.pread(self._file.fileno(), count * size, start * size)
                yield start, np.frombuffer(content, np.float64).reshape(count, self.columns)


def make(paths: Sequence[Path], key: Mapping[str, Any], convert: Callable[[IO[bytes]], dict[str, Any]]) -> RowStore:
    """The converted table of ``paths``. key: everything else that its rows depend on. convert: writes rows into a file
    and returns their schema, whose "width" is the number of columns."""
    stats = [path.stat() for path in paths]
    folder = _cache() if sum(stat.st_size for stat in stats) >= CACHED_FROM else None
    if folder is None:
        return _private(convert)
    names = [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in zip(paths, stats, strict=True)]
    digest = hashlib.sha256(json.dumps([VERSION, names, key], sort_keys=True, default=str).encode()).hexdigest()[:24]
    place = folder / digest
    try:
        with _turn(folder, digest) as is_mine:
            if not (place / "schema.json").exists():
                if not is_mine:
                    return _private(convert)
                _write(place, convert)
            os.utime(place)
            schema = json.loads((place / "schema.json").read_text())
            return RowStore(open(place / "rows", "rb"), schema["width"], schema)
    except OSError:
        return _private(convert)  # no space, or a file system without locks


def _private(convert: Callable[[IO[bytes]], dict[str, Any]]) -> RowStore:
    file = tempfile.TemporaryFile()  # noqa: SIM115
    schema = json.loads(json.dumps(convert(file)))
    file.flush()
    return RowStore(file, schema["width"], schema)


def _write(place: Path, convert: Callable[[IO[bytes]], dict[str, Any]]) -> None:
    """Convert into a folder aside and rename it. Remove tables that have not been used for long."""
    aside = place.with_name(f"{place.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    began = time.monotonic()
    try:
        with open(aside / "rows", "wb") as file:
            schema = convert(file)
            file.flush()
            size = file.tell()
        line = f"converted in {time.monotonic() - began:.0f} s, once, into {place} ({size / 2**20:,.0f} MiB)"
        schema["notes"] = [*schema["notes"], line]
        (aside / "schema.json").write_text(json.dumps(schema))
        os.rename(aside, place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for other in place.parent.iterdir():
        if time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other) if other.is_dir() else other.unlink()


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


@contextmanager
def _turn(folder: Path, name: str) -> Iterator[bool]:
    """Within it no other process of this node converts the table ``name``: True. False if another one still does, and
    has stopped making progress."""
    rows, since, size = folder / f"{name}.part" / "rows", time.monotonic(), -1
    with open(folder / f"{name}.lock", "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                yield True
                return
            # Reading what the other has written is a sign of life for the watcher of this process.
            grown = _peek(rows)
            if grown != size:
                since, size = time.monotonic(), grown
            elif time.monotonic() - since > STILL_S:
                yield False
                return
            time.sleep(POLL_S)


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
