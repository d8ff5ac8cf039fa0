"""The order of samples: which samples a step takes from which shard, computed from (seed, epoch, step) alone.

loader.py loads them; shards.py assigns shards to ranks.

Position p of an epoch belongs to shard p mod S and is the (p // S)-th of that shard. Step k takes the
positions k*B up to (k+1)*B, so a step's share of any two shards differs by at most one sample, and
neither the samples nor their order depend on ranks. The samples of a shard are a contiguous range
of numbers, so that a rank reads contiguous pieces of a file; the shuffle is within the shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from ddl.arrays import generator
from ddl.errors import ConfigError

KEPT_TABLES = 4


@dataclass(frozen=True)
class Table:
    """The samples of one epoch for a list of shards, laid out so that a micro-batch is one slice.

    numbers: sample numbers, by (step, part, shard). bounds: (rows, shards + 1), the places in ``numbers``
    where each segment of each row (step * parts + part) begins and ends."""

    numbers: np.ndarray
    bounds: np.ndarray
    _segments: dict[bytes, list[slice]] = field(default_factory=dict, repr=False, compare=False)

    def row(self, row: int) -> tuple[np.ndarray, list[slice]]:
        """Sample numbers of a micro-batch, and the slice of each shard within them. A view: leave it unchanged."""
        bounds = self.bounds[row]
        start = bounds[0]
        relative = bounds - start
        key = relative.tobytes()  # most steps are cut alike
        segments = self._segments.get(key)
        if segments is None:
            edges = relative.tolist()
            segments = [slice(a, b) for a, b in pairwise(edges)]
            self._segments[key] = segments
        return self.numbers[start : bounds[-1]], segments

    @property
    def most_rows(self) -> int:
        """Samples of the largest micro-batch."""
        return int((self.bounds[:, -1] - self.bounds[:, 0]).max(initial=0))


@dataclass(frozen=True)
class Order:
    """samples: N. shards: S. global_batch: B. Equal on all ranks, for the life of the job."""

    samples: int
    shards: int
    global_batch: int
    seed: int
    shuffle: bool = True
    _tables: dict[tuple[int, tuple[int, ...], int], Table] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.samples < 1 or self.global_batch < 1:
            raise ConfigError(f"a global batch of {self.global_batch} from {self.samples} samples is empty")
        if not 1 <= self.shards <= self.samples:
            raise ConfigError(f"{self.samples} samples cannot be cut into {self.shards} shards")

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples // self.global_batch)

    def step_samples(self, step_in_epoch: int) -> int:
        """Samples of a step: the global batch, or what is left for the epoch's last step."""
        return min(self.global_batch, self.samples - step_in_epoch * self.global_batch)

    def shard_size(self, shard: int) -> int:
        return (self.samples - shard + self.shards - 1) // self.shards

    @cached_property
    def _starts(self) -> np.ndarray:
        """(shards + 1,): the first sample number of each shard."""
        sizes = (self.samples - np.arange(self.shards) + self.shards - 1) // self.shards
        return np.concatenate([[0], np.cumsum(sizes)])

    def shard_range(self, shard: int) -> range:
        """The sample numbers of a shard."""
        return range(int(self._starts[shard]), int(self._starts[shard + 1]))

    def share(self, step_in_epoch: int, shard: int) -> range:
        """Which positions within its shard a step takes."""
        low = step_in_epoch * self.global_batch
        high = min(low + self.global_batch, self.samples)
        return range(-((shard - low) // self.shards), -((shard - high) // self.shards))

    def permutation(self, epoch: int, shard: int) -> np.ndarray:
        """(shard_size,) the order of a shard's samples in an epoch, as numbers from 0."""
        size = self.shard_size(shard)
        if not self.shuffle:
            return np.arange(size)
        # Sorting raw 64-bit draws: unlike Generator.permutation, their stream is promised not to change
        # between versions of NumPy, and a resumed job must meet the samples it has not yet seen.
        raw = generator(self.seed, "shuffle", epoch, shard).bit_generator.random_raw(size)
        return np.argsort(raw, kind="stable")

    def table(self, epoch: int, shards: Sequence[int], parts: int = 1) -> Table:
        """The table of an epoch for these shards; the last few are cached."""
        key = (epoch, tuple(shards), parts)
        table = self._tables.get(key)
        if table is None:
            table = self._build(epoch, key[1], parts)
            self._tables[key] = table
            for old in list(self._tables)[:-KEPT_TABLES]:
                self._tables.pop(old, None)
        return table

    def _build(self, epoch: int, shards: tuple[int, ...], parts: int) -> Table:
        own = np.array(shards, dtype=np.int64)
        low = np.arange(self.steps_per_epoch)[:, None] * self.global_batch
        high = np.minimum(low + self.global_batch, self.samples)
        first, last = -((own - low) // self.shards), -((own - high) // self.shards)  # (steps, own)
        # Micro-batches cut each shard's share, so that segments do not depend on ranks.
        cuts = (
            first[:, None] + (last - first)[:, None] * np.arange(parts + 1)[:, None] // parts
        )  # (steps, parts + 1, own)
        begin = cuts[:, :-1].reshape(self.steps_per_epoch * parts, len(own))
        counts = np.diff(cuts, axis=1).reshape(begin.shape)
        ends = np.cumsum(counts, axis=None).reshape(begin.shape)
        places = ends - counts
        numbers = np.empty(int(counts.sum()), np.int64)
        for column, shard in enumerate(shards):
            size = self.shard_size(shard)
            target = np.repeat(places[:, column] - begin[:, column], counts[:, column]) + np.arange(size)
            numbers[target] = self.permutation(epoch, shard) + self._starts[shard]
        numbers.flags.writeable = False
        starts = places[:, :1] if shards else np.zeros((len(begin), 1), np.int64)
        return Table(numbers, np.concatenate([starts, ends], axis=1))

    def indices(
        self, epoch: int, step_in_epoch: int, shards: Sequence[int], part: int = 0, parts: int = 1
    ) -> tuple[np.ndarray, list[slice]]:
        """Sample numbers (n,) int64 that a micro-batch takes from ``shards``, and the slice of each shard in them."""
        return self.table(epoch, shards, parts).row(step_in_epoch * parts + part)
