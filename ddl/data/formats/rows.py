"""Rows of an array in a file: memory-mapped, or streamed if the file is compressed.

npy.py and detect.py find the array in the file."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from ddl.data.held import Held
from ddl.errors import DataError

PIECE_BYTES = 4 * 2**20


class Rows(Protocol):
    """shape: (n, ...), first axis the samples. Held rows only may be taken."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def hold(self, ranges: Sequence[range]) -> None: ...

    def take(self, indices: np.ndarray) -> np.ndarray: ...


def check_finite(values: np.ndarray, path: Path, first: int) -> None:
    """Raise DataError naming the first row (numbered from ``first``) with a NaN or an infinity."""
    if values.dtype.kind != "f" or not values.size:
        return
    fine = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not fine.all():
        row = int(np.argmin(fine))
        place = np.argwhere(~np.isfinite(values[row]))[0].tolist()
        where = f", at index {', '.join(map(str, place))}" if place else ""
        raise DataError(f"a value that is not finite{where}", path, first + row, "sample")


class MappedRows:
    """Memory-mapped rows, stored in the file as in memory; only pages of held rows are touched.

    offset: the byte where they begin. Raises DataError when the file ends before the last row."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype, *, by_column: bool = False):
        self.path, self.offset, self.shape, self.dtype = path, offset, shape, dtype
        needed, size = offset + prod(shape) * dtype.itemsize, os.path.getsize(path)
        if size < needed:
            raise DataError(f"truncated: it ends here, {needed} bytes are announced for {shape} x {dtype}", path, size)
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = np.ndarray(shape, dtype, self._map, offset, order="F" if by_column else "C")
        self._held = Held([])

    def hold(self, ranges: Sequence[range]) -> None:
        held = Held(ranges)
        if held.ranges == self._held.ranges:
            return
        # Release the pages of rows that moved to other ranks; held ones are read from the page cache again.
        if self._held.ranges:
            self._map.madvise(mmap.MADV_DONTNEED)
        row = prod(self.shape[1:]) * self.dtype.itemsize
        piece = max(PIECE_BYTES // max(row, 1), 1)
        if self.dtype.kind == "f":
            for r in held.ranges:
                for start in range(r.start, r.stop, piece):
                    check_finite(self._rows[start : min(start + piece, r.stop)], self.path, start)
        self._held = held

    def take(self, indices: np.ndarray) -> np.ndarray:
        self._held.places(indices)
        return self._rows[indices]

    def view(self, start: int, stop: int) -> np.ndarray:
        """Rows as a view of the file, not copied."""
        return self._rows[start:stop]


@dataclass
class _Kept:
    held: Held
    rows: np.ndarray


class StreamedRows:
    """Rows that can only be read from the beginning on (gzip, a compressed member of a zip): held ones are copied.

    reader: opens the stream. skip: bytes of it before the first row."""

    def __init__(self, path: Path, reader: Callable[[], BinaryIO], skip: int, shape: tuple[int, ...], dtype: np.dtype):
        self.path, self.shape, self.dtype = path, shape, dtype
        self._reader, self._skip = reader, skip
        self._kept = _Kept(Held([]), np.empty((0, *shape[1:]), dtype))

    def hold(self, ranges: Sequence[range]) -> None:
        held, old = Held(ranges), self._kept
        if held.ranges == old.held.ranges:
            return
        rows = np.empty((len(held), *self.shape[1:]), self.dtype)
        size = prod(self.shape[1:]) * self.dtype.itemsize
        try:
            with self._reader() as stream:
                position = self._pass(stream, 0, self._skip)
                filled = 0
                for r in held.ranges:
                    position = self._pass(stream, position, self._skip + r.start * size - position)
                    target = rows[filled : filled + len(r)]
                    position = self._fill(stream, position, target)
                    check_finite(target, self.path, r.start)
                    filled += len(r)
                if held.ranges and held.ranges[-1].stop == self.shape[0]:
                    self._end(stream, position)
        except DataError:
            raise
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot be decompressed: {error}", self.path) from error
        self._kept = _Kept(held, rows)

    def _pass(self, stream: BinaryIO, position: int, count: int) -> int:
        while count:
            got = len(stream.read(min(count, PIECE_BYTES)))
            if not got:
                raise DataError(f"truncated: its content ends here, {count} bytes too early", self.path, position)
            position, count = position + got, count - got
        return position

    def _fill(self, stream: BinaryIO, position: int, target: np.ndarray) -> int:
        view = target.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            piece = stream.read(min(len(view) - done, PIECE_BYTES))
            if not piece:
                raise DataError(
                    f"truncated: its content ends here, {len(view) - done} bytes too early", self.path, position
                )
            view[done : done + len(piece)] = piece
            done, position = done + len(piece), position + len(piece)
        return position

    def _end(self, stream: BinaryIO, position: int) -> None:
        """Read the end of the stream, which verifies its checksum."""
        if stream.read(1):
            raise DataError("its content continues after the last announced row", self.path, position)

    def take(self, indices: np.ndarray) -> np.ndarray:
        kept = self._kept
        return kept.rows[kept.held.places(indices)]
