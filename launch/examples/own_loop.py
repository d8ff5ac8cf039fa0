"""Your own training loop, for Horovod users: rank and size, broadcast, an optimizer that averages gradients.

    mpirun -n 4 python launch/examples/own_loop.py

Fits a line to points; each rank has its own part of them."""

from __future__ import annotations

import numpy as np

import ddl


def main() -> None:
    ddl.init()
    random = np.random.default_rng(ddl.rank())  # each rank draws different points
    x = random.standard_normal(200)
    y = 3 * x + 2 + 0.1 * random.standard_normal(200)
    params = {"slope": random.standard_normal(1), "intercept": random.standard_normal(1)}
    ddl.broadcast(params)  # every rank starts from rank 0's values
    optimizer = ddl.DistributedOptimizer(ddl.optim.Momentum(lr=0.05), params)
    for _ in range(150):
        error = params["slope"] * x + params["intercept"] - y
        optimizer.step({"slope": [2 * (error * x).mean()], "intercept": [2 * error.mean()]})
    error = params["slope"] * x + params["intercept"] - y
    loss = ddl.allreduce(np.array([(error**2).mean()]))  # the mean over all ranks
    if ddl.rank() == 0:
        print(f"{ddl.size()} ranks: slope {params['slope'][0]:.4f}, intercept {params['intercept'][0]:.4f}, ", end="")
        print(f"loss {loss[0]:.4f}")


if __name__ == "__main__":
    main()
