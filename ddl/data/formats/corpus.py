"""Language-model corpora: windows of bytes, characters or tokens over files read as one text.

labelled_text.py classifies single lines."""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.formats.rows import MappedRows
from ddl.data.held import Held, runs
from ddl.data.source import Field, Source
from ddl.errors import DataError

PIECE_BYTES = 64 * 1024
SEPARATOR = b"\0"  # before each file, so that its first byte is predicted from something


class Files:
    """Files one after another as one run of bytes, ``SEPARATOR`` before each; nothing of them stays in memory."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        if not self.paths:
            raise DataError("no files to read text from")
        try:
            sizes = [os.path.getsize(path) for path in self.paths]
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", error.filename) from error
        for path, size in zip(self.paths, sizes, strict=True):
            if size == 0 and len(self.paths) == 1:
                raise DataError("the file is empty", path, 0)
        self._sizes = sizes
        self._edges = np.concatenate([[0], np.cumsum([len(SEPARATOR) + size for size in sizes])])
        self.length = int(self._edges[-1])

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` .. ``stop`` of the run."""
        pieces = []
        place = int(np.searchsorted(self._edges, start, side="right")) - 1
        while start < stop:
            low, high = int(self._edges[place]), int(self._edges[place + 1])
            end = min(stop, high)
            if start == low and end > start:
                pieces.append(SEPARATOR)
                start += 1
            if end > start:
                try:
                    with open(self.paths[place], "rb") as file:
                        file.seek(start - low - 1)
                        piece = file.read(end - start)
                except OSError as error:
                    raise DataError(f"cannot be read: {error.strerror}", self.paths[place]) from error
                if len(piece) != end - start:
                    raise DataError("became shorter while it was used", self.paths[place], start - low - 1 + len(piece))
                pieces.append(piece)
            start, place = end, place + 1
        return b"".join(pieces)

    def at(self, position: int) -> tuple[Path, int]:
        """(file, offset in it) of a byte of the run."""
        place = int(np.searchsorted(self._edges, position, side="right")) - 1
        return self.paths[place], max(position - int(self._edges[place]) - 1, 0)


class ByteCodes:
    """Text as the bytes of UTF-8."""

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(self, numbers: np.ndarray) -> str:
        return bytes(np.asarray(numbers, np.uint8)).decode(errors="replace")


class Alphabet:
    """Numbers characters: known ones from 1 on, ascending by code point; 0 for all others."""

    def __init__(self, known: Sequence[int] | np.ndarray = ()):
        self.known = np.array(known, np.uint32)

    def numbers(self, codes: np.ndarray) -> np.ndarray:
        """The numbers of these code points."""
        place = np.minimum(np.searchsorted(self.known, codes), max(len(self.known) - 1, 0))
        found = self.known[place] == codes if len(self.known) else np.zeros(len(codes), bool)
        return np.where(found, place + 1, 0).astype(np.int32)

    def encode(self, text: str) -> np.ndarray:
        return self.numbers(np.frombuffer(text.encode("utf-32-le"), np.uint32)).astype(np.int64)

    def decode(self, numbers: np.ndarray) -> str:
        return "".join(chr(self.known[n - 1]) if n else "\N{REPLACEMENT CHARACTER}" for n in np.asarray(numbers))


class Bytes:
    """Symbols of a corpus that are its bytes."""

    size = 256

    def __init__(self, files: Files):
        self.files, self.paths, self.length = files, files.paths, files.length

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.frombuffer(self.files.read(start, stop), np.uint8)

    def fit(self, pieces: Sequence[tuple[int, int]]) -> None:
        """Nothing to learn: every byte is its own number."""

    def learned(self) -> dict[str, Any]:
        return {"unit": "bytes"}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Nothing to apply."""


class Characters:
    """Symbols of a corpus that are its characters (UTF-8); 0 is any character missing in the training part.

    One pass at the start counts the characters and detects bytes that are not UTF-8."""

    def __init__(self, files: Files):
        self.files, self.paths = files, files.paths
        self._before = [0]  # characters before each piece of PIECE_BYTES
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, files.length, PIECE_BYTES):
            piece = files.read(start, min(start + PIECE_BYTES, files.length))
            try:
                decoder.decode(piece, start + PIECE_BYTES >= files.length)
            except UnicodeDecodeError as error:
                carried = len(error.object) - len(piece)  # bytes of a character that the piece before began
                path, offset = files.at(start + error.start - carried)
                raise DataError(f"not UTF-8 text ({error.reason}): read it as bytes", path, offset) from error
            self._before.append(self._before[-1] + int(_begins(piece).sum()))
        self.length = self._before[-1]
        self.alphabet = Alphabet()

    @property
    def size(self) -> int:
        return len(self.alphabet.known) + 1

    def _byte_of(self, character: int) -> int:
        """The offset of a character."""
        if character >= self.length:
            return self.files.length
        place = int(np.searchsorted(self._before, character, side="right")) - 1
        start = place * PIECE_BYTES
        piece = self.files.read(start, min(start + PIECE_BYTES, self.files.length))
        return start + int(np.flatnonzero(_begins(piece))[character - self._before[place]])

    def _codes(self, start: int, stop: int) -> np.ndarray:
        text = self.files.read(self._byte_of(start), self._byte_of(stop)).decode()
        return np.frombuffer(text.encode("utf-32-le"), np.uint32)

    def fit(self, pieces: Sequence[tuple[int, int]]) -> None:
        """Learn the set of characters from these pieces only."""
        known: set[int] = set()
        for start, stop in pieces:
            for low in range(start, stop, 2**20):
                known.update(np.unique(self._codes(low, min(low + 2**20, stop))).tolist())
        self.alphabet = Alphabet(sorted(known))

    def learned(self) -> dict[str, Any]:
        return {"unit": "characters", "known": self.alphabet.known.tolist()}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Apply the numbering of characters recorded in ``learned``."""
        self.alphabet = Alphabet(learned["known"])

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.alphabet.numbers(self._codes(start, stop))


def _begins(piece: bytes) -> np.ndarray:
    """Which bytes begin a character of UTF-8."""
    return (np.frombuffer(piece, np.uint8) & 0xC0) != 0x80


class Tokens:
    """Symbols that are token numbers in a file of uint16 or uint32, mapped.

    size: the vocabulary; None reads the whole file once to find the largest number."""

    def __init__(self, path: Path, dtype: np.dtype, size: int | None):
        bytes_ = os.path.getsize(path)
        if bytes_ % dtype.itemsize:
            raise DataError(
                f"{bytes_} bytes are no whole number of {dtype} tokens: truncated, or of another type", path
            )
        self.path, self.paths, self.length = path, [path], bytes_ // dtype.itemsize
        if not self.length:
            raise DataError("the file is empty", path, 0)
        self._rows = MappedRows(path, 0, (self.length,), dtype)
        self._rows.hold([range(self.length)])
        self._is_given = size is not None
        self.size = size or 1 + max(int(self._piece(at).max()) for at in range(0, self.length, 2**20))

    def _piece(self, start: int) -> np.ndarray:
        return self.read(start, min(start + 2**20, self.length))

    def read(self, start: int, stop: int) -> np.ndarray:
        values = self._rows.view(start, stop)
        if self._is_given and len(values) and values.max() >= self.size:
            bad = start + int(np.argmax(values >= self.size))
            raise DataError(
                f"token {values[bad - start]} is beyond the vocabulary of {self.size}", self.path, bad * values.itemsize
            )
        return values

    def fit(self, pieces: Sequence[tuple[int, int]]) -> None:
        """Nothing to learn: the file holds token numbers."""

    def learned(self) -> dict[str, Any]:
        return {"unit": "tokens", "size": self.size, "dtype": self._rows.dtype.name}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Take the vocabulary of the training part. Raises DataError if this file exceeds it."""
        if self.size > learned["size"]:
            raise DataError(
                f"token {self.size - 1} is beyond the training part's vocabulary of {learned['size']}", self.path
            )
        self.size = learned["size"]


class Windows(Source):
    """Sample i: x is ``window`` symbols from i * window on, y the same one symbol later.

    So every symbol but the first is predicted once; fewer than ``window`` at the end are left out. Parts are
    taken from the end, not at random: neighbouring windows are one text."""

    is_sequential = True

    def __init__(self, symbols: Bytes | Characters | Tokens, window: int, what: str | Path):
        self.symbols, self.window, self._what = symbols, window, what
        if window < 1:
            raise DataError(f"windows of {window} symbols")
        self._length = (symbols.length - 1) // window
        if self._length < 1:
            raise DataError(f"{symbols.length} symbols are less than one window of {window} and its target", what)
        self._kept: tuple[Held, list[np.ndarray]] = (Held([]), [])

    @property
    def fields(self) -> Mapping[str, Field]:
        field = Field((self.window,), np.dtype(np.int64), self.symbols.size)
        return {"x": field, "y": field}

    def __len__(self) -> int:
        return self._length

    def fit(self, indices: np.ndarray) -> None:
        """Learn the symbols from these samples only."""
        self.symbols.fit([(r.start * self.window, r.stop * self.window + 1) for r in runs(indices)])
        self._kept = (Held([]), [])

    def content(self) -> Sequence[Path | np.ndarray]:
        return list(self.symbols.paths)

    def learned(self) -> dict[str, Any]:
        """How text is cut and numbered, as JSON values."""
        return {"kind": "windows", "window": self.window, **self.symbols.learned()}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Apply the numbering of symbols recorded in ``learned``."""
        self.symbols.recall(learned)
        self._kept = (Held([]), [])

    def hold(self, ranges: Sequence[range]) -> None:
        held = Held(ranges)
        if held.ranges == self._kept[0].ranges:
            return
        texts = [self.symbols.read(r.start * self.window, r.stop * self.window + 1) for r in held.ranges]
        self._kept = (held, texts)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        held, texts = self._kept
        held.places(indices)
        both = np.empty((len(indices), self.window + 1), np.int64)
        starts = np.array([r.start for r in held.ranges], np.int64)
        run = np.searchsorted(starts, indices, side="right") - 1
        steps = np.arange(self.window + 1)
        for place in np.unique(run):
            rows = np.flatnonzero(run == place)
            both[rows] = texts[place][(indices[rows] - starts[place])[:, None] * self.window + steps]
        return {"x": both[:, :-1].copy(), "y": both[:, 1:].copy()}


def open_text(paths: Sequence[Path], window: int = 128, unit: str = "bytes") -> Windows:
    """Windows over text files read as one. unit: "bytes" or "characters"."""
    files = Files(paths)
    if unit not in ("bytes", "characters"):
        raise DataError(f"text is read as 'bytes' or 'characters', not {unit!r}")
    symbols: Bytes | Characters = Bytes(files) if unit == "bytes" else Characters(files)
    return Windows(symbols, window, files.paths[0] if len(files.paths) == 1 else "the text")


def open_tokens(path: Path, window: int = 128, dtype: str = "uint16", vocabulary: int | None = None) -> Windows:
    """Windows over a file of token numbers, such as nanoGPT's train.bin. vocabulary: how many there are; found
    by reading the file if it is not given."""
    if dtype not in ("uint16", "uint32"):
        raise DataError(f"tokens are uint16 or uint32, not {dtype!r}", path)
    return Windows(Tokens(path, np.dtype(dtype).newbyteorder("<"), vocabulary), window, path)
