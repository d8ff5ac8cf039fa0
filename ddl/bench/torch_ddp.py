"""Unchanged DistributedDataParallel over backend "ddl", against the same over Gloo: same network, optimizer and ranks.

ceiling: the step over Gloo divided by the step of the same network without any communication."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ddl.bench.measure import Row, spread
from ddl.bench.models import CASES
from ddl.bench.step import data_of, steps_in_turns
from ddl.comm import Group
from ddl.fault.watchdog import Heartbeat


def rows(
    group: Group,
    heartbeat: Heartbeat | None,
    models: Sequence[str],
    seconds: float,
    store: str,
    settings: dict[str, Any],
) -> Iterator[Row]:
    """Two rows for each model: Adam, and Adam in one pass (fused)."""
    from ddl.bench import peers
    from ddl.fault import session
    from ddl.torch import process_group

    session.hold(group, heartbeat)
    ours = process_group.of(group)
    peers.join(group.rank, group.size, store)
    for name in models:
        arrays = data_of(CASES[name], 1).arrays
        for fused in (False, True):
            make = functools.partial(peers.TorchStep, name, arrays, CASES[name].batch, fused=fused)
            candidates: dict[str, Callable[[], object]] = {
                "ddl": make(group.size, process_group=ours),
                "gloo": make(group.size),
                "alone": make(1),
            }
            times = steps_in_turns(candidates, group, seconds)
            medians = {candidate: statistics.median(found) for candidate, found in times.items()}
            more = {
                "ceiling": round(medians["gloo"] / medians["alone"], 3),
                "spread": round(spread(times["ddl"]), 3),
                **settings,
            }
            peer = "torch_ddp_fused" if fused else "torch_ddp"
            yield Row("torch-ddp", group.size, {"model": name}, "auto", medians["ddl"], peer, medians["gloo"], more)
    peers.leave()
