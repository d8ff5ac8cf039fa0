"""One file of named arrays in the safetensors format, written call by call and checked when read.

The format is that of the safetensors library; this module makes sure that the bytes reach the disk. store.py defines
the files of a checkpoint and when it counts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from ddl.arrays import Array, host
from ddl.errors import CheckpointError
from ddl.reading import read_regular

Probe = Callable[[str], None]
"""Called with a kill point's name before each system call, and with ``.done`` appended after it."""

CHUNK_BYTES = 16 << 20


def no_probe(point: str) -> None:
    """The default probe: no faults are injected."""


def prepare(arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Host copies that can be written byte by byte: contiguous and little-endian; no copy if they are already."""
    ready = {}
    for name, array in arrays.items():
        array = host(array)
        if array.dtype.kind not in "fiub":
            raise CheckpointError(f"array {name!r} of type {array.dtype} cannot be saved: use numbers")
        # The library writes a strided array's memory as if it were its values in order (safetensors issue 825),
        # so it gets only contiguous ones; ascontiguousarray makes 0-d arrays 1-d.
        flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        ready[name] = flat.reshape(array.shape)
    return ready


def pieces_of(arrays: Mapping[str, Array]) -> Iterator[memoryview]:
    """The bytes of a safetensors file of ``arrays``, in pieces. Raises CheckpointError for an unsupported dtype."""
    try:
        data = memoryview(safetensors.numpy.save(prepare(arrays)))
    except SafetensorError as error:
        raise CheckpointError(f"arrays cannot be saved: {error}") from error
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def digest_of(pieces: Iterable[memoryview]) -> str:
    """The sha256 that ``write_file`` returns for these bytes."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def write_file(path: Path, pieces: Iterator[memoryview], probe: Probe = no_probe, mode: int = 0o644) -> dict[str, Any]:
    """Write a new file and sync it to the disk; returns its {"bytes", "sha256"}.

    Raises OSError, for example for a full disk; the caller removes the partial file."""
    digest, total = hashlib.sha256(), 0
    probe("checkpoint.open")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        probe("checkpoint.open.done")
        for piece in pieces:
            digest.update(piece)
            total += len(piece)
            while len(piece):
                probe("checkpoint.write")
                piece = piece[os.write(fd, piece) :]
                probe("checkpoint.write.done")
        probe("checkpoint.fsync")
        os.fsync(fd)
        probe("checkpoint.fsync.done")
    finally:
        os.close(fd)
    return {"bytes": total, "sha256": digest.hexdigest()}


def sync_folder(path: Path, probe: Probe = no_probe) -> None:
    """Sync a folder's entries to the disk: without its name, a file is lost even if its bytes are on the disk."""
    probe("checkpoint.fsync")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    probe("checkpoint.fsync.done")


def replace_file(path: Path, data: bytes, probe: Probe = no_probe) -> None:
    """Replace a small file atomically: readers see the old file or the new one."""
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    aside.unlink(missing_ok=True)
    write_file(aside, iter([memoryview(data)]), probe)
    probe("checkpoint.rename")
    os.replace(aside, path)
    probe("checkpoint.rename.done")
    sync_folder(path.parent, probe)


def read_file(path: Path, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a file by name, read-only.

    expected: what ``write_file`` returned. Raises CheckpointError if the file is missing, truncated or altered."""
    try:
        data = read_regular(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) != expected["bytes"]:
        raise CheckpointError(f"{path.name} is truncated: {len(data)} bytes of {expected['bytes']}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path.name} is altered: its checksum differs")
    return parse(data)


def parse(data: bytes) -> dict[str, np.ndarray]:
    """The arrays in the bytes of a safetensors file, by name; read-only views of them."""
    try:
        arrays: dict[str, np.ndarray] = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"not a safetensors file: {error}") from error
    return arrays
