"""Sums inside a node through memory that its ranks share.

Each rank sums its slice over all ranks' arrays into one common result, block by block, while a block
lies in the cache; a barrier before (all have written) and after (all have summed). A slice is summed
by one rank in rank order, so all read the same bits; float16 is summed in float32 and rounded once.
Summing between nodes is hierarchical.py's."""

from __future__ import annotations

import numpy as np

from ddl.arrays import Array, partition
from ddl.arrays.aligned import LINE_BYTES
from ddl.comm import Group, NodeMemory
from ddl.comm.group import check_contiguous, no_probe
from ddl.kernels.sums import add_rows

BLOCK_BYTES = 128 << 10
PIECE_BYTES = 4 << 20
# Pieces of one node's sum: so long that barriers do not count, so short that all ranks' copies stay in the caches.
CACHED_BYTES = 1 << 20
# What is longer than the caches is written past them, which saves reading what is overwritten. Very long arrays are
# read in longer runs of each rank's: 256 MiB took a fifth less time then on 4 ranks and a tenth on 2, 16 MiB a tenth
# more.
STREAM_BYTES, LONG_BYTES = 16 << 20, 128 << 20
RUN, LONG_RUN = 1024, 2048  # elements
# Up to here each rank sums everything for itself: that costs less than the second barrier.
SMALL_BYTES = 16 << 10


def runs(count: int, parts: int, itemsize: int) -> list[slice]:
    """``partition``, with cuts on cache lines, so that two ranks never write the same one."""
    unit = max(1, LINE_BYTES // itemsize)
    lines = partition(-(-count // unit), parts)
    return [slice(min(s.start * unit, count), min(s.stop * unit, count)) for s in lines]


def add(out: np.ndarray, sources: np.ndarray, part: slice, group: Group) -> float:
    """``part`` of ``out`` (length,) becomes the sum of ``sources`` (ranks, length); returns its squared norm.

    The norm is not finite exactly when an element is not: overflow is for the caller to see."""
    stream = 0 if out.nbytes < STREAM_BYTES else RUN if out.nbytes < LONG_BYTES else LONG_RUN
    if group.probe is no_probe:
        return float(add_rows(out, sources, part.start, part.stop, stream))
    norm, step = 0.0, max(1, BLOCK_BYTES // out.itemsize)
    for start in range(part.start, part.stop, step):
        group.probe(f"{group.doing}.block")
        norm += add_rows(out, sources, start, min(start + step, part.stop), stream)
    return norm


class Workspace:
    """Mapped memory for arrays of any dtype, kept with the group: two halves of a slot and of the common part."""

    def __init__(self, memory: NodeMemory, piece_bytes: int):
        self.memory, self.piece_bytes, self._turn = memory, piece_bytes, 0

    def next_half(self) -> int:
        """A number for ``half``: what is written there next, no rank still reads once a barrier has come between."""
        self._turn += 1
        return self._turn

    def half(self, number: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """(sources of all ranks, result) of the half ``number % 2``, as ``dtype``."""
        cut = slice(number % 2 * self.piece_bytes, (number % 2 + 1) * self.piece_bytes)
        return self.memory.slots[:, cut].view(dtype), self.memory.common[cut].view(dtype)


def workspace(group: Group) -> Workspace | None:
    """The group's, mapped at the first call, which all workers must make; None on all where it cannot be had."""
    if "workspace" not in group.kept:
        memory = group.share(2 * PIECE_BYTES, 2 * PIECE_BYTES)
        group.kept["workspace"] = None if memory is None else Workspace(memory, PIECE_BYTES)
    found: Workspace | None = group.kept["workspace"]
    return found


def allreduce(x: Array, group: Group) -> None:
    """Sum ``x`` over all workers, in place; all of them on one node, whose memory can be shared (``workspace``).

    One barrier a piece: while a piece is summed, the one before is read out and the next one written in.
    Raises PeerLost if a member dies on the way; ``x`` is then garbage."""
    check_contiguous(x)
    space = workspace(group)
    if space is None or len(group.nodes) > 1:
        raise ValueError("the ranks do not share memory")
    flat, me = x.reshape(-1), group.local_ranks.index(group.rank)
    if x.nbytes <= min(SMALL_BYTES, space.piece_bytes):
        _allreduce_small(flat, space, me, group)
        return
    step = min(CACHED_BYTES, space.piece_bytes) // x.itemsize
    pieces = [flat[start : start + step] for start in range(0, flat.size, step)]
    halves = [space.half(space.next_half(), x.dtype) for _ in pieces]
    halves[0][0][me, : pieces[0].size] = pieces[0]
    for number in range(len(pieces) + 1):
        group.node_barrier()
        if number > 0:
            done = pieces[number - 1]
            done[...] = halves[number - 1][1][: done.size]
        if number < len(pieces):
            sources, out = halves[number]
            add(out, sources, runs(pieces[number].size, len(group.local_ranks), x.itemsize)[me], group)
        if number + 1 < len(pieces):
            coming = pieces[number + 1]
            halves[number + 1][0][me, : coming.size] = coming


def _allreduce_small(x: Array, space: Workspace, me: int, group: Group) -> None:
    """One barrier: all write, all wait, all read. The next call writes to the other half."""
    sources, _ = space.half(space.next_half(), x.dtype)
    sources[me, : x.size] = x
    group.node_barrier()
    add(x, sources, slice(0, x.size), group)
