"""The method of measurement: candidates alternate in blocks of calls; a result is the median of the blocks.

The other files of this folder define the candidates; none of the arithmetic here needs MPI."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Call = Callable[[], object]


@dataclass(frozen=True)
class Elsewhere:
    """A candidate that other processes call and time: ``block(calls)`` returns the seconds of one call."""

    block: Callable[[int], float]


FEWEST_ROUNDS = 3  # a median needs them


@dataclass(frozen=True)
class Row:
    """One comparison. ours_s, peer_s: seconds of one allreduce or one step, medians; ratio above 1: ours is faster.

    subject: {"bytes": ...} or {"model": ...}. more: further figures."""

    bench: str
    ranks: int
    subject: Mapping[str, Any]
    algorithm: str
    ours_s: float
    peer: str
    peer_s: float
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.peer_s / self.ours_s

    def to_json(self) -> dict[str, Any]:
        known = {"bench": self.bench, "ranks": self.ranks, **self.subject, "algorithm": self.algorithm}
        figures = {"ours_s": self.ours_s, "peer": self.peer, "peer_s": self.peer_s, "ratio": round(self.ratio, 4)}
        return {**known, **figures, **self.more}


def algorithm_bandwidth(nbytes: int, seconds: float) -> float:
    """Bytes of one rank's array per second, as nccl-tests define it; in GB/s."""
    return nbytes / seconds / 1e9


def bus_bandwidth(nbytes: int, seconds: float, ranks: int) -> float:
    """Algorithm bandwidth times 2(n-1)/n: what each rank must send at least; comparable over rank counts; in GB/s."""
    return algorithm_bandwidth(nbytes, seconds) * 2 * (ranks - 1) / ranks


def calls_per_block(seconds: float, block_s: float, most: int = 1000) -> int:
    """How many calls of ``seconds`` each make a block long enough to be timed."""
    return max(1, min(most, round(block_s / max(seconds, 1e-9))))


def time_block(call: Call | Elsewhere, calls: int) -> float:
    """Seconds of one call, over a block of them."""
    if isinstance(call, Elsewhere):
        return call.block(calls)
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def in_turns(
    candidates: Mapping[str, Call | Elsewhere],
    rounds: int,
    together: Callable[[], object],
    *,
    block_s: float = 0.002,
    agree: Callable[[float], float] = lambda seconds: seconds,
    limit_s: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of one call of each candidate, per round; every round measures each of them, and the order rotates.

    together: a barrier before each block. agree: turns the different times of the ranks into one (the slowest rank's),
    since all must make the same number of calls. limit_s: do fewer rounds, but at least FEWEST_ROUNDS, if all would
    take longer."""
    names, calls = list(candidates), {}
    round_s = 0.0
    for name in names:  # the first call warms up, the second determines the length of a block
        time_block(candidates[name], 1)
        together()
        once_s = agree(time_block(candidates[name], 1))
        calls[name] = calls_per_block(once_s, block_s)
        round_s += once_s * calls[name]
    rounds = min(rounds, max(FEWEST_ROUNDS, int(min(limit_s / max(round_s, 1e-9), rounds))))
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            together()
            found[name].append(agree(time_block(candidates[name], calls[name])))
    return found


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def spread(values: Sequence[float]) -> float:
    """Half the distance of the quartiles, as a share of the median: how much to trust it."""
    if len(values) < 4:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / statistics.median(values)
