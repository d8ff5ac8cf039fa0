"""Scaling from one rank to many, weak and strong, against single-rank jobs side by side on the same cores.

Jobs side by side compete for the machine's memory as the ranks of one job do, so the difference is our own cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ddl.bench.measure import Row
from ddl.bench.models import CASES
from ddl.bench.step import blocks_in_turns, make_loop
from ddl.comm import Group, threads


def rows(
    group: Group,
    folder: Path,
    models: Sequence[str],
    seconds: float,
    beat: Callable[[int, str], None],
    settings: dict[str, Any],
) -> Iterator[Row]:
    """Two rows per model. weak: the same batch on every rank, so the ratio is the efficiency; strong: one rank's batch
    shared by all, so the ratio is how many times faster than one rank."""
    for name in models:
        whole = CASES[name].batch
        loops = {
            "weak": make_loop(name, group, folder / f"{name}-weak", beat=beat),
            "strong": make_loop(name, group, folder / f"{name}-strong", batch=whole, beat=beat),
            "alone": make_loop(name, threads.alone(), folder / f"{name}-alone-{group.rank}", beat=beat),
        }
        blocks = blocks_in_turns({mode: loop.advance for mode, loop in loops.items()}, group, seconds)
        for loop in loops.values():
            loop.close()
            loop.log.close()
        # By whole blocks: a step of ranks that wait for each other ends now on one, now on the other a little later,
        # and the slowest rank of each step would count that twice.
        middle = {mode: statistics.median(float(block.mean()) for block in found) for mode, found in blocks.items()}
        # What ranks that wait for the slowest of each step would take if their sums cost nothing.
        in_step = statistics.median(float(block.max(axis=0).mean()) for block in blocks["alone"])
        more = {"alone_in_step_s": in_step, **settings}
        for mode in ("weak", "strong"):
            subject = {"model": name, "mode": mode}
            yield Row("scaling", group.size, subject, "auto", middle[mode], "alone", middle["alone"], more)
