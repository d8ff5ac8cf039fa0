"""Where a network is cut into stages: by the cost of its parts, or before named parts. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf

from ddl.errors import ConfigError
from ddl.wording import counted, instead, listed

Cut = tuple[slice, ...]  # the parts of each stage


def cheapest_cut(costs: Sequence[float], allowed: Sequence[int], stages: int) -> Cut:
    """Cut parts into ``stages`` runs so that the most expensive run costs least, and then the others are most even.

    costs: of each part. allowed: the numbers of parts, above 0, that a run may begin with.
    Raises ConfigError if they allow fewer runs."""
    edges = [0, *sorted(set(allowed)), len(costs)]
    if len(edges) - 1 < stages:
        raise ConfigError(
            f"parallel.stages is {stages}, but the network can be cut into {counted(len(edges) - 1, 'stage')} at most"
        )
    sums = [sum(costs[a:b]) for a, b in pairwise(edges)]
    # best[i]: (largest cost, sum of squares, first parts) of the first i runs of parts, cut into so many stages.
    best: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ()), *[(inf, inf, ())] * len(sums)]
    for _ in range(stages):
        best = [
            min(
                (
                    (max(largest, cost), squares + cost**2, (*firsts, begin))
                    for begin, (largest, squares, firsts) in enumerate(best[:end])
                    for cost in [sum(sums[begin:end])]
                ),
                default=(inf, inf, ()),
            )
            for end in range(len(sums) + 1)
        ]
    firsts = [edges[begin] for begin in best[-1][2]]
    return tuple(slice(a, b) for a, b in pairwise([*firsts, len(costs)]))


def named_cut(names: Sequence[str], allowed: Sequence[int], given: Sequence[str]) -> Cut:
    """The cut in which the stages after the first begin with the parts called ``given``.

    Raises ConfigError for a name that is unknown, out of order or not allowed."""
    for name in given:
        if name not in names:
            raise ConfigError(f"parallel.cut: the network has no layer {name!r}; {instead(name, names, 'it has')}")
        if names.index(name) not in allowed:
            raise ConfigError(
                f"parallel.cut: no stage can begin with {name!r}: what it takes has no gradient, or no layer before it "
                f"has parameters; a stage can begin with {listed([names[one] for one in allowed], 'or')}"
            )
    firsts = [names.index(name) for name in given]
    if firsts != sorted(set(firsts)):
        raise ConfigError(f"parallel.cut: {listed(given, 'and')} are not in the network's order")
    return tuple(slice(a, b) for a, b in pairwise([0, *firsts, len(names)]))
