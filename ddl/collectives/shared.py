"""Sums inside a node through memory that its ranks share.

Each rank sums its slice over all ranks' arrays into one common result, block by block, while a block
lies in the cache; a barrier before (all have written) and after (all have summed). A slice is summed
by one rank in rank order, so all read the same bits; float16 is summed in float32 and rounded once.
Summing between nodes is hierarchical.py's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddl.arrays import Array, partition
from ddl.collectives.contiguous import check_contiguous
from ddl.comm import Group, SharedMemory
from ddl.comm.group import no_probe

BLOCK_BYTES = 128 << 10
PIECE_BYTES = 4 << 20
LINE_BYTES = 64


def runs(count: int, parts: int, itemsize: int) -> list[slice]:
    """``partition``, with cuts on cache lines, so that two ranks never write the same one."""
    unit = max(1, LINE_BYTES // itemsize)
    lines = partition(-(-count // unit), parts)
    return [slice(min(s.start * unit, count), min(s.stop * unit, count)) for s in lines]


class Block(NamedTuple):
    """``out`` is to become the sum of ``sources``, in this order."""

    out: np.ndarray
    sources: list[np.ndarray]


def blocks(sources: np.ndarray, out: np.ndarray, part: slice) -> list[Block]:
    """Cut ``part`` of ``out`` (length,) and ``sources`` (ranks, length) into blocks that fit the cache."""
    step = max(1, BLOCK_BYTES // out.itemsize)
    cuts = [slice(start, min(start + step, part.stop)) for start in range(part.start, part.stop, step)]
    return [Block(out[cut], [row[cut] for row in sources]) for cut in cuts]


def add(todo: Sequence[Block], group: Group, with_norm: bool = False) -> float:
    """Sum each block. ``with_norm`` also returns the sum's squared norm, taken while a block is in the cache;
    it is not finite exactly when an element is not. Overflow is no error here: the caller looks at the sum."""
    silent, norm = group.probe is no_probe, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for out, sources in todo:
            if not silent:
                group.probe(f"{group.doing}.block")
            total = out if out.dtype != np.float16 else group.scratch(4 * out.size).view(np.float32)
            if len(sources) == 1:
                total[...] = sources[0]
            else:
                np.add(sources[0], sources[1], out=total, dtype=total.dtype)
            for source in sources[2:]:
                np.add(total, source, out=total)
            if total is not out:
                out[...] = total
            if with_norm:
                norm += squares(out)
    return norm


def squares(x: Array) -> float:
    """The sum of the squares of ``x`` (length,); in float64 where large numbers would overflow."""
    if x.dtype == np.float16:
        x = x.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(x.dot(x))
        if not math.isfinite(found):
            wide = x.astype(np.float64)
            found = float(wide.dot(wide))
    return found


class Workspace:
    """Mapped memory for arrays of any dtype, kept with the group: two halves of a slot and of the common part."""

    def __init__(self, memory: SharedMemory, piece_bytes: int):
        self.memory, self.piece_bytes = memory, piece_bytes

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
    step = space.piece_bytes // x.itemsize
    pieces = [flat[start : start + step] for start in range(0, flat.size, step)]
    for number in range(len(pieces) + 1):
        if number == 0 and pieces:
            space.half(0, x.dtype)[0][me, : pieces[0].size] = pieces[0]
        group.node_barrier()
        if number > 0:
            done = pieces[number - 1]
            done[...] = space.half(number - 1, x.dtype)[1][: done.size]
        if number < len(pieces):
            sources, out = space.half(number, x.dtype)
            mine = runs(pieces[number].size, len(group.local_ranks), x.itemsize)[me]
            add(blocks(sources, out, mine), group)
        if number + 1 < len(pieces):
            coming = pieces[number + 1]
            space.half(number + 1, x.dtype)[0][me, : coming.size] = coming
