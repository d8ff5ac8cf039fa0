"""Your own training loop that survives the death of ranks: ddl.elastic.

    mpirun --with-ft ulfm -n 4 python launch/examples/survive.py

Fits a line to points. The work is cut into shards, and each rank computes the shards in ``world.shards``. Kill a rank
while it runs: the others return to the last commit, take over its shards and continue."""

from __future__ import annotations

import numpy as np

import ddl

SHARDS, STEPS = 12, 100


def points(shard: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(shard)
    x = random.standard_normal(50)
    return x, 3 * x + 2 + 0.1 * random.standard_normal(50)


def train(state, world) -> None:
    while state.step < STEPS:
        gradient = np.zeros(3)  # of slope and intercept, and how many points
        for shard in world.shards:
            x, y = points(shard)
            error = state.line[0] * x + state.line[1] - y
            gradient += [2 * (error * x).sum(), 2 * error.sum(), len(x)]
        total = world.allreduce(gradient)
        state.line -= 0.1 * total[:2] / total[2]
        state.step += 1
        state.commit()
    if world.rank == 0:
        print(f"{world.size} ranks: slope {state.line[0]:.4f}, intercept {state.line[1]:.4f}")


if __name__ == "__main__":
    ddl.elastic.run(train, ddl.elastic.State(line=np.zeros(2), step=0), shards=SHARDS)
