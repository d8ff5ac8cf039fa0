"""One file of named arrays in the safetensors format, written call by call and checked when read.

The format is 8 bytes of header length, a JSON header, then the arrays' bytes without holes, so any
safetensors reader opens it. Which files make a checkpoint, and when it counts, is store.py's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import Array, host
from ddl.errors import CheckpointError

Probe = Callable[[str], None]
"""Called with a kill point's name before each system call, and with ``.done`` appended after it."""

CHUNK_BYTES = 16 << 20
HEADER_ALIGNMENT = 64

_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_DTYPES = {code: np.dtype(name) for name, code in _CODES.items()}


def no_probe(point: str) -> None:
    """Nobody injects faults."""


def prepare(arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Host copies that can be written byte by byte: contiguous and little-endian; no copy where they are already."""
    ready = {}
    for name, array in arrays.items():
        array = host(array)
        if array.dtype.name not in _CODES:
            raise CheckpointError(f"array {name!r} of type {array.dtype} cannot be saved: use one of {sorted(_CODES)}")
        # A strided array's memory is not its values in order; ascontiguousarray makes 0-d arrays 1-d.
        flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        ready[name] = flat.reshape(array.shape)
    return ready


def header_of(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, list[str]]:
    """(the file's first bytes, the names in the order of their data): wide elements first, so all are aligned."""
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    places, start = {}, 0
    for name in order:
        places[name] = [start, start + arrays[name].nbytes]
        start = places[name][1]
    header = {
        name: {"dtype": _CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": places[name]}
        for name, array in arrays.items()
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, order


def pieces_of(arrays: Mapping[str, Array]) -> Iterator[memoryview]:
    """The bytes of a safetensors file of ``arrays``, piece by piece, without a second copy of them."""
    ready = prepare(arrays)
    header, order = header_of(ready)
    yield memoryview(header)
    for name in order:
        data = ready[name].reshape(-1).view(np.uint8).data
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


def write_file(path: Path, pieces: Iterator[memoryview], probe: Probe = no_probe) -> dict[str, Any]:
    """Write a new file and bring it to the disk; returns {"bytes", "sha256"} of what was written.

    Raises OSError (a full disk, for one); what was written so far is left for the caller to remove."""
    digest, total = hashlib.sha256(), 0
    probe("checkpoint.open")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
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
    """Bring a folder's entries to the disk: a file whose name is not there is lost although its bytes are."""
    probe("checkpoint.fsync")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    probe("checkpoint.fsync.done")


def replace_file(path: Path, data: bytes, probe: Probe = no_probe) -> None:
    """Put a small file in place of an older one: readers see all of the old or all of the new."""
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    aside.unlink(missing_ok=True)
    write_file(aside, iter([memoryview(data)]), probe)
    probe("checkpoint.rename")
    os.replace(aside, path)
    probe("checkpoint.rename.done")
    sync_folder(path.parent, probe)


def read_file(path: Path, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a file, writeable views of one buffer, in the order in which they were saved.

    expected: what ``write_file`` returned. Raises CheckpointError if the file is missing, truncated or altered."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected["bytes"]:
                raise CheckpointError(f"{path.name} is truncated: {size} bytes of {expected['bytes']}")
            data = np.empty(size, np.uint8)
            read = file.readinto(data.data)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
    if read != size or hashlib.sha256(data.data).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path.name} is altered: its checksum differs")
    return parse(data)


def parse(data: np.ndarray) -> dict[str, np.ndarray]:
    """Views into the bytes of a safetensors file, by name. ``data``: (bytes,) uint8."""
    try:
        body = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:body].tobytes())
        arrays = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = (body + offset for offset in entry["data_offsets"])
            arrays[name] = data[start:stop].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return arrays
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"not a safetensors file: {error}") from error
