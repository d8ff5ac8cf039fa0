"""Datasets of PyTorch, or Hugging Face, as data sources: samples by number, collated into arrays.

Random transforms draw from generators that are seeded for each sample, so an augmented sample is the same on every
rank, also when it is read again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from ddl.data import Field, Source, drawing
from ddl.errors import ConfigError, DataError
from ddl.torch.readers import Readers, unreadable
from ddl.torch.streams import Stream, seed_all


class Dataset(Source):
    """dataset: has a length, and ``dataset[i]`` is sample i: a tuple, a mapping or one value. One that can only be
    iterated is read from its beginning whenever shards move, and each rank keeps its own samples in memory: see
    ``streams.Stream``. samples: how many of such a one. One of Hugging Face without a format gives arrays.

    collate_fn: makes a batch of a list of samples, as for a DataLoader. names: what the parts of a tuple are called, or
    the keys of a mapping: by default a model takes "x" and the loss compares with "y".
    Transforms may draw from ``torch``, ``random`` and ``numpy.random``: these are seeded by (seed, epoch, number) for
    each sample in training, and by its number in evaluation. workers: processes of each rank that read ahead, each with
    a copy of the dataset; 0 reads on the thread that trains, because those generators belong to the whole process."""

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        names: Sequence[str] | Mapping[str, str] = ("x", "y"),
        workers: int = 0,
        samples: int | None = None,
    ):
        if isinstance(dataset, DataLoader):
            raise ConfigError(
                "a DataLoader makes batches for one process: give its dataset, or "
                "ddl.torch.Dataset(dataset, collate_fn, workers=N)"
            )
        self._stream: Stream | None = None
        if is_stream := isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            if not hasattr(dataset, "__iter__"):
                raise ConfigError(f"a dataset has __getitem__ or __iter__, and {type(dataset).__name__} neither")
            if workers:
                raise ConfigError("workers read samples by number, and this dataset can only be iterated: workers=0")
            with _generators_restored():
                dataset = self._stream = Stream(_formatted(dataset, names), samples)
        elif samples is not None:
            raise ConfigError("samples is of datasets that can only be iterated: torch.utils.data.Subset has some")
        try:
            count = len(dataset)
        except TypeError as error:
            raise ConfigError(f"a dataset needs a length (__len__), which {type(dataset).__name__} has not") from error
        if not count:
            raise DataError("a dataset of no samples")
        if is_stream:
            self.notes = [
                f"{count} samples of an iterable dataset, which is read from its beginning at the start and whenever "
                "shards move; each rank keeps its own in memory"
            ]
        else:
            dataset = _formatted(dataset, names)
        self.reads_from_start = is_stream
        self.dataset, self._collate, self._called = dataset, collate_fn or default_collate, names
        self._readers = Readers(dataset, workers) if workers else None
        self.stays_on_thread = not workers
        self._draws = False  # whether reading a sample draws random numbers, as far as is known
        self.hold([range(1)])
        self._fields = {name: Field(a.shape[1:], a.dtype) for name, a in self.gather(np.zeros(1, np.int64)).items()}
        if "x" not in self._fields:
            keys = list(self._fields)
            raise ConfigError(
                f"the samples have {keys}, of which none is called 'x': names={{{keys[0]!r}: 'x', ...: 'y'}} of "
                "ddl.torch.Dataset says which is which"
            )

    @property
    def fields(self) -> Mapping[str, Field]:
        return self._fields

    def __len__(self) -> int:
        return len(self.dataset)

    def hold(self, ranges: Sequence[range]) -> None:
        """Nothing to do for a dataset that is read by number: it manages its own memory."""
        if self._stream is not None:
            with _generators_restored():
                self._stream.hold(ranges)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        if not len(indices):  # in the last step of an epoch a rank may have none, of which nothing can be collated
            return {name: np.empty((0, *field.shape), field.dtype) for name, field in self.fields.items()}
        if self._readers is not None:
            return self._named(self._collated(self._readers.read(indices.tolist(), *self._key())))
        with _generators_restored() as before:
            if not self._draws:
                samples = self._read(indices.tolist())
                self._draws = States.now() != before
            if self._draws:
                samples = [self._sample(number, self._key()) for number in indices.tolist()]
            return self._named(self._collated(samples))

    def _read(self, numbers: list[int]) -> list[Any]:
        """Samples of which none, as far as is known, draws random numbers."""
        if hasattr(self.dataset, "__getitems__"):
            try:
                return list(self.dataset.__getitems__(numbers))
            except Exception:
                for number in numbers:  # which one was it?
                    self._sample(number)
                raise
        return [self._sample(number) for number in numbers]

    def _sample(self, number: int, key: tuple[int, int] | None = None) -> Any:
        """key: (seed, epoch) of its draws. Raises DataError if the dataset raises."""
        if key is not None:
            seed_all(*key, number)
        try:
            return self.dataset[number]
        except Exception as error:
            raise DataError(unreadable(number, error)) from error

    def _collated(self, samples: list[Any]) -> Any:
        try:
            return self._collate(samples)
        except (TypeError, RuntimeError) as error:
            if self._collate is not default_collate:
                raise
            raise DataError(f"samples do not form a batch without a transform or collate_fn: {error}") from error

    def _key(self) -> tuple[int, int]:
        """(seed, epoch), which key the draws of a sample together with its number."""
        return drawing() or (0, -1)

    def _named(self, batch: Any) -> dict[str, np.ndarray]:
        if isinstance(batch, Mapping):
            called = self._called if isinstance(self._called, Mapping) else {name: name for name in batch}
            parts = {called[key]: value for key, value in batch.items() if key in called}
        else:
            values = batch if isinstance(batch, (tuple, list)) else (batch,)
            if isinstance(self._called, Mapping) or len(values) > len(self._called):
                raise DataError(
                    f"a sample has {len(values)} parts, and names are {self._called}: name them all, as in "
                    'ddl.torch.Dataset(dataset, names=("x", "x2", "y")), and say which forward takes, as in '
                    'ddl.torch.Model(net, loss, inputs=("x", "x2"))'
                )
            parts = dict(zip(self._called, values))
        return {name: _array(name, value) for name, value in parts.items()}

    def labels(self) -> np.ndarray:
        known = _targets(self.dataset)
        if known is not None:
            return _array("y", known)
        if self._stream is None:
            return super().labels()
        self.hold([range(len(self))])  # in one pass
        labels = self.gather(np.arange(len(self)))["y"]
        self.hold([])
        return labels


def _formatted(dataset: Any, names: Sequence[str] | Mapping[str, str]) -> Any:
    """A dataset of Hugging Face: only the columns that have a name, as arrays unless it has a format."""
    if not type(dataset).__module__.startswith("datasets."):
        return dataset
    if isinstance(names, Mapping):
        dataset = dataset.select_columns(list(names))
    form = getattr(dataset, "format", None)  # an iterable one has none to ask for
    has_format = form["type"] is not None if form is not None else dataset._formatting is not None
    return dataset if has_format else dataset.with_format("numpy")


def _targets(dataset: Any) -> Tensor | None:
    """All targets of a dataset whose second tensor they are."""
    if isinstance(dataset, Subset):
        whole = _targets(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    return dataset.tensors[1] if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1 else None


def _array(name: str, value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"field {name!r} of the samples is of {array.dtype}, not of numbers: make them numbers, or choose others "
            'by names={"image": "x", "label": "y"}'
        )
    return array


@dataclass
class States:
    """The states of the generators of the whole process."""

    of_torch: Tensor
    of_python: Any
    of_numpy: Any

    @classmethod
    def now(cls) -> States:
        return cls(torch.random.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002

    def restore(self) -> None:
        torch.random.set_rng_state(self.of_torch)
        random.setstate(self.of_python)
        np.random.set_state(self.of_numpy)  # noqa: NPY002

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, States)
            and torch.equal(self.of_torch, other.of_torch)
            and self.of_python == other.of_python
            and all(np.array_equal(a, b) for a, b in zip(self.of_numpy, other.of_numpy))
        )


@contextmanager
def _generators_restored() -> Iterator[States]:
    before = States.now()
    try:
        yield before
    finally:
        before.restore()
