"""Datasets that can only be read from the beginning on, such as a torch IterableDataset: their samples by number.

data.py makes batches of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from ddl.arrays import generator
from ddl.errors import DataError


def seed_all(seed: int, epoch: int, number: int) -> None:
    """Seed the generators that a dataset's transforms may draw from, for one sample."""
    key = int(generator(seed, "sample", epoch, number).integers(2**63))
    torch.default_generator.manual_seed(key)
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002 - what the user's transforms draw from


class Stream:
    """The samples of ``dataset`` numbered in the order in which it gives them; held ones stay in memory.

    A pass over the dataset must give the same samples on every rank and each time: the process's generators are in the
    same state at the start of each. It is read as by one process, without worker information. count: samples, of a
    dataset that is longer or endless; None: all of them, for which it is read once if it has no length."""

    def __init__(self, dataset: Iterable[Any], count: int | None):
        self.dataset = dataset
        self._held: dict[int, Any] = {}
        if count is None:
            try:
                count = len(dataset)  # type: ignore[arg-type]
            except TypeError:
                count = sum(1 for _ in self._read())
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Any:
        return self._held[number]

    def hold(self, ranges: Sequence[range]) -> None:
        """Keep these samples. Reads as far as the last that is not in memory. Raises DataError if it ends before."""
        wanted = {number for numbers in ranges for number in numbers}
        held = {number: sample for number, sample in self._held.items() if number in wanted}
        if missing := wanted - held.keys():
            for number, sample in enumerate(islice(self._read(), max(missing) + 1)):
                if number in missing:
                    held[number] = sample
        if len(held) < len(wanted):
            ended = min(wanted - held.keys())
            raise DataError(f"the dataset gave {ended} samples this time, and {self._count} were expected")
        self._held = held

    def _read(self) -> Iterator[Any]:
        seed_all(0, -1, 0)
        return iter(self.dataset)
