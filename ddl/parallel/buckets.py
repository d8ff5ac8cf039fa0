"""Buckets: ranges of the flat gradient that are summed in one call, in the order in which backward writes them.

Pure arithmetic; reducer.py sends the buckets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ddl.arrays import Layout


@dataclass(frozen=True)
class Bucket:
    """The gradients ``names``, which fill ``span`` of the flat gradient."""

    names: tuple[str, ...]
    span: slice


def buckets(
    layout: Layout,
    bucket_bytes: float,
    order: Sequence[str] | None = None,
    alone: Collection[str] = (),
    apart: Collection[str] = (),
) -> list[Bucket]:
    """Cut the flat gradient into buckets that cover each element exactly once, alignment gaps included.

    order: the names as backward yields them (default: the reverse of forward's order). A bucket is closed once it
    has reached ``bucket_bytes``, and where the next name is not adjacent to it in memory.
    alone: names that share their bucket with no other name. apart: names that share one with each other only.
    Raises ValueError if ``order`` misses or repeats a name."""
    names = list(reversed(list(layout.shapes)) if order is None else order)
    if sorted(names) != sorted(layout.shapes):
        raise ValueError(
            f"the order must hold each name once; differs by {', '.join(sorted(set(names) ^ set(layout.shapes)))}"
        )
    spans = _spans(layout)
    plan: list[Bucket] = []
    for name in names:
        span = spans[name]
        if plan:
            last = plan[-1].span
            is_adjacent = span.stop == last.start or span.start == last.stop
            is_full = (last.stop - last.start) * layout.dtype.itemsize >= bucket_bytes
            is_apart = name in alone or plan[-1].names[0] in alone or (name in apart) != (plan[-1].names[0] in apart)
            if is_adjacent and not is_full and not is_apart:
                joined = slice(min(span.start, last.start), max(span.stop, last.stop))
                plan[-1] = Bucket((*plan[-1].names, name), joined)
                continue
        plan.append(Bucket((name,), span))
    return plan


def _spans(layout: Layout) -> dict[str, slice]:
    """Each name's slice plus the gap that follows it, so that the spans cover the whole buffer."""
    edges = [*(cut.start for cut in layout.slices.values()), layout.length]
    return {name: slice(a, b) for name, (a, b) in zip(layout.slices, pairwise(edges), strict=True)}


class BucketTracker:
    """Tracks which buckets may be sent during backward.

    Buckets are sent strictly in plan order, even if a later one is complete first: all ranks must start their
    collectives in the same order, and backward may finish gradients in another order on another rank."""

    def __init__(self, plan: Sequence[Bucket]):
        self._bucket_of = {name: number for number, bucket in enumerate(plan) for name in bucket.names}
        self._sizes = [len(bucket.names) for bucket in plan]
        self._missing = list(self._sizes)
        self._next = 0

    def announce(self, names: Iterable[str]) -> range:
        """The numbers of the buckets that may be sent now that the gradients ``names`` are final.

        The last bucket is never among them: it is sent at the end of the step, just before the header."""
        for name in names:
            self._missing[self._bucket_of[name]] -= 1
        first = self._next
        while self._next < len(self._sizes) - 1 and self._missing[self._next] <= 0:
            self._next += 1
        return range(first, self._next)

    def flush(self) -> range:
        """The numbers of all buckets not sent yet; resets the counts for the next step."""
        rest = range(self._next, len(self._sizes))
        self._next = 0
        self._missing[:] = self._sizes
        return rest
