"""Cut a count into contiguous parts: the arithmetic that shards, chunks and stages share."""

from __future__ import annotations

from itertools import pairwise


def partition(count: int, parts: int) -> list[slice]:
    """Cut ``count`` items into ``parts`` runs whose lengths differ by at most one."""
    edges = [count * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def partition_slice(part: slice, parts: int) -> list[slice]:
    """``partition`` of the items of a slice."""
    return [slice(part.start + s.start, part.start + s.stop) for s in partition(part.stop - part.start, parts)]
