"""PyTorch's networks in ddl against DistributedDataParallel over Gloo: same network, samples and ranks.

Each candidate is a job of its own, since jobs differ in memory and threads; they take turns, and sleep meanwhile.
Row "ddp": unchanged DistributedDataParallel over backend "ddl". Row "model": ddl.torch.Model in ddl's loop, with
its Adam.

ceiling: the step over Gloo divided by forward and backward of the same network alone on each rank, without sum and
update. resident_mib: the peak of a rank in its steps; above_mib: how much more than that of the peer."""

from __future__ import annotations

import re
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl.bench import job
from ddl.bench.measure import Row, spread
from ddl.bench.models import CASES
from ddl.bench.step import BLOCK_S, data_of, make_loop, time_steps
from ddl.bench.tolerance import OVER, WARM_ROUNDS, Turns
from ddl.comm import Group
from ddl.fault.watchdog import Heartbeat

CANDIDATES = ("alone", "gloo", "gloo-fused", "ddp", "ddp-fused", "model")
MIB = 1 << 20


def blocks(
    group: Group, heartbeat: Heartbeat | None, folder: Path, name: str, candidate: str, turns: Turns, store: str
) -> Iterator[dict[str, Any]]:
    """Run one block of steps per turn; yields the seconds of each step on the slowest rank, and the resident memory of
    the largest. Called on every rank."""
    step, steps = None, 0
    while turns.take():
        step = step or _candidate(group, heartbeat, folder, name, candidate, store)
        group.barrier()
        if not steps:
            time_steps(step, 3)
            steps = max(3, round(BLOCK_S / max(group.gather_objects(statistics.median(time_steps(step, 5))))))
            Path("/proc/self/clear_refs").write_text("5")  # the peak of set-up does not count
        # The first step of a block finds the other jobs' data in the caches.
        times = np.array(group.gather_objects(time_steps(step, steps)[1:])).max(axis=0)
        yield {"times": times.tolist(), "resident": max(group.gather_objects(resident_bytes()))}
    if "gloo" in candidate:
        from ddl.bench import peers

        peers.leave()


def resident_bytes() -> int:
    """The peak of this process's resident memory since it was reset."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def _candidate(
    group: Group, heartbeat: Heartbeat | None, folder: Path, name: str, candidate: str, store: str
) -> Callable[[], object]:
    """One step of ``candidate``."""
    from ddl.bench import peers

    kind, fused = candidate.removesuffix("-fused"), candidate.endswith("-fused")
    if kind == "model":
        return make_loop(name, group, folder / name, model=peers.adapted(name)).advance
    if kind != "alone":
        peers.join(group.rank, group.size, store)
    process_group = None
    if kind == "ddp":
        from ddl.fault import session
        from ddl.torch import process_group as backend

        session.hold(group, heartbeat)
        process_group = backend.of(group)
    ranks = 1 if kind == "alone" else group.size
    arrays = data_of(CASES[name], 1).arrays
    step = peers.TorchStep(name, arrays, CASES[name].batch, ranks, fused=fused, process_group=process_group)
    return step.gradients if kind == "alone" else step


def rows(size: int, models: Sequence[str], seconds: float, threads: int, mpirun: str = "") -> Iterator[dict[str, Any]]:
    """Four rows for each model: both ways of ddl, against Adam and against Adam in one pass (fused)."""
    for name in models:
        with tempfile.TemporaryDirectory(prefix="ddl-bench-") as folder:
            turns, rounds = Turns(f"{folder}/turns"), WARM_ROUNDS + max(8, round(seconds / BLOCK_S))
            turns.give(0)
            asked: dict[str, Any] = {"bench": "torch-ddp", "models": [name], "turns": f"{folder}/turns"}
            asked.update(seconds=seconds, sizes=[], peers=[], mpirun=mpirun)
            environ = job.environment(size, threads, "on")
            jobs = [
                job.rows({**asked, "mine": mine, "candidate": candidate}, size, "on", threads, environ)
                for mine, candidate in enumerate(CANDIDATES)
            ]
            times: dict[str, list[float]] = {candidate: [] for candidate in CANDIDATES}
            resident = dict.fromkeys(CANDIDATES, 0)
            for turn in range(rounds * len(jobs)):
                turns.give(turn)
                candidate, block = CANDIDATES[turn % len(jobs)], next(jobs[turn % len(jobs)])["block"]
                if turn >= WARM_ROUNDS * len(jobs):
                    times[candidate] += block["times"]
                    resident[candidate] = max(resident[candidate], block["resident"])
            turns.give(OVER)
            for each in jobs:
                list(each)
        yield from (row.to_json() for row in compared(name, size, times, resident))


def compared(name: str, size: int, times: dict[str, list[float]], resident: dict[str, int]) -> Iterator[Row]:
    """times: seconds of each step, by candidate. resident: bytes of a rank, by candidate."""
    medians = {candidate: statistics.median(found) for candidate, found in times.items()}
    for ending, peer in (("", "torch_ddp"), ("-fused", "torch_ddp_fused")):
        gloo = "gloo" + ending
        for label, mine in (("ddp", "ddp" + ending), ("model", "model")):
            more = {
                "ceiling": round(medians[gloo] / medians["alone"], 3),
                "resident_mib": round(resident[mine] / MIB, 1),
                "above_mib": round((resident[mine] - resident[gloo]) / MIB, 1),
                "spread": round(spread(times[mine]), 3),
            }
            yield Row("torch-ddp", size, {"model": name}, label, medians[mine], peer, medians[gloo], more)
