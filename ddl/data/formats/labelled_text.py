"""Text classification: a text and its class in each sample, tokenised, cut and padded to one length.

corpus.py reads texts for language models."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddl.data.formats.npy import first_bytes
from ddl.data.formats.text_lines import LineIndex, blank_note, clean
from ddl.data.held import Held
from ddl.data.source import Field, Source
from ddl.data.tables.cells import canonical
from ddl.data.tables.records import Cells, Reader
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


class RecordLines:
    """One text and its class in each line of a file. parse: (line, its number) -> (text, class as text or number);
    its class is None if there are no classes."""

    def __init__(self, path: Path, parse: Callable[[bytes, int], tuple[str, str | int | None]], skip: int = 0):
        self.path, self._parse = path, parse
        self.files: Sequence[Path] = [path]
        found: set[str | int] = set()

        def check(number: int, line: bytes) -> None:
            label = parse(line, number)[1]
            if label is not None:
                found.add(label)
            if len(found) > MOST_CLASSES:
                raise DataError(f"over {MOST_CLASSES} different classes", path, number, "line")

        self._lines = LineIndex(path, skip, check)
        if len({type(value) for value in found}) > 1:
            raise DataError("classes are partly texts and partly numbers", path)
        self.names = tuple(map(str, sorted(found)))  # type: ignore[type-var]
        self._code = {name: place for place, name in enumerate(self.names)}
        self.notes = tuple(blank_note(self._lines))

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, rows: np.ndarray) -> Iterator[tuple[str, int]]:
        for row, line in zip(rows.tolist(), self._lines.read(rows), strict=True):
            text, label = self._parse(line, self._lines.line_number(row))
            yield text, 0 if label is None else self._code[str(label)]

    def like(self, names: tuple[str, ...]) -> None:
        _same_names(self.names, names, self.path)
        self.names, self._code = names, {name: place for place, name in enumerate(names)}


class ReaderTexts:
    """One text and its class in each row of tables. Reading some rows passes over those before them.

    label: the column of classes; None: there are none."""

    def __init__(self, readers: Sequence[Reader], text: str, label: str | None):
        self._readers = list(readers)
        self.files: Sequence[Path] = [reader.path for reader in readers]
        self.notes: tuple[str, ...] = ()
        self._text, self._label = text, label
        self.names: tuple[str, ...] = ()
        found: set[str] = set()
        self._count = 0
        for classes, _, number in self._rows(label or text):
            self._count += 1
            if label is not None:
                if not classes:
                    raise DataError(f"no class in column {label!r}", self.files[0], number, "row")
                found.add(classes)
            if len(found) > MOST_CLASSES:
                raise DataError(f"over {MOST_CLASSES} different classes", self.files[0], number, "row")
        self.like(tuple(sorted(found)))

    def __len__(self) -> int:
        return self._count

    def _rows(self, *names: str) -> Iterator[tuple[str, str, int]]:
        """(cell of the first column, of the last, number of the row) of all rows."""
        for reader in self._readers:
            for name in names:
                if name not in reader.names:
                    hint = instead(name, reader.names, "there are")
                    raise DataError(f"no column {name!r}; {hint}", reader.path)
            at, last = reader.names.index(names[0]), reader.names.index(names[-1])
            for block in reader.blocks():
                cells = [_as_texts(block.cells(place)) for place in (at, last)]
                yield from zip(*cells, block.numbers, strict=True)

    def read(self, rows: np.ndarray) -> Iterator[tuple[str, int]]:
        wanted = iter(rows.tolist())
        row = next(wanted, None)
        for place, (text, label, _) in enumerate(self._rows(self._text, self._label or self._text)):
            if place == row:
                yield text, 0 if self._label is None else self._code[label]
                row = next(wanted, None)
            if row is None:
                return

    def like(self, names: tuple[str, ...]) -> None:
        if self.names:
            _same_names(self.names, names, self.files[0])
        self.names, self._code = names, {name: place for place, name in enumerate(names)}


def _as_texts(cells: Cells) -> Iterable[str]:
    return [canonical(repr(v)) for v in cells.tolist()] if isinstance(cells, np.ndarray) else cells


def plain_lines(path: Path) -> RecordLines:
    """One text per line, without classes."""

    def parse(line: bytes, number: int) -> tuple[str, None]:
        try:
            return line.decode(), None
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 text ({error.reason})", path, number, "line") from error

    return RecordLines(path, parse)


def json_lines(path: Path, text: str = "text", label: str | None = "label") -> RecordLines:
    """One JSON object per line, with a text and a class (a text or a whole number) under these keys; label: None
    reads the texts alone."""
    kinds: dict[str, Any] = {text: str} if label is None else {text: str, label: (str, int)}

    def parse(line: bytes, number: int) -> tuple[str, str | int | None]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"not a line of JSON: {error}", path, number, "line") from error
        for key, kind in kinds.items():
            if not isinstance(record, dict) or key not in record:
                raise DataError(f"no {key!r} in the record", path, number, "line")
            if not isinstance(record[key], kind):
                wanted = "a text" if kind is str else "a text or a whole number"
                raise DataError(f"{key!r} is {record[key]!r}, not {wanted}", path, number, "line")
        return record[text], None if label is None else record[label]

    return RecordLines(path, parse)


def csv_lines(path: Path, text: str = "text", label: str | None = "label", delimiter: str = ",") -> RecordLines:
    """A CSV file whose first line names its columns, with a text and a class in these. Texts end in their line.

    label: None reads the texts alone."""
    first_bytes(path)

    def cells(line: bytes, number: int) -> list[str]:
        try:
            return next(csv.reader([line.decode()], delimiter=delimiter, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"not a line of CSV: {error}", path, number, "line") from error

    with open(path, "rb") as file:
        columns = cells(clean(file.readline(), 1), 1)
    for name in (text, label):
        if name is not None and name not in columns:
            raise DataError(f"no column {name!r}; {instead(name, columns, 'there are')}", path, 1, "line")
    at, label_at = columns.index(text), None if label is None else columns.index(label)

    def parse(line: bytes, number: int) -> tuple[str, str | None]:
        found = cells(line, number)
        if len(found) != len(columns):
            raise DataError(f"{len(found)} columns where there are {len(columns)}", path, number, "line")
        return found[at], None if label_at is None else found[label_at]

    return RecordLines(path, parse, skip=1)


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
