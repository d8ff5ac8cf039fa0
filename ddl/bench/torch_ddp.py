"""PyTorch's networks in ddl against DistributedDataParallel over Gloo: same network, samples and ranks.

Row "ddp": unchanged DistributedDataParallel over backend "ddl". Row "model": ddl.torch.Model in ddl's loop, with ddl's
Adam.

ceiling: the step over Gloo divided by the step of the same network without any communication."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ddl.bench.measure import Row, spread
from ddl.bench.models import CASES
from ddl.bench.step import data_of, make_loop, steps_in_turns
from ddl.comm import Group
from ddl.fault.watchdog import Heartbeat


def rows(
    group: Group,
    heartbeat: Heartbeat | None,
    folder: Path,
    models: Sequence[str],
    seconds: float,
    store: str,
    settings: dict[str, Any],
) -> Iterator[Row]:
    """Four rows for each model: both of ours, against Adam and against Adam in one pass (fused)."""
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
            loop = make_loop(name, group, folder / f"{name}-{fused}", model=peers.adapted(name))
            candidates: dict[str, Callable[[], object]] = {
                "ddp": make(group.size, process_group=ours),
                "model": loop.advance,
                "gloo": make(group.size),
                "alone": make(1),
            }
            times = steps_in_turns(candidates, group, seconds)
            medians = {candidate: statistics.median(found) for candidate, found in times.items()}
            peer = "torch_ddp_fused" if fused else "torch_ddp"
            for mine in ("ddp", "model"):
                more = {
                    "ceiling": round(medians["gloo"] / medians["alone"], 3),
                    "spread": round(spread(times[mine]), 3),
                    **settings,
                }
                yield Row("torch-ddp", group.size, {"model": name}, mine, medians[mine], peer, medians["gloo"], more)
            loop.close()
            loop.log.close()
    peers.leave()
