"""Sources in memory: the caller's arrays, and a subset of another source by sample numbers.

split.py chooses the parts of a dataset."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ddl.data.held import merged, runs
from ddl.data.source import Field, Source, Wrapper, as_source
from ddl.errors import DataError
from ddl.registry import tensor_as_array
from ddl.wording import listed, named


class Arrays(Source):
    """Samples in the caller's arrays, not copied: x (n, ...), y (n, ...) or None, and others by name.

    names: of the classes of "y". classes: how many there are, if more than occur."""

    is_cheap = fills_arrays = True

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray | None = None,
        *,
        names: Sequence[str] = (),
        classes: int | None = None,
        **others: np.ndarray,
    ):
        given = {"x": x, **({} if y is None else {"y": y}), **others}
        self.arrays = {name: as_array(value) for name, value in given.items()}
        is_truth = "y" in given and self.arrays["y"].ndim == 1 and self.arrays["y"].dtype == bool
        if is_truth:  # two classes, even if only one occurs
            self.arrays["y"] = self.arrays["y"].astype(np.int64)
        lengths = {name: len(value) if value.ndim else 0 for name, value in self.arrays.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"arrays differ in their number of samples: {named(lengths)}")
        if not lengths["x"]:
            raise DataError("an array of no samples")
        for name, value in self.arrays.items():
            if value.dtype.kind not in ("biufU" if name == "y" else "biuf"):
                raise DataError(f"array {name!r} is of {value.dtype}, not of numbers")
        self.names = tuple(names)
        self._fields = {name: _field(name, value) for name, value in self.arrays.items()}
        if is_truth or classes is not None:
            self._fields["y"] = replace(self._fields["y"], size=classes or 2)

    @property
    def fields(self) -> Mapping[str, Field]:
        return self._fields

    def __len__(self) -> int:
        return len(self.arrays["x"])

    def hold(self, ranges: Sequence[range]) -> None:
        """Nothing to do: the caller keeps the arrays."""

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.take(value, indices, axis=0) for name, value in self.arrays.items()}

    def gather_into(self, indices: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        for name, value in self.arrays.items():
            # mode "clip" writes straight into ``out``; "raise" would go through a buffer.
            value.take(indices, axis=0, out=out[name], mode="clip")

    def targets(self) -> np.ndarray | None:
        return self.arrays.get("y")

    def content(self) -> Sequence[Path | np.ndarray]:
        return list(self.arrays.values())

    def labels(self) -> np.ndarray:
        return self.arrays["y"]


def as_array(value: Any) -> np.ndarray:
    """``value``, anything that NumPy can read, as a contiguous array in the byte order of this machine."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError("an array is masked: fill its masked values, or leave these samples out")
    value = tensor_as_array(value)
    array = np.asarray(value)
    if array.dtype == object and all(isinstance(one, str) for one in array.flat):
        array = array.astype(str)  # a column of pandas
    elif array.dtype == object and hasattr(value, "to_numpy"):
        array = _numbers(value)
    # ascontiguousarray would make a one-element array of a scalar.
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _numbers(table: Any) -> np.ndarray:
    """A table or column of pandas whose numbers are of several types, or may be missing, in float64."""
    try:
        numbers: np.ndarray = table.to_numpy(dtype=np.float64, na_value=np.nan)
        return numbers
    except (ValueError, TypeError) as error:
        texts = [repr(name) for name, column in getattr(table, "items", dict)() if column.dtype.kind not in "biuf"]
        columns = f"column{'s' * (len(texts) > 1)} {listed(texts, 'and')} of the table" if texts else "a column"
        raise DataError(f"{columns} must be numbers: encode texts first, for example by pandas.get_dummies") from error


def _field(name: str, value: np.ndarray) -> Field:
    size = None
    if name == "y" and value.ndim == 1 and value.dtype.kind in "iu" and value.min() >= 0:
        size = int(value.max()) + 1
    return Field(value.shape[1:], value.dtype, size)


class Shared:
    """A source that several subsets share: it holds the samples that any of them needs.

    Calls ``gather`` from one thread at a time, since a user's source need not be thread-safe."""

    def __init__(self, source: Source):
        self.source = as_source(source)
        self._wanted: WeakKeyDictionary[Any, Sequence[range]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def hold_for(self, holder: object, ranges: Sequence[range]) -> None:
        with self._lock:
            if self._wanted.get(holder) == ranges:
                return
            self._wanted[holder] = ranges
            self.source.hold(merged(*self._wanted.values()))

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        with self._lock:
            return self.source.gather(indices)


class Subset(Wrapper):
    """The samples of ``source`` with the numbers ``indices`` (n,), in that order; a number may occur more than once.

    Ascending indices keep neighbours together, so that a shard is a contiguous piece of a file. Subsets of one
    source that are used side by side must be given the same ``Shared``."""

    def __init__(self, source: Source | Shared, indices: np.ndarray):
        self.shared = source if isinstance(source, Shared) else Shared(source)
        super().__init__(self.shared.source)
        self.indices = np.asarray(indices, dtype=np.int64)
        if self.indices.ndim != 1 or not len(self.indices):
            raise DataError("a part of the dataset has no samples")
        if self.indices.min() < 0 or self.indices.max() >= len(self.source):
            raise DataError(f"sample numbers beyond the {len(self.source)} of the source")
        self.fills_arrays = self.source.fills_arrays

    def __len__(self) -> int:
        return len(self.indices)

    def hold(self, ranges: Sequence[range]) -> None:
        numbers = [self.indices[r.start : r.stop] for r in ranges]
        self.shared.hold_for(self, runs(np.concatenate(numbers)) if numbers else [])

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.shared.gather(self.indices.take(indices))

    def gather_into(self, indices: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        self.source.gather_into(self.indices.take(indices), out)

    def targets(self) -> np.ndarray | None:
        stored = self.source.targets()
        return None if stored is None else stored[self.indices]

    def identifiers(self) -> tuple[str, np.ndarray]:
        heading, values = self.source.identifiers()
        return heading, values[self.indices]

    def labels(self) -> np.ndarray:
        return self.source.labels()[self.indices]

    def original(self, index: int) -> int:
        return self.source.original(int(self.indices[index]))


def labels_of(source: Source) -> np.ndarray:
    """The field "y" of all samples; afterwards the source holds nothing."""
    return as_source(source).labels()


class Cast(Wrapper):
    """A source whose fields are delivered as ``dtypes``."""

    def __init__(self, source: Source, dtypes: Mapping[str, np.dtype]):
        super().__init__(source)
        self._fields = {name: Field(f.shape, dtypes[name], f.size) for name, f in source.fields.items()}

    @property
    def fields(self) -> Mapping[str, Field]:
        return self._fields

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = self.source.gather(indices)
        return {name: value.astype(self._fields[name].dtype, copy=False) for name, value in batch.items()}


def _delivered(name: str, field: Field, dtype: np.dtype, is_kept: bool, measured: bool) -> np.dtype:
    """The dtype of a field, see ``as_dtype``."""
    if field.dtype.kind == "f":
        return field.dtype if is_kept else dtype
    is_image = field.dtype == np.uint8 and len(field.shape) > 0
    if name != "x" or field.size is not None or not (measured or is_image):
        return field.dtype
    return np.dtype(np.float64) if is_kept else dtype


CONVERTED_AT_ONCE = 64 * 2**20  # bytes


def as_dtype(source: Source, dtype: np.dtype | str, *, keep: Collection[str] = (), measured: bool = False) -> Source:
    """``source`` with its floating fields (and images of bytes) as ``dtype``; itself if they are so already.

    keep: fields that stay as they are: they are scaled in float64 (normalise.py). measured: whole numbers in "x" are
    measurements, not tokens, and are cast as well.

    Small arrays in memory are converted once, others as they are gathered."""
    source, wanted = as_source(source), np.dtype(dtype)
    dtypes = {name: _delivered(name, f, wanted, name in keep, measured) for name, f in source.fields.items()}
    if all(f.dtype == dtypes[name] for name, f in source.fields.items()):
        return source
    if isinstance(source, Subset):
        return Subset(as_dtype(source.source, wanted, keep=keep, measured=measured), source.indices)
    cast = Cast(source, dtypes)
    if not isinstance(source, Arrays):
        return cast
    if sum(f.dtype.itemsize * int(np.prod(f.shape)) * len(source) for f in cast.fields.values()) > CONVERTED_AT_ONCE:
        return cast
    arrays = {name: value.astype(cast.fields[name].dtype, copy=False) for name, value in source.arrays.items()}
    classes = source.fields["y"].size if "y" in arrays else None
    return Arrays(**arrays, names=source.names, classes=classes)
