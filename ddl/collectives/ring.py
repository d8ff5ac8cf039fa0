"""A ring: reduce-scatter, then allgather; each rank sends 2(n-1)/n of its bytes whatever their number.

Messages go segment by segment, so that an incoming piece is added while it still lies in the cache.
Each slice is summed along one chain and then copied, so all ranks end with the same bits. float16 is
rounded once at each of the n-1 hops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddl.arrays import Array, partition
from ddl.collectives.contiguous import check_contiguous
from ddl.comm import Group

SEGMENT_BYTES = 1 << 20


def allreduce(x: Array, group: Group, ranks: Sequence[int] | None = None) -> None:
    """Sum ``x`` over ``ranks`` (default: all workers), in place.

    x: contiguous, same size and dtype on every rank; it may have fewer elements than there are ranks.
    ranks: the same list on each of them, this rank among them.
    Raises PeerLost if a member dies on the way; ``x`` is then garbage."""
    reduce_scatter(x, group, ranks)
    allgather(x, group, ranks)


def reduce_scatter(x: Array, group: Group, ranks: Sequence[int] | None = None) -> slice:
    """Sum over ``ranks`` the slice of ``x`` that is this rank's by ``partition``, in place, and return that slice.

    ``x`` is flattened; what lies outside the slice is garbage afterwards."""
    check_contiguous(x)
    ring = range(group.size) if ranks is None else ranks
    place, count = ring.index(group.rank), len(ring)
    flat, slices = x.reshape(-1), partition(x.size, count)
    after, before = ring[(place + 1) % count], ring[(place - 1) % count]
    segment = max(1, SEGMENT_BYTES // x.itemsize)
    for step in range(count - 1):
        outgoing = flat[slices[(place - step - 1) % count]]
        total = flat[slices[(place - step - 2) % count]]
        # Neighbouring slices differ by one element at most, so one of the two may have a segment more.
        for start in range(0, max(outgoing.size, total.size), segment):
            part = total[start : start + segment]
            incoming = group.scratch(part.nbytes).view(x.dtype)
            group.exchange(outgoing[start : start + segment], after, incoming, before)
            np.add(part, incoming, out=part)
    return slices[place]


def allgather(x: Array, group: Group, ranks: Sequence[int] | None = None) -> None:
    """Give every rank of ``ranks`` all slices of ``x``, each of which one rank holds (see ``reduce_scatter``)."""
    check_contiguous(x)
    ring = range(group.size) if ranks is None else ranks
    place, count = ring.index(group.rank), len(ring)
    flat, slices = x.reshape(-1), partition(x.size, count)
    after, before = ring[(place + 1) % count], ring[(place - 1) % count]
    for step in range(count - 1):
        outgoing, incoming = flat[slices[(place - step) % count]], flat[slices[(place - step - 1) % count]]
        group.exchange(outgoing, after, incoming, before)
