"""Text classification: a text and its class in each sample, tokenised, cut and padded to one length.

corpus.py reads texts for language models."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddl.data.held import Held
from ddl.data.source import Field, Source
from ddl.data.tables.cells import canonical, is_integer
from ddl.data.tables.convert import Problems
from ddl.data.tables.records import Block, Cells, Reader
from ddl.errors import DataError
from ddl.wording import instead

PADDING, UNKNOWN, RESERVED = 0, 1, 2
TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_+")  # words without digits and underscores, numbers, single signs
MOST_CLASSES = 1000


class Texts(Protocol):
    """Texts by number, and their classes; without names there are none, and the class of each is 0."""

    names: tuple[str, ...]
    notes: tuple[str, ...]
    files: Sequence[Path]

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> Iterator[tuple[str, int]]:
        """(text, class) of these rows, ascending."""
        ...

    def like(self, names: tuple[str, ...]) -> None:
        """Apply this class numbering."""
        ...


class TextList:
    """Texts in memory."""

    notes: tuple[str, ...] = ()
    files: Sequence[Path] = ()

    def __init__(self, texts: Sequence[str], classes: Sequence[int], names: Sequence[str]):
        self.texts, self.classes, self.names = list(texts), list(classes), tuple(names)

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, rows: np.ndarray) -> Iterator[tuple[str, int]]:
        return ((self.texts[row], self.classes[row]) for row in rows.tolist())

    def like(self, names: tuple[str, ...]) -> None:
        _same_names(self.names, names, None)


class ReaderTexts:
    """One text and its class in each row of tables. Reading some rows passes over those before them.

    label: the column of classes; None: there are none."""

    def __init__(self, readers: Sequence[Reader], text: str, label: str | None):
        self._readers, self._text, self._label = list(readers), text, label
        self.files: Sequence[Path] = [reader.path for reader in readers]
        problems, self._count = Problems(), 0
        found: set[str] = set()
        for reader, block in self._blocks():
            cells = block.cells(reader.names.index(text))
            if isinstance(cells, np.ndarray) and len(cells):
                problems.add(reader, int(block.numbers[0]), f"{text!r} is {cells.tolist()[0]!r}, not a text")
            labels = [] if label is None else list(_as_texts(block.cells(reader.names.index(label))))
            found.update(labels)
            for at in [at for at, one in enumerate(labels) if not one]:
                problems.add(reader, int(block.numbers[at]), f"no class in column {label!r}")
            if len(found) > MOST_CLASSES:
                raise DataError(
                    f"over {MOST_CLASSES} different classes", reader.path, int(block.numbers[-1]), reader.unit
                )
            self._count += len(block.numbers)
        for reader in self._readers:
            for number, what in reader.problems:
                problems.add(reader, number, what)
        problems.check()
        if not self._count:
            raise DataError("no samples in the file", self.files[0], 1 + self._readers[0].is_named, "line")
        self.notes = tuple(dict.fromkeys(note for reader in self._readers for note in reader.notes))
        self.names: tuple[str, ...] = ()
        self.like(tuple(sorted(found, key=int) if all(map(is_integer, found)) else sorted(found)))

    def __len__(self) -> int:
        return self._count

    def _blocks(self) -> Iterator[tuple[Reader, Block]]:
        for reader in self._readers:
            reader.problems, notes = [], list(reader.notes)
            for name in (self._text, self._label):
                if name is not None and name not in reader.names:
                    hint = instead(name, reader.names, "there are")
                    raise DataError(f"no {name!r} in the record; {hint}", reader.path, 1, reader.unit)
            for block in reader.blocks():
                yield reader, block
            reader.notes = list(dict.fromkeys((*notes, *reader.notes)))

    def read(self, rows: np.ndarray) -> Iterator[tuple[str, int]]:
        passed = 0
        for reader, block in self._blocks():
            if passed > (rows[-1] if len(rows) else -1):
                return
            low, high = np.searchsorted(rows, (passed, passed + len(block.numbers)))
            own = rows[low:high] - passed
            passed += len(block.numbers)
            if not len(own):
                continue
            texts = _as_texts(block.cells(reader.names.index(self._text)), own)
            if self._label is None:
                yield from ((text, 0) for text in texts)
            else:
                labels = _as_texts(block.cells(reader.names.index(self._label)), own)
                yield from ((text, self._code[label]) for text, label in zip(texts, labels, strict=True))

    def like(self, names: tuple[str, ...]) -> None:
        if self.names:
            _same_names(self.names, names, self.files[0])
        self.names, self._code = names, {name: place for place, name in enumerate(names)}


def _as_texts(cells: Cells, rows: np.ndarray | slice = slice(None)) -> Iterable[str]:
    if isinstance(cells, np.ndarray):
        return [canonical(repr(v)) for v in cells[rows].tolist()]
    return cells.texts(rows)


def _same_names(own: tuple[str, ...], wanted: tuple[str, ...], path: Path | None) -> None:
    unknown = sorted(set(own) - set(wanted))
    if unknown:
        raise DataError(f"classes {unknown[:5]} do not occur in the training part", path)


def tokens_of(text: str) -> list[str]:
    return TOKEN.findall(text.lower())


@lru_cache(maxsize=2**16)
def _hashed(token: str, size: int) -> int:
    digest = hashlib.blake2b(token.encode(errors="replace"), digest_size=8).digest()
    return RESERVED + int.from_bytes(digest, "little") % (size - RESERVED)


class LabelledText(Source):
    """Samples are x (length,) token numbers with 0 after the end, lengths (without padding), and y, the class, if there
    are classes.

    vocabulary: how many numbers there are at most. hashed: tokens are numbered by a hash and nothing is
    learned; otherwise the most frequent tokens of the training part get numbers and the rest is unknown (1)."""

    def __init__(self, texts: Texts, *, length: int = 64, vocabulary: int = 10_000, hashed: bool = False):
        if length < 1 or vocabulary <= RESERVED:
            raise DataError(f"texts of {length} tokens from a vocabulary of {vocabulary}")
        self._texts, self.length, self._most, self._is_hashed = texts, length, vocabulary, hashed
        self.notes = texts.notes
        self._number: dict[str, int] | None = None
        self._kept = (Held([]), self._empty(0))

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        return self._texts.names

    @property
    def vocabulary(self) -> int:
        if self._is_hashed:
            return self._most
        return RESERVED + len(self._fitted())

    @property
    def fields(self) -> Mapping[str, Field]:
        whole = np.dtype(np.int64)
        fields = {"x": Field((self.length,), whole, self.vocabulary), "lengths": Field((), whole, self.length + 1)}
        return {**fields, "y": Field((), whole, len(self.names))} if self.names else fields

    def __len__(self) -> int:
        return len(self._texts)

    def fit(self, indices: np.ndarray) -> None:
        """Learn the vocabulary from these samples only."""
        if self._is_hashed:
            return
        counts: Counter[str] = Counter()
        for text, _ in self._texts.read(np.unique(indices)):
            counts.update(tokens_of(text))
        frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: self._most - RESERVED]
        self._number = {token: place for place, (token, _) in enumerate(frequent, RESERVED)}
        self._kept = (Held([]), self._empty(0))

    def _fitted(self) -> dict[str, int]:
        if self._number is None:
            self.fit(np.arange(len(self)))
        assert self._number is not None
        return self._number

    def learned(self) -> dict[str, Any]:
        """Everything needed to number a text, as JSON values."""
        words = None if self._is_hashed else list(self._fitted())  # in the order of their numbers
        return {
            "kind": "texts",
            "length": self.length,
            "vocabulary": self._most,
            "words": words,
            "names": list(self.names),
        }

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Apply the numbering of tokens, and of classes if there are any, recorded in ``learned``."""
        if self.names:
            self._texts.like(tuple(learned["names"]))
        words = learned["words"]
        self._is_hashed = words is None
        self._number = None if words is None else {word: place for place, word in enumerate(words, RESERVED)}
        self._kept = (Held([]), self._empty(0))

    def encode(self, text: str) -> tuple[np.ndarray, int]:
        """(x, length) of a text."""
        tokens = tokens_of(text)[: self.length]
        x = np.full(self.length, PADDING, np.int64)
        if self._is_hashed:
            x[: len(tokens)] = [_hashed(token, self._most) for token in tokens]
        else:
            number = self._fitted()
            x[: len(tokens)] = [number.get(token, UNKNOWN) for token in tokens]
        return x, len(tokens)

    def _empty(self, rows: int) -> dict[str, np.ndarray]:
        kept = {"x": np.empty((rows, self.length), np.int32), "lengths": np.empty(rows, np.int32)}
        return {**kept, "y": np.empty(rows, np.int32)} if self.names else kept

    def hold(self, ranges: Sequence[range]) -> None:
        held = Held(ranges)
        if held.ranges == self._kept[0].ranges:
            return
        kept = self._empty(len(held))
        for row, (text, label) in enumerate(self._texts.read(held.numbers())):
            kept["x"][row], kept["lengths"][row] = self.encode(text)
            if "y" in kept:
                kept["y"][row] = label
        self._kept = (held, kept)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        held, kept = self._kept
        places = held.places(indices)
        return {name: values[places].astype(np.int64) for name, values in kept.items()}

    def content(self) -> Sequence[Path | np.ndarray]:
        return list(self._texts.files)

    def labels(self) -> np.ndarray:
        return np.fromiter((label for _, label in self._texts.read(np.arange(len(self)))), np.int64, len(self))

    def texts(self, rows: np.ndarray) -> list[str]:
        """The texts with these (ascending) numbers, for comparisons with other methods."""
        return [text for text, _ in self._texts.read(rows)]
