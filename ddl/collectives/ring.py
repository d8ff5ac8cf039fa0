"""A ring: reduce-scatter, then allgather; each rank sends 2(n-1)/n of its bytes whatever their number.

Messages go segment by segment, several at once, so that the link is busy both ways while a piece that came is
added, still in the cache; the allgather of a segment begins while others are still being summed. Each slice is
summed along one chain and then copied, so all ranks end with the same bits. float16 is rounded once at each of
the n-1 hops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ddl.arrays import Array, partition
from ddl.comm import EAGER_BYTES, Group
from ddl.comm.group import check_contiguous

SEGMENT_BYTES = EAGER_BYTES
AHEAD = 4  # segments on their way at once


def allreduce(
    x: Array, group: Group, ranks: Sequence[int] | None = None, write: Callable[[slice], object] | None = None
) -> None:
    """Sum ``x`` over ``ranks`` (default: all workers), in place.

    x: contiguous, same size and dtype on every rank; it may have fewer elements than there are ranks.
    ranks: the same list on each of them, this rank among them.
    write: called for each part of ``x`` (flattened) before it is needed, if it is yet to be written; that is done
    while other parts are on their way.
    Raises PeerLost if a member dies on the way; ``x`` is then garbage."""
    ring = _Ring.of(x, group, ranks)
    if write is not None and len(ring.ranks) == 1:
        write(ring.slices[0])
    ring.go([*ring.scattering(), *ring.gathering()], write)


class _Step(NamedTuple):
    """Slices by number. What comes in at a step goes out at the next."""

    outgoing: int
    incoming: int
    is_added: bool  # to what lies there; otherwise it takes its place


class _Ring(NamedTuple):
    """One array on its way around."""

    flat: Array
    group: Group
    ranks: Sequence[int]
    place: int
    slices: list[slice]  # of ``flat``, by place

    @classmethod
    def of(cls, x: Array, group: Group, ranks: Sequence[int] | None) -> _Ring:
        check_contiguous(x)
        ranks = range(group.size) if ranks is None else ranks
        return cls(x.reshape(-1), group, ranks, ranks.index(group.rank), partition(x.size, len(ranks)))

    def scattering(self) -> list[_Step]:
        return [_Step(self.place - k - 1, self.place - k - 2, True) for k in range(len(self.ranks) - 1)]

    def gathering(self) -> list[_Step]:
        return [_Step(self.place - k, self.place - k - 1, False) for k in range(len(self.ranks) - 1)]

    def go(self, steps: Sequence[_Step], write: Callable[[slice], object] | None = None) -> None:
        """Every slice in the same number of segments, so that a segment goes out as many messages after it came."""
        count, flat = len(self.ranks), self.flat
        longest = max(s.stop - s.start for s in self.slices) * flat.itemsize
        segments = max(1, -(-longest // SEGMENT_BYTES))
        ahead = min(AHEAD, segments)
        cuts = [_cut(s, segments) for s in self.slices]
        widest = max(cut.stop - cut.start for row in cuts for cut in row)
        scratch = self.group.scratch(ahead * widest * flat.itemsize).view(flat.dtype).reshape(ahead, widest)
        leaving = [cut for step in steps for cut in cuts[step.outgoing % count]]
        coming = [cut for step in steps for cut in cuts[step.incoming % count]]
        is_added = [step.is_added for step in steps for _ in range(segments)]
        incoming = [
            scratch[number % ahead, : cut.stop - cut.start] if is_added[number] else flat[cut]
            for number, cut in enumerate(coming)
        ]

        def prepare(number: int) -> None:
            if write is not None and number < segments:  # what leaves later has come before
                write(leaving[number])

        def arrived(number: int) -> None:
            if is_added[number]:
                if write is not None:
                    write(coming[number])
                total = flat[coming[number]]
                np.add(total, incoming[number], out=total)
            prepare(number + ahead)

        if not steps:
            return
        for number in range(ahead):
            prepare(number)
        after, before = self.ranks[(self.place + 1) % count], self.ranks[(self.place - 1) % count]
        self.group.stream([flat[cut] for cut in leaving], after, incoming, before, arrived, ahead)


def _cut(part: slice, parts: int) -> list[slice]:
    return [slice(part.start + s.start, part.start + s.stop) for s in partition(part.stop - part.start, parts)]
