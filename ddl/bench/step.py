"""Training steps per second: the whole loop as a user's job runs it, against PyTorch's DDP on the same ranks.

A step is Loop.advance: batch, forward, backward, sum, update, ledger and metrics.jsonl. models.py has the networks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import Device, generator
from ddl.arrays.flat import Layout
from ddl.bench.measure import Row, spread
from ddl.bench.models import CASES, STEPS_OF_DATA, Case
from ddl.comm import Group
from ddl.data import Arrays, Order, auto_shards
from ddl.data.ledger import Start
from ddl.models import Model
from ddl.optim import Adam, Groups
from ddl.run.log import RunLog
from ddl.train.loop import Loop
from ddl.train.services import Services
from ddl.train.state import TrainingState
from ddl.train.task import Task

BLOCK_S = 0.25
PHASES = ("load", "compute", "sum", "update")


class Shares:
    """Adds up the time of each phase of a step; passed to a Loop as ``span``."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def of(self, total_s: float) -> dict[str, float]:
        """Share of each phase in the time of a step; the rest is the loop's own."""
        found = {name: round(self.seconds[name] / total_s, 3) for name in PHASES}
        return {**found, "loop": round(1 - sum(found.values()), 3)}


def data_of(case: Case, ranks: int) -> Arrays:
    return case.make_data(generator(0, "bench"), case.batch * ranks * STEPS_OF_DATA)


def make_loop(
    name: str,
    group: Group,
    folder: Path | None,
    *,
    device: Device | None = None,
    batch: int = 0,
    beat: Callable[[int, str], None] | None = None,
    span: Callable[[str], AbstractContextManager[None]] | None = None,
    model: Model | None = None,
) -> Loop:
    """The loop of a job on ``name``, attached to the group and ready to advance.

    folder: where its files go. batch: samples of a step over all ranks (0: the network's own, on every rank). model:
    instead of the case's own."""
    case, device = CASES[name], device or Device()
    data = data_of(case, group.size)
    model = model or case.make_model(data)
    batch = batch or case.batch * group.size
    order = Order(len(data), auto_shards(batch, len(data)), batch, 0)
    layout = Layout.of({parameter: shape for parameter, (shape, _) in model.params.items()})
    adam = Adam(lr=1e-3)
    task = Task(
        model=model,
        train=data,
        validation=None,
        test=None,
        order=order,
        optimizer=Groups(layout, adam),
        lr=lambda step: 1e-3,
        total_steps=1 << 40,
    )
    state = TrainingState(model, task.optimizer.slots, task.dtype, 0, device)
    log = RunLog(task)
    log.launch, log.folder, log.ranks_started = "bench", folder, group.size
    services = Services(log)
    if beat is not None:
        services.beat = beat  # type: ignore[method-assign, assignment]
    if span is not None:
        services.span = span  # type: ignore[method-assign, assignment]
    loop = Loop(task, group, device, state, services)
    if group.is_leader:
        log.lead()
        if log._ledger is not None:
            log._ledger.start(Start("bench", 0, 0, order))
    problem = loop.work.attach(group, loop.work.plan)
    assert problem is None, problem
    return loop


def time_steps(call: Callable[[], object], steps: int) -> list[float]:
    """Seconds of each of ``steps`` calls."""
    times = np.empty(steps + 1)
    times[0] = time.perf_counter()
    for step in range(1, steps + 1):
        call()
        times[step] = time.perf_counter()
    return np.diff(times).tolist()


def steps_in_turns(candidates: dict[str, Callable[[], object]], group: Group, seconds: float) -> dict[str, list[float]]:
    """Seconds of each step of each candidate on its slowest rank; candidates alternate until each ran ``seconds``."""
    blocks = blocks_in_turns(candidates, group, seconds)
    return {name: np.concatenate([block.max(axis=0) for block in found]).tolist() for name, found in blocks.items()}


def blocks_in_turns(
    candidates: dict[str, Callable[[], object]], group: Group, seconds: float
) -> dict[str, list[np.ndarray]]:
    """The blocks of each candidate, (ranks, steps) seconds; candidates alternate until each ran ``seconds``."""
    steps: dict[str, int] = {}
    for name, call in candidates.items():
        time_steps(call, 3)
        group.barrier()
        slowest = max(group.gather_objects(statistics.median(time_steps(call, 5))))
        steps[name] = max(3, round(BLOCK_S / slowest))
    names, found = list(candidates), {name: list[np.ndarray]() for name in candidates}
    for number in range(max(3, round(seconds / BLOCK_S))):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            group.barrier()
            times = time_steps(candidates[name], steps[name])
            # The first step of a block finds the other candidate's data in the caches.
            found[name].append(np.array(group.gather_objects(times[1:])))
    return found


def rows(
    group: Group,
    folder: Path,
    models: Sequence[str],
    peers: Sequence[str],
    seconds: float,
    store: str,
    beat: Callable[[int, str], None],
    settings: dict[str, Any],
) -> Iterator[Row]:
    """A row for each model and peer; without a peer, ours alone with itself."""
    if peers:
        from ddl.bench import peers as torch_peers

        torch_peers.join(group.rank, group.size, store)
    for name in models:
        shares = Shares()
        loop = make_loop(name, group, folder / name, beat=beat)
        candidates: dict[str, Callable[[], object]] = {"ours": loop.advance}
        if peers:
            arrays = data_of(CASES[name], 1).arrays
            for peer in peers:
                candidates[peer] = torch_peers.TorchStep(
                    name, arrays, CASES[name].batch, group.size, fused=peer.endswith("fused")
                )
        times = steps_in_turns(candidates, group, seconds)
        ours = statistics.median(times["ours"])
        loop.close()
        loop.log.close()
        # A second loop, watched: timing every phase would slow a small step down.
        loop = make_loop(name, group, folder / f"{name}-phases", beat=beat, span=shares.span)
        time_steps(loop.advance, 3)
        shares.seconds = dict.fromkeys(PHASES, 0.0)
        group.barrier()
        total = sum(time_steps(loop.advance, max(5, round(BLOCK_S / ours))))
        loop.close()
        loop.log.close()
        more = {
            "samples_per_s": round(CASES[name].batch * group.size / ours, 1),
            "spread": round(spread(times["ours"]), 3),
            "shares": shares.of(total),
            **settings,
        }
        for peer in peers or ("itself",):
            theirs = statistics.median(times[peer]) if peers else ours
            yield Row("step", group.size, {"model": name}, "auto", ours, peer, theirs, more)
    if peers:
        torch_peers.leave()
