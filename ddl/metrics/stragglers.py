"""Who waits for whom: from the seconds that each rank spent in the sums of an epoch (events "epoch" of metrics.jsonl).

In a sum all ranks wait for the last one. The rank that waits least is therefore the one that the others wait for; what
it waits itself is what messages and additions take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddl.reading import take
from ddl.wording import counted

SHARE = 0.05  # of the time of an epoch's steps that the others must wait for a rank before it is named


@dataclass
class Waits:
    """Over all epochs. seconds: that the steps took. waited: rank -> seconds in sums. behind: (rank, slowest rank) ->
    seconds that the first waited for the second. recovery: phase of recoveries -> seconds, in which all ranks wait."""

    seconds: float = 0.0
    waited: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    behind: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    recovery: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def waits_of(events: Sequence[Mapping[str, Any]]) -> Waits:
    """Raises ValueError for events that are not what a run writes."""
    found, of_epoch = Waits(), 0.0
    for event in events:
        kind = event.get("event")
        if kind == "step":
            of_epoch += take(event, "seconds", int, float)
        elif kind == "recovery":
            for phase, seconds in take(event, "phases", dict).items():
                found.recovery[phase] += take({phase: seconds}, phase, int, float)
        elif kind == "epoch":
            own = take({"waited": {}, **event}, "waited", dict)
            waited = {int(rank): float(take(own, rank, int, float)) for rank in own}
            found.seconds, of_epoch = found.seconds + of_epoch, 0.0
            for rank, own_s in waited.items():
                found.waited[rank] += own_s
            if len(waited) > 1:
                slowest = min(waited, key=lambda rank: (waited[rank], rank))
                for rank in waited.keys() - {slowest}:
                    found.behind[rank, slowest] += waited[rank] - waited[slowest]
    return found


def as_lines(found: Waits) -> list[str]:
    """The report; the last line names the ranks that are waited for."""
    if len(found.waited) < 2:
        return ["one rank: it waits for no other"]
    whole = found.seconds or 1.0
    lines = [f"{found.seconds:.3g} s of steps in whole epochs; in their sums"]
    for rank in sorted(found.waited):
        of_rank = {slow: s for (waiting, slow), s in found.behind.items() if waiting == rank and s > 0}
        whom = ", ".join(f"{s:.3g} s for rank {slow}" for slow, s in sorted(of_rank.items(), key=lambda p: -p[1]))
        share = f"{100 * found.waited[rank] / whole:.0f} %"
        lines.append(f"  rank {rank} waited {found.waited[rank]:.3g} s ({share})" + (f": {whom}" if whom else ""))
    if found.recovery:
        phases = ", ".join(f"{phase} {seconds:.3g} s" for phase, seconds in found.recovery.items())
        lines.append(f"all ranks waited in recoveries: {phases}")
    ranks = len(found.waited)
    caused: dict[int, float] = defaultdict(float)
    for (_, slow), seconds in found.behind.items():
        caused[slow] += seconds
    named = [
        (rank, s / (ranks - 1))
        for rank, s in sorted(caused.items(), key=lambda p: -p[1])
        if s / (ranks - 1) > SHARE * whole
    ]
    if not named:
        lines.append("the ranks wait equally long")
    for rank, seconds in named:
        share = f"{100 * seconds / whole:.0f} % of the time"
        lines.append(f"{counted(ranks - 1, 'other rank')} waited for rank {rank}, on average {seconds:.3g} s ({share})")
    return lines
