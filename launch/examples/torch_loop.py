"""Your own PyTorch loop survives the death of ranks: ddl.torch.State.

    mpirun --with-ft ulfm -n 4 python launch/examples/torch_loop.py

Each rank computes the samples of its shards. After a death the others return to the last update, take over its shards
and compute the step again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import ddl
import ddl.torch


def main() -> None:
    torch.manual_seed(0)
    arrays = ddl.data.digits().arrays
    x = torch.tensor(arrays["x"], dtype=torch.float32).flatten(1) / 16
    y = torch.tensor(arrays["y"], dtype=torch.int64)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    state = ddl.torch.State(net, optimizer, scheduler)

    @ddl.elastic.resilient(state, shards=60)
    def train(state, world):
        for rows in world.batches(1400, global_batch=140, epochs=15):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows], reduction="sum").backward()
            state.update(len(rows))  # sums the gradients over the ranks, updates and commits
        return world

    world = train()
    with torch.no_grad():
        outputs = net(x[1400:])
        accuracy = (outputs.argmax(1) == y[1400:]).float().mean()
        loss = F.cross_entropy(outputs, y[1400:])
    if world.rank == 0:
        print(f"{world.size} ranks, {state.steps} updates, accuracy {accuracy:.4f}, loss {loss:.5f}")


if __name__ == "__main__":
    main()
