"""A script for DistributedDataParallel that notes what it did; a rank may be killed at a moment that the test chooses.

usage: unchanged_ddp.py FOLDER STEPS VICTIM WHERE: WHERE is STEP.MOMENT, or "SECONDS after STEP" has begun (-1: since
before the module is given to DDP)."""

import contextlib
import os
import pickle
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ddl.torch  # noqa: F401

folder, steps, victim, where = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples of a rank, numbered as launched, in a step."""
    generator = torch.Generator().manual_seed(step * 100 + rank)
    x = torch.randn(16, 8, generator=generator, dtype=torch.float64)
    return x, (x.sum(1) > 0).long() + (x[:, 0] > 0).long()


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32, momentum=None), nn.ReLU(), nn.Linear(32, 3)).double()


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=0.1)


def main() -> None:
    dist.init_process_group("ddl")
    me, size = dist.get_rank(), dist.get_world_size()
    if where == "never":
        dist.barrier()
        nothing = torch.zeros(0, dtype=torch.float64)
        dist.broadcast(nothing, 0)
        dist.all_reduce(nothing, op=dist.ReduceOp.MAX)
        received = torch.zeros(size)
        dist.all_to_all_single(received, 10.0 * torch.arange(size) + me)
        assert received.tolist() == [10.0 * me + rank for rank in range(size)]
        counts = [1 + rank for rank in range(size)]  # as many rows to each rank as its number says, and one more
        rows = torch.zeros(size * (1 + me), 2)
        dist.all_to_all_single(rows, torch.full((sum(counts), 2), float(me)), [1 + me] * size, counts)
        assert rows[:, 0].tolist() == [float(rank) for rank in range(size) for _ in range(1 + me)]

    def strike(moment: str) -> None:
        if me == victim and moment == where:
            os.kill(os.getpid(), signal.SIGKILL)

    delay_s, _, after = where.partition(" after ")

    def arm(step: int) -> None:
        if me == victim and after == str(step):
            threading.Timer(float(delay_s), os.kill, (os.getpid(), signal.SIGKILL)).start()

    arm(-1)
    model = DistributedDataParallel(network(), bucket_cap_mb=0.001)
    if where == "never":
        with contextlib.suppress(ValueError):
            model.join()
            raise AssertionError("DDP.join was not refused")
    optimizer = optimizer_of(model)
    for name, parameter in model.module.named_parameters():
        parameter.register_hook(lambda g, name=name: strike(f"{step}.{name}"))
    taken = []
    for step in range(steps):
        x, y = batch(step, me)
        arm(step)
        optimizer.zero_grad()
        strike(f"{step}.forward")
        loss = F.cross_entropy(model(x), y)
        strike(f"{step}.backward")
        loss.backward()
        strike(f"{step}.step")
        optimizer.step()
        if any(p.grad is not None for p in model.parameters()):
            taken.append((step, dist.get_world_size()))
        strike(f"{step}.sum")
        mean = loss.detach().clone()
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)
        if after:
            time.sleep(0.005)
        strike(f"{step}.end")
    result = {name: value.numpy() for name, value in model.module.state_dict().items()}
    with open(os.path.join(folder, f"rank{me}.tmp"), "wb") as file:
        pickle.dump((me, taken, result, float(mean)), file)
    os.rename(os.path.join(folder, f"rank{me}.tmp"), os.path.join(folder, f"rank{me}"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
