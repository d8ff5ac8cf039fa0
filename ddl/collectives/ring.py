"""Ring allreduce: reduce-scatter, then allgather; each of n ranks sends 2(n-1)/n of the array's bytes.

The slices travel in segments, several of them in flight at once: the link stays busy in both directions while a
received segment is added in the cache, and the allgather of one segment overlaps with the reduce-scatter of others.
Each slice is summed along one chain and then copied, so all ranks end with the same bits. float16 is rounded once at
each of the n-1 hops. Source: Patarasuk and Yuan, 2009."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ddl.arrays import Array, partition, partition_slice
from ddl.comm import EAGER_BYTES, Group
from ddl.comm.group import check_contiguous

SEGMENT_BYTES = EAGER_BYTES
AHEAD = 4  # segments in flight


def allreduce(
    x: Array, group: Group, ranks: Sequence[int] | None = None, write: Callable[[slice], object] | None = None
) -> None:
    """Sum ``x`` over ``ranks`` (default: all workers), in place.

    x: contiguous, same size and dtype on every rank; it may have fewer elements than there are ranks.
    ranks: the same list on each of them, including this rank.
    write: if given, ``x`` is not written yet: it is called with each slice of ``x`` (flattened) just before that slice
    is needed, so that computing one slice overlaps with sending others.
    Raises PeerLost if a member dies during the call; ``x`` is then undefined."""
    ring = _Ring.of(x, group, ranks)
    if write is not None and len(ring.ranks) == 1:
        write(ring.slices[0])
    ring.run([*ring.scattering(), *ring.gathering()], write)


class _Step(NamedTuple):
    """The numbers of the slices sent and received. The slice received in one step is sent in the next."""

    outgoing: int
    incoming: int
    is_added: bool  # whether the received slice is added to this rank's, or replaces it


class _Ring(NamedTuple):
    """One array and the ranks it is summed over."""

    flat: Array
    group: Group
    ranks: Sequence[int]
    position: int  # of this rank in ``ranks``
    slices: list[slice]  # of ``flat``, one per rank

    @classmethod
    def of(cls, x: Array, group: Group, ranks: Sequence[int] | None) -> _Ring:
        check_contiguous(x)
        ranks = range(group.size) if ranks is None else ranks
        return cls(x.reshape(-1), group, ranks, ranks.index(group.rank), partition(x.size, len(ranks)))

    def scattering(self) -> list[_Step]:
        return [_Step(self.position - k - 1, self.position - k - 2, True) for k in range(len(self.ranks) - 1)]

    def gathering(self) -> list[_Step]:
        return [_Step(self.position - k, self.position - k - 1, False) for k in range(len(self.ranks) - 1)]

    def run(self, steps: Sequence[_Step], write: Callable[[slice], object] | None = None) -> None:
        """Send and receive the slices of all steps as one stream of segments.

        Every slice has the same number of segments, so each segment is sent exactly that many messages after it was
        received."""
        count, flat = len(self.ranks), self.flat
        longest = max(s.stop - s.start for s in self.slices) * flat.itemsize
        segments = max(1, -(-longest // SEGMENT_BYTES))
        ahead = min(AHEAD, segments)
        cuts = [partition_slice(s, segments) for s in self.slices]
        widest = max(cut.stop - cut.start for row in cuts for cut in row)
        scratch = self.group.scratch(ahead * widest * flat.itemsize).view(flat.dtype).reshape(ahead, widest)
        outgoing = [cut for step in steps for cut in cuts[step.outgoing % count]]
        arriving = [cut for step in steps for cut in cuts[step.incoming % count]]
        is_added = [step.is_added for step in steps for _ in range(segments)]
        incoming = [
            scratch[number % ahead, : cut.stop - cut.start] if is_added[number] else flat[cut]
            for number, cut in enumerate(arriving)
        ]

        def prepare(number: int) -> None:
            if write is not None and number < segments:  # later segments were received first, and are written then
                write(outgoing[number])

        def arrived(number: int) -> None:
            if is_added[number]:
                if write is not None:
                    write(arriving[number])
                total = flat[arriving[number]]
                np.add(total, incoming[number], out=total)
            prepare(number + ahead)

        if not steps:
            return
        for number in range(ahead):
            prepare(number)
        after, before = self.ranks[(self.position + 1) % count], self.ranks[(self.position - 1) % count]
        self.group.stream([flat[cut] for cut in outgoing], after, incoming, before, arrived, ahead)
