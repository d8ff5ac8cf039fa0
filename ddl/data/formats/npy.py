"""Find an array in a file: its offset, shape and dtype. NumPy's .npy and .npz, and IDX (the format of MNIST's files).

rows.py reads the rows; detect.py decides which arrays make a dataset."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from ddl.data.formats.rows import MappedRows, Rows, StreamedRows
from ddl.errors import DataError

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
GZIP_MAGIC = b"\x1f\x8b"
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def first_bytes(path: Path, count: int = 16) -> bytes:
    """The first bytes of a file. Raises DataError if there is no such file, or if it is empty."""
    try:
        with open(path, "rb") as file:
            head = file.read(count)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path) from error
    if not head:
        raise DataError("the file is empty", path, 0)
    return head


def _npy_header(stream: BinaryIO, path: Path, start: int, what: str) -> tuple[int, tuple[int, ...], np.dtype, bool]:
    """(bytes of the header, shape, dtype, column by column). ``start``: where the member begins in the file."""
    begin = stream.tell()
    try:
        version = npy.read_magic(stream)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"version {version} of .npy")
        shape, by_column, dtype = read(stream)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{what} is not a NumPy array: {error}", path, start) from error
    if dtype.hasobject:
        raise DataError(
            f"{what} holds Python objects, which only pickle can read: refused (texts are saved by astype(str))",
            path,
            start,
        )
    if dtype.kind not in "biufU":
        raise DataError(f"{what} is of {dtype}, neither numbers nor texts (str)", path, start)
    if not shape or not shape[0]:
        raise DataError(f"{what} has shape {shape}: no samples", path, start)
    return stream.tell() - begin, shape, dtype, by_column


def open_npy(path: Path) -> Rows:
    """A .npy file, mapped."""
    first_bytes(path)
    with open(path, "rb") as file:
        length, shape, dtype, by_column = _npy_header(file, path, 0, "the file")
    return MappedRows(path, length, shape, dtype, by_column=by_column)


def open_npz(path: Path) -> dict[str, Callable[[], Rows]]:
    """Name -> opener of each array of a .npz file: stored ones are mapped where they lie in the zip."""
    first_bytes(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist() if info.filename.endswith(".npy")}
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"not a whole .npz file: {error}", path) from error
    if not members:
        raise DataError("a zip file without a single .npy array", path, 0)
    return {name.removesuffix(".npy"): partial(_open_member, path, info) for name, info in members.items()}


def _open_member(path: Path, info: zipfile.ZipInfo) -> Rows:
    what = f"array {info.filename.removesuffix('.npy')!r}"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
            length, shape, dtype, by_column = _npy_header(cast(BinaryIO, stream), path, info.header_offset, what)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise DataError(f"{what} cannot be read: {error}", path, info.header_offset) from error
    announced = length + prod(shape) * dtype.itemsize
    if info.file_size != announced:
        raise DataError(
            f"{what} has {info.file_size} bytes, its header announces {announced}", path, info.header_offset
        )
    if info.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            local = file.read(30)
        # Name and extra field of the local header may be longer than those of the directory.
        name, extra = struct.unpack("<HH", local[26:30])
        return MappedRows(path, info.header_offset + 30 + name + extra + length, shape, dtype, by_column=by_column)
    if by_column:
        raise DataError(
            f"{what} is compressed and stored column by column: save it in C order", path, info.header_offset
        )
    return StreamedRows(path, partial(_open_stream, path, info), length, shape, dtype)


class _Member:
    """A compressed member of a zip as a stream that also closes its archive, and raises DataError for a damaged one."""

    def __init__(self, path: Path, info: zipfile.ZipInfo):
        self._archive = zipfile.ZipFile(path)
        self._stream = self._archive.open(info)

    def read(self, count: int) -> bytes:
        try:
            return self._stream.read(count)
        except zipfile.BadZipFile as error:
            raise OSError(str(error)) from error

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.close()
        self._archive.close()


def _open_stream(path: Path, info: zipfile.ZipInfo) -> BinaryIO:
    return cast(BinaryIO, _Member(path, info))


def open_idx(path: Path) -> Rows:
    """An IDX file, mapped, or streamed when it is gzipped."""
    zipped = first_bytes(path).startswith(GZIP_MAGIC)
    opener: Callable[[], BinaryIO] = partial(gzip.open, path, "rb") if zipped else partial(open, path, "rb")  # type: ignore[assignment]
    try:
        with opener() as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not 1 <= head[3] <= 8:
                raise DataError(f"not an IDX file: it begins with {head.hex(' ') or 'nothing'}", path, 0)
            sizes = file.read(4 * head[3])
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be decompressed: {error}", path) from error
    if len(sizes) < 4 * head[3]:
        raise DataError(f"truncated within its {head[3]} dimensions", path, 4 + len(sizes))
    shape = struct.unpack(f">{head[3]}I", sizes)
    if not shape[0]:
        raise DataError("an IDX file of no samples", path, 4)
    dtype, skip = np.dtype(IDX_TYPES[head[2]]), 4 + len(sizes)
    if zipped:
        return StreamedRows(path, opener, skip, shape, dtype)
    rows = MappedRows(path, skip, shape, dtype)
    end, size = skip + prod(shape) * dtype.itemsize, path.stat().st_size
    if size > end:
        raise DataError(f"{size - end} bytes follow the {shape[0]} announced samples", path, end)
    return rows
