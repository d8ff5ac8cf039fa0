"""Buckets: runs of the flat gradient that travel together, in the order in which backward writes them.

Pure arithmetic; sending a bucket that is whole is the reducer's work (reducer.py)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ddl.arrays import Layout


@dataclass(frozen=True)
class Bucket:
    """``names`` and everything else that lies in ``span`` of the flat gradient."""

    names: tuple[str, ...]
    span: slice


def buckets(
    layout: Layout, bucket_bytes: float, order: Sequence[str] | None = None, alone: Collection[str] = ()
) -> list[Bucket]:
    """Cut the flat gradient into buckets that together cover it once, gaps included.

    order: the names as backward yields them (default: forward's order, reversed). A bucket is closed
    when it has reached ``bucket_bytes``, or where the order jumps to another place in memory.
    alone: names that share their bucket with no other."""
    names = list(reversed(list(layout.shapes)) if order is None else order)
    if sorted(names) != sorted(layout.shapes):
        raise ValueError(f"the order must hold each name once; differs by {sorted(set(names) ^ set(layout.shapes))}")
    spans = _spans(layout)
    found: list[Bucket] = []
    for name in names:
        span = spans[name]
        last = found[-1] if found else None
        joins = last is not None and (span.stop == last.span.start or span.start == last.span.stop)
        joins = joins and name not in alone and not (last is not None and last.names[0] in alone)
        if last is None or not joins or _bytes(last.span, layout) >= bucket_bytes:
            found.append(Bucket((name,), span))
        else:
            whole = slice(min(span.start, last.span.start), max(span.stop, last.span.stop))
            found[-1] = Bucket((*last.names, name), whole)
    return found


def _spans(layout: Layout) -> dict[str, slice]:
    """Each name's slice with the gap behind it, so that the spans cover the buffer without a hole."""
    edges = [*(place.start for place in layout.slices.values()), layout.length]
    return {name: slice(a, b) for name, (a, b) in zip(layout.slices, pairwise(edges), strict=True)}


def _bytes(span: slice, layout: Layout) -> int:
    return int((span.stop - span.start) * layout.dtype.itemsize)


class Progress:
    """Which buckets may leave: those that are whole and follow only buckets that have left."""

    def __init__(self, plan: Sequence[Bucket]):
        self._place = {name: number for number, bucket in enumerate(plan) for name in bucket.names}
        self._sizes = [len(bucket.names) for bucket in plan]
        self._missing = list(self._sizes)
        self._next = 0

    def announce(self, names: Iterable[str]) -> range:
        """The numbers of the buckets that may leave now that ``names`` are whole.

        The last bucket is never among them: the end of the step takes it along, with the header."""
        for name in names:
            self._missing[self._place[name]] -= 1
        first = self._next
        while self._next < len(self._sizes) - 1 and self._missing[self._next] <= 0:
            self._next += 1
        return range(first, self._next)

    def flush(self) -> range:
        """The numbers of all buckets that have not left; a new step begins."""
        rest = range(self._next, len(self._sizes))
        self._next = 0
        self._missing[:] = self._sizes
        return rest
