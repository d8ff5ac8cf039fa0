"""The cost of fault tolerance in a healthy step: two running jobs, with and without it, alternate in blocks of steps.

One job sleeps while the other steps, so outside load disturbs both equally. "Without" is a user's job that asks for no
fault tolerance: the same MPI components, but no --with-ft, no watchdog and no heartbeats."""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl.bench import job
from ddl.bench.measure import Row, spread
from ddl.bench.step import BLOCK_S, make_loop, time_steps
from ddl.comm import Group

WARM_ROUNDS = 2
POLL_S = 0.01  # up to ten other processes wait while one job is measured
OVER = -1


class Turns:
    """Whose turn it is: a number in a file that this process and all ranks of all jobs have mapped.

    Turn t is that of job ``t % jobs``; each job knows which is its next one."""

    def __init__(self, path: str | Path, mine: int = 0, jobs: int = 2):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(descriptor, 8)
        self._turn = np.frombuffer(mmap.mmap(descriptor, 8), np.int64)
        os.close(descriptor)
        self._next, self._jobs = mine, jobs

    def give(self, turn: int) -> None:
        self._turn[0] = turn

    def take(self) -> bool:
        """Sleep until the next turn of this job; False if there are no more turns."""
        while (turn := int(self._turn[0])) != self._next:
            if turn == OVER:
                return False
            time.sleep(POLL_S)
        self._next += self._jobs
        return True


def blocks(
    group: Group, folder: Path, name: str, turns: Turns, beat: Callable[[int, str], None]
) -> Iterator[list[float]]:
    """Run one block of steps per turn; yields the seconds of each step on the slowest rank. Called on every rank."""
    loop, steps = make_loop(name, group, folder / name, beat=beat), 0
    while turns.take():
        group.barrier()
        if not steps:
            time_steps(loop.advance, 3)
            steps = max(3, round(BLOCK_S / max(group.gather_objects(statistics.median(time_steps(loop.advance, 5))))))
        # The first step of a block finds the other job's data in the caches.
        times = time_steps(loop.advance, steps)[1:]
        yield np.array(group.gather_objects(times)).max(axis=0).tolist()
    loop.close()
    loop.log.close()


def rows(size: int, models: Sequence[str], seconds: float, threads: int, mpirun: str = "") -> Iterator[dict[str, Any]]:
    """One row per model: ours is with fault tolerance, the peer without.

    ``cost_us`` is the median over the rounds of the difference between neighbouring blocks; the quartiles follow."""
    for name in models:
        with tempfile.TemporaryDirectory(prefix="ddl-bench-") as folder:
            path = f"{folder}/turns"
            turns, rounds = Turns(path), WARM_ROUNDS + max(8, round(seconds / BLOCK_S))
            turns.give(0)
            asked: dict[str, Any] = {"bench": "tolerance", "models": [name], "turns": path, "mpirun": mpirun}
            asked.update(seconds=seconds, sizes=[], peers=[])
            environ = job.environment(size, threads, "on")
            jobs = [
                job.rows({**asked, "mine": mine}, size, tolerance, threads, environ)
                for mine, tolerance in enumerate(("off", "on"))
            ]
            medians = np.empty((rounds, 2))
            for turn in range(2 * rounds):
                turns.give(turn)
                medians[turn // 2, turn % 2] = statistics.median(next(jobs[turn % 2])["block"])
            turns.give(OVER)
            for each in jobs:
                list(each)
        yield summed_up(name, size, medians[WARM_ROUNDS:]).to_json()


def summed_up(name: str, size: int, medians: np.ndarray) -> Row:
    """medians: (rounds, 2) seconds of a step, without and with."""
    without, with_it = (float(np.median(medians[:, place])) for place in (0, 1))
    low, cost, high = np.quantile(medians[:, 1] - medians[:, 0], [0.25, 0.5, 0.75]).tolist()
    more = {
        "cost_us": round(cost * 1e6, 1),
        "cost_quartiles_us": [round(low * 1e6, 1), round(high * 1e6, 1)],
        "cost_share": round(cost / without, 4),
        "rounds": len(medians),
        "spread": round(spread(medians[:, 1].tolist()), 3),
    }
    return Row("tolerance", size, {"model": name}, "with", with_it, "without", without, more)
