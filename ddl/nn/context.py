"""The context of a layer's computation: training or not, which rows belong to which shard, random draws.

Randomness belongs to shards: rows of a segment are drawn from that shard's generator, so a sample gets the same
dropout mask on any rank that computes its shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ddl.arrays import Arena, Array, generator, namespace_of
from ddl.kernels.sparse_rows import TouchedRows


def _nobody_listens(names: Sequence[str | TouchedRows]) -> None:
    pass


def _one_rank(x: Array) -> Array:
    return x


def _no_span(name: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class Context:
    """One forward (and backward) pass over one batch.

    segments: the rows of each shard, in the batch's order, together all rows; empty segments may occur.
    shards: the shard of each segment. part: the micro-batch within the step.
    announce: called with the names of gradients that are whole, while backward still runs.
    data: the array that came from the batch, if its gradient is of no use; a layer that passes it on in another shape
    puts that shape here. mask: (batch, time) booleans, False where a sequence is padding; set by Embedding, dropped by
    the layer that ends the time axis. sum_over_ranks: for layers that want statistics over the global batch.
    categories: (batch, columns), the embedded ones of a table's sample, for WithCategories.
    teacher: (batch, ..., classes), another model's logits for the batch, for the loss Taught.
    loss_scale: gradients are those of the loss times this number.
    span: context manager around phases that appear in a trace."""

    training: bool = False
    segments: Sequence[slice] = ()
    shards: Sequence[int] = ()
    seed: int = 0
    step: int = 0
    part: int = 0
    announce: Callable[[Sequence[str | TouchedRows]], None] = _nobody_listens
    arena: Arena = field(default_factory=Arena)
    data: Array | None = None
    mask: Array | None = None
    categories: Array | None = None
    teacher: Array | None = None
    loss_scale: float = 1.0
    sum_over_ranks: Callable[[Array], Array] = _one_rank
    span: Callable[[str], AbstractContextManager[None]] = _no_span

    def begin(
        self,
        segments: Sequence[slice],
        shards: Sequence[int],
        step: int,
        part: int = 0,
        announce: Callable[[Sequence[str | TouchedRows]], None] | None = None,
    ) -> None:
        """Start another batch: scratch arrays are reused, and generators get new keys."""
        self.arena.rewind()
        self.__dict__.pop("generators", None)
        self.segments, self.shards, self.step, self.part = segments, shards, step, part
        self.announce = announce or _nobody_listens
        self.data = self.mask = self.categories = self.teacher = None

    def wants_gradient_of(self, x: Array) -> bool:
        """Whether backward must return the gradient of a layer's input ``x``."""
        return x is not self.data

    def empty(self, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> Array:
        """A scratch array of the arena, valid until the next step begins."""
        return self.arena.empty(shape, np.dtype(dtype))

    def frame(self) -> AbstractContextManager[None]:
        """Scratch arrays asked for within are valid until its end only."""
        return self.arena.frame()

    @cached_property
    def generators(self) -> list[np.random.Generator]:
        """One generator a segment, keyed by (seed, step, part, shard); layers draw from it in forward's order."""
        return [generator(self.seed, "compute", self.step, self.part, shard) for shard in self.shards]

    def uniform(self, rows: int, *shape: int) -> Array:
        """(rows, *shape) float32 in [0, 1), each segment's rows from its own generator."""
        return self._drawn((rows, *shape), lambda g, view: g.random(out=view, dtype=np.float32))

    def normal(self, rows: int, *shape: int) -> Array:
        """(rows, *shape) float32 standard normal, each segment's rows from its own generator."""
        return self._drawn((rows, *shape), lambda g, view: g.standard_normal(out=view, dtype=np.float32))

    def _drawn(self, shape: tuple[int, ...], draw: Callable[[np.random.Generator, np.ndarray], object]) -> Array:
        """Generators fill host memory, so a GPU gets the same numbers as a CPU."""
        on_device = self.empty(shape, np.float32)
        out = on_device if namespace_of(on_device) is np else np.empty(shape, np.float32)
        covered = 0
        for segment, random in zip(self.segments, self.generators, strict=True):
            draw(random, out[segment])
            covered += segment.stop - segment.start
        if covered != len(out):
            raise ValueError(f"segments cover {covered} of {len(out)} rows: random layers need a batch's segments")
        if out is not on_device:
            on_device.set(out)
        return on_device
