"""A source of images: each is decoded when a batch needs it, and kept only while all of a rank's fit in a fixed space.

pixels.py decodes; image_files.py and webdataset.py find the images and their classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from ddl.data.formats.pixels import Form, ImageSettings, decide_form, decode, describe, read_header
from ddl.data.held import Held
from ddl.data.source import Field, Source
from ddl.errors import DataError
from ddl.wording import counted, listed

KEPT_BYTES = 256 * 2**20  # of decoded images, on each rank
MOST_HEADERS = 20_000  # of more images than these, evenly spaced ones are looked at when they are opened
MOST_HASHED = 20_000  # files
SHOWN = 5  # in a message


class Encoded(Protocol):
    """Encoded images by number. ``name`` says where one is, ``names`` are short."""

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def open(self, number: int) -> BinaryIO: ...

    def name(self, number: int) -> str: ...

    def pick(self, numbers: np.ndarray) -> Encoded: ...

    def files(self) -> Sequence[Path]: ...


@dataclass(frozen=True)
class LooseFiles:
    """One file per image: ``names`` below ``folder``."""

    folder: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int) -> BinaryIO:
        return open(self.folder / self.names[number], "rb")

    def name(self, number: int) -> str:
        return str(self.folder / self.names[number])

    def pick(self, numbers: np.ndarray) -> LooseFiles:
        return LooseFiles(self.folder, [self.names[number] for number in numbers])

    def files(self) -> Sequence[Path]:
        return [self.folder / name for name in self.names] if len(self.names) <= MOST_HASHED else []


@dataclass(frozen=True)
class Members:
    """Images inside uncompressed tar files. places: (n, 3), the number of the file, offset and length in bytes."""

    paths: Sequence[Path]
    places: np.ndarray
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int) -> BinaryIO:
        path, offset, length = self.places[number].tolist()
        with open(self.paths[path], "rb") as file:
            file.seek(offset)
            return BytesIO(file.read(length))

    def name(self, number: int) -> str:
        return f"{self.paths[self.places[number, 0]]}: {self.names[number]}"

    def pick(self, numbers: np.ndarray) -> Members:
        return Members(self.paths, self.places[numbers], [self.names[number] for number in numbers])

    def files(self) -> Sequence[Path]:
        return self.paths


@dataclass(frozen=True)
class Labels:
    """The targets of images: class numbers (n,) with the classes' names, or values (n, 1) without."""

    values: np.ndarray
    names: Sequence[str] = ()

    def pick(self, numbers: np.ndarray) -> Labels:
        return Labels(self.values[numbers], self.names)

    @classmethod
    def of_texts(cls, texts: Sequence[str], known: Sequence[str] = ()) -> Labels:
        """Classes by name, numbered as whole numbers are, else by the alphabet. known: names that need not occur."""
        found = {*texts, *known}
        are_numbers = all(text.isascii() and text.isdigit() for text in found)
        names = sorted(found, key=int if are_numbers else None)  # type: ignore[arg-type]
        number = {name: place for place, name in enumerate(names)}
        return cls(np.array([number[text] for text in texts], np.int64), names)


class _Decoded:
    """The decoded images of a rank: of its first ones, as many as fit."""

    def __init__(self, held: Held, shape: tuple[int, ...]):
        self.held = held
        most = KEPT_BYTES // max(int(np.prod(shape)), 1)
        # Pages of np.empty take no memory until a decoded image is written to them.
        self.images = np.empty((min(len(held), most), *shape), np.uint8)
        self.is_there = np.zeros(len(self.images), bool)

    def take_over(self, older: _Decoded) -> None:
        """Copy the images that both hold."""
        numbers = older.held.numbers()[: len(older.images)][older.is_there]
        both = np.intersect1d(numbers, self.held.numbers()[: len(self.images)], assume_unique=True)
        places = self.held.places(both)
        self.images[places] = older.images[older.held.places(both)]
        self.is_there[places] = True


class Images(Source):
    """Images as x (height, width, channels) uint8, and y if there are labels.

    Damaged images are an error, or left out before samples are numbered, as the settings say; which it is becomes
    known on opening: from headers and ends of files, or, where they are to be left out, by decoding each once."""

    def __init__(
        self,
        encoded: Encoded,
        labels: Labels | None = None,
        settings: ImageSettings | None = None,
        notes: Sequence[str] = (),
    ):
        self._settings = settings or ImageSettings()
        self._encoded, self._labels = encoded, labels
        self.notes = tuple(notes)
        self._look_at_all()
        self._kept = _Decoded(Held([]), self._form.shape)

    def _look_at_all(self) -> None:
        """Read the headers, decide the form of the samples, and reject or leave out what is damaged."""
        count, skips = len(self._encoded), self._settings.damaged == "skip"
        numbers = np.arange(count)
        if count > MOST_HEADERS and not skips:
            numbers = np.linspace(0, count - 1, MOST_HEADERS).astype(np.int64)
        headers, damaged = [], {}
        for number in numbers.tolist():
            try:
                headers.append(self._header(number))
            except DataError as error:
                damaged[number] = str(error)
        if headers:
            self._form = decide_form(headers, self._settings)
        if skips:
            for number in sorted(set(range(count)) - set(damaged)):
                try:
                    self._decode(number)
                except DataError as error:
                    damaged[number] = str(error)
        if damaged and (not skips or len(damaged) == count):
            raise DataError(_damage(list(damaged.values()), count))
        self.notes = (*self.notes, describe(headers, self._form))
        if damaged:
            keep = np.setdiff1d(np.arange(count), list(damaged))
            first = [self._encoded.name(number) for number in list(damaged)[:SHOWN]]
            names = listed([*first, *_more(len(damaged))], "and")
            self._encoded = self._encoded.pick(keep)
            self._labels = None if self._labels is None else self._labels.pick(keep)
            self.left_out = f"{len(damaged)} of {counted(count, 'image')} are damaged and left out: {names}"
            self.notes = (*self.notes, self.left_out)

    def _header(self, number: int) -> Any:
        name = self._encoded.name(number)
        try:
            with self._encoded.open(number) as stream:
                return read_header(stream, name)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", name) from error

    def _decode(self, number: int) -> np.ndarray:
        name = self._encoded.name(number)
        try:
            with self._encoded.open(number) as stream:
                data = stream.read()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", name) from error
        return decode(data, self._form, name)

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        return () if self._labels is None else self._labels.names

    @property
    def fields(self) -> Mapping[str, Field]:
        fields = {"x": Field(self._form.shape, np.dtype(np.uint8))}
        if self._labels is not None:
            values = self._labels.values
            fields["y"] = Field(values.shape[1:], values.dtype, len(self._labels.names) or None)
        return fields

    def __len__(self) -> int:
        return len(self._encoded)

    def hold(self, ranges: Sequence[range]) -> None:
        older, held = self._kept, Held(ranges)
        if held.ranges == older.held.ranges:
            return
        kept = _Decoded(held, self._form.shape)
        kept.take_over(older)
        self._kept = kept

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        kept, x = self._kept, np.empty((len(indices), *self._form.shape), np.uint8)
        for row, (number, place) in enumerate(zip(indices.tolist(), kept.held.places(indices).tolist(), strict=True)):
            if place < len(kept.images) and kept.is_there[place]:
                x[row] = kept.images[place]
                continue
            x[row] = self._decode(number)
            if place < len(kept.images):
                kept.images[place] = x[row]
                kept.is_there[place] = True
        return {"x": x} if self._labels is None else {"x": x, "y": self._labels.values[indices]}

    def learned(self) -> dict[str, Any]:
        return {"kind": "images", "names": list(self.names), **self._form.to_json()}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Decode and number classes as the training part does. Raises DataError for classes that it lacks."""
        if learned.get("kind") != "images":
            raise DataError("these are images, the training part is not", self._encoded.name(0))
        self._form = Form.from_json(learned)
        self._kept = _Decoded(Held([]), self._form.shape)
        if self._labels is None or not self._labels.names:
            return
        names = list(learned["names"])
        unknown = [name for name in self._labels.names if name not in names]
        if unknown:
            first = self._encoded.name(int(np.isin(self._labels.values, self._labels.names.index(unknown[0])).argmax()))
            raise DataError(
                f"{listed(map(repr, unknown[:SHOWN]), 'and')} is none of the classes of the training part, "
                f"{listed(names[:SHOWN] + ['...'] * (len(names) > SHOWN), 'and')}",
                first,
            )
        numbers = np.array([names.index(name) for name in self._labels.names], np.int64)
        self._labels = Labels(numbers[self._labels.values], names)

    def targets(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels.values

    def labels(self) -> np.ndarray:
        assert self._labels is not None
        return self._labels.values

    def content(self) -> Sequence[Path | np.ndarray]:
        files = self._encoded.files()
        own = [] if self._labels is None else [self._labels.values]
        return [*files, *own] if files and all(os.path.exists(file) for file in files) else []

    def identifiers(self) -> tuple[str, np.ndarray]:
        return "file", np.array(self._encoded.names)


def _damage(problems: Sequence[str], count: int) -> str:
    """An error about damaged images, of ``count``."""
    if count == 1:
        return problems[0]
    which = "all images" if len(problems) == count else f"{len(problems):,} of {counted(count, 'image')}"
    hint = "" if len(problems) == count else '; data.damaged = "skip" leaves such images out'
    return f"damaged: {which}: {'; '.join([*problems[:SHOWN], *_more(len(problems))])}{hint}"


def _more(count: int) -> list[str]:
    return [f"{count - SHOWN:,} more"] if count > SHOWN else []
