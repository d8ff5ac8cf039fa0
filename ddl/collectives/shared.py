"""Allreduce inside a node through shared memory.

Each rank sums one slice of all ranks' arrays into a common result, block by block in the cache, between two barriers:
one after all ranks have written, one after all have summed. One rank sums a slice in rank order, so all ranks read the
same bits; float16 is summed in float32 and rounded once. hierarchical.py sums between nodes."""

from __future__ import annotations

import numpy as np

from ddl.arrays import Array, partition
from ddl.arrays.aligned import LINE_BYTES
from ddl.comm import Group, NodeMemory
from ddl.comm.group import check_contiguous, no_probe
from ddl.kernels.sums import add_rows

BLOCK_BYTES = 128 << 10
PIECE_BYTES = 4 << 20
# Long arrays are summed in pieces: long enough to make barriers cheap, short enough to keep all copies in the caches.
CACHED_BYTES = 1 << 20
# Arrays longer than the caches are written with non-temporal stores, which saves reading the lines they overwrite. Very
# long arrays are read in longer runs per rank: that took 20 % off 256 MiB on 4 ranks and 10 % on 2, but added 10 % at
# 16 MiB.
STREAM_BYTES, LONG_BYTES = 16 << 20, 128 << 20
RUN, LONG_RUN = 1024, 2048  # elements
# Up to this size every rank sums the whole array itself, which costs less than a second barrier.
SMALL_BYTES = 16 << 10


def runs(count: int, parts: int, itemsize: int) -> list[slice]:
    """``partition``, with cuts on cache lines, so that no two ranks write to the same line."""
    unit = max(1, LINE_BYTES // itemsize)
    lines = partition(-(-count // unit), parts)
    return [slice(min(s.start * unit, count), min(s.stop * unit, count)) for s in lines]


def add(out: np.ndarray, sources: np.ndarray, part: slice, group: Group) -> float:
    """Write the sum of ``sources`` (ranks, length) to ``part`` of ``out`` (length,); returns its squared norm.

    The norm is finite exactly when every element is, so the caller detects overflow by it."""
    stream = 0 if out.nbytes < STREAM_BYTES else RUN if out.nbytes < LONG_BYTES else LONG_RUN
    if group.probe is no_probe:
        return float(add_rows(out, sources, part.start, part.stop, stream))
    norm, step = 0.0, max(1, BLOCK_BYTES // out.itemsize)
    for start in range(part.start, part.stop, step):
        group.probe(f"{group.doing}.block")
        norm += add_rows(out, sources, start, min(start + step, part.stop), stream)
    return norm


class Workspace:
    """Shared memory for arrays of any dtype, kept with the group. Each slot and the common part have two halves."""

    def __init__(self, memory: NodeMemory, piece_bytes: int):
        self.memory, self.piece_bytes, self._turn = memory, piece_bytes, 0

    def next_half(self) -> int:
        """A number for ``half``. Halves alternate: once a barrier has passed, no rank still reads the other half."""
        self._turn += 1
        return self._turn

    def half(self, number: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """(arrays of all ranks, result) in the half ``number % 2``, as ``dtype``."""
        cut = slice(number % 2 * self.piece_bytes, (number % 2 + 1) * self.piece_bytes)
        return self.memory.slots[:, cut].view(dtype), self.memory.common[cut].view(dtype)


def workspace(group: Group) -> Workspace | None:
    """The group's workspace, mapped by the first call, which all workers make together; None if they cannot share."""
    if "workspace" not in group.kept:
        memory = group.share(2 * PIECE_BYTES, 2 * PIECE_BYTES)
        group.kept["workspace"] = None if memory is None else Workspace(memory, PIECE_BYTES)
    space: Workspace | None = group.kept["workspace"]
    return space


def allreduce(x: Array, group: Group) -> None:
    """Sum ``x`` over all workers, in place; all of them are on one node and can share memory (``workspace``).

    One barrier per piece: between two barriers a rank copies the previous sum out, adds this piece and copies the next
    one in. Raises ValueError if the ranks cannot share memory, and PeerLost if a member dies during the call; ``x`` is
    then undefined."""
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
            following = pieces[number + 1]
            halves[number + 1][0][me, : following.size] = following


def _allreduce_small(x: Array, space: Workspace, me: int, group: Group) -> None:
    """One barrier: all ranks write, wait, and read. The next call writes to the other half."""
    sources, _ = space.half(space.next_half(), x.dtype)
    sources[me, : x.size] = x
    group.node_barrier()
    add(x, sources, slice(0, x.size), group)
