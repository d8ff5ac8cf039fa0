"""Cut a count into contiguous parts: the arithmetic that shards, chunks and stages share."""

from __future__ import annotations

from itertools import pairwise


def partition(count: int, parts: int) -> list[slice]:
    """Cut ``count`` items into ``parts`` runs whose lengths differ by at most one."""
    edges = [count * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]
