"""MPI's own allreduce with stock settings: a program that times it whenever a line on stdin asks.

The bench runs ``python -m ddl.bench.stock_mpi`` under mpirun. The MPI settings of preflight.py would also speed up the
library's allreduce, so it is measured in a program that never starts ddl's communication."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np

from ddl.comm.topology import cores
from ddl.environment import ranks_on_node

FORMS = ("in_place", "two_buffers")
POLL_S = 0.002


def settle(environment: MutableMapping[str, str]) -> None:
    """Let idle ranks yield if ranks outnumber cores, as Open MPI does when it notices.

    On one node it noticed; over two hosts with one core each it never did."""
    if ranks_on_node(environment) > cores():
        environment.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


def allreduce_of(mpi: Any, form: str, nbytes: int) -> Callable[[], None]:
    x = np.full(nbytes // 4, 0, np.float32)
    source = mpi.IN_PLACE if form == "in_place" else np.full(nbytes // 4, 0, np.float32)
    return lambda: mpi.COMM_WORLD.Allreduce(source, x)


def seconds_of(mpi: Any, call: Callable[[], None], calls: int) -> float:
    """Seconds of one call on the slowest rank."""
    mpi.COMM_WORLD.Barrier()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return float(mpi.COMM_WORLD.allreduce((time.perf_counter() - began) / calls, op=mpi.MAX))


def orders(comm: Any) -> Any:
    """Yield on every rank the JSON lines of rank 0's stdin; the other ranks sleep until the next one."""
    if comm.rank == 0:
        for line in sys.stdin:
            order = json.loads(line)
            for rank in range(1, comm.size):
                comm.send(order, rank)
            yield order
        for rank in range(1, comm.size):
            comm.send(None, rank)
        return
    while True:
        while not comm.Iprobe(source=0):
            time.sleep(POLL_S)
        order = comm.recv(source=0)
        if order is None:
            return
        yield order


def main() -> None:
    settle(os.environ)
    from mpi4py import MPI

    made: tuple[Any, Callable[[], None]] = (None, lambda: None)
    for order in orders(MPI.COMM_WORLD):
        form, nbytes, calls = order
        if made[0] != (form, nbytes):
            made = (form, nbytes), allreduce_of(MPI, form, nbytes)
        seconds = seconds_of(MPI, made[1], calls)
        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
