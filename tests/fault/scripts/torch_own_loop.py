"""A script's own loop around ddl.torch.State, some of whose ranks are struck: usage: torch_own_loop.py FOLDER.

TRIAL_BLOWS: lines of "ACT RANK STEP PLACE COUNT": at the PLACE, passed for the COUNT-th time while STEP steps are
committed, or with PLACE "after" COUNT ms later, whatever the rank does then. Each rank that comes to the end leaves
rankN.npz there: the parameters, the optimizer's state, and how often each sample was used."""

import os
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import ddl
import ddl.torch
from ddl.fault.inject import Fault, perform

STEPS, TRAINED = 30, 1400
folder = Path(sys.argv[1])
me = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))
blows = [line.split() for line in os.environ.get("TRIAL_BLOWS", "").splitlines()]
blows = [(number, blow) for number, blow in enumerate(blows) if int(blow[1]) == me]


def strike(number: int, act: str) -> None:
    (folder / f"struck-{number}").touch()
    perform(Fault(act, me))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arrays = ddl.data.digits().arrays
    x, y = torch.tensor(arrays["x"]).double().reshape(-1, 1, 8, 8) / 16, torch.tensor(arrays["y"])
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    net.append(nn.Linear(54, 10)).double()
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
    state = ddl.torch.State(net, optimizer, scheduler, used=np.zeros(TRAINED, np.int64))
    passed: Counter[tuple[int, str]] = Counter()

    def probe(point: str) -> None:
        passed[state.steps, point] += 1
        for entry in list(blows):
            number, (act, _, step, place, count) = entry
            if place == point and int(step) in (-1, state.steps) and passed[state.steps, point] == int(count):
                blows.remove(entry)
                strike(number, act)

    def begin_step() -> None:
        for entry in list(blows):
            number, (act, _, step, place, ms) = entry
            if place == "after" and int(step) == state.steps:
                blows.remove(entry)
                threading.Timer(float(ms) / 1e3, strike, (number, act)).start()
        probe("loop.step")

    for parameter in net.parameters():
        parameter.register_hook(lambda gradient: probe("loop.backward"))

    @ddl.elastic.resilient(state, shards=60, hang_timeout_s=20, check_every=10)
    def train(state, world):
        world.group.probe = probe
        for rows in world.batches(TRAINED, global_batch=140, epochs=3):
            begin_step()
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows], reduction="sum").backward()
            state.average(len(rows))
            probe("loop.averaged")
            taken = np.zeros(TRAINED, np.int64)
            taken[rows] = 1
            state.used = state.used + world.allreduce(taken)
            probe("loop.update")
            state.update()
            if state.steps in (10, 20):
                evaluate(world)
        return world, evaluate(world)

    def evaluate(world) -> int:
        mine = range(TRAINED + world.rank, len(x), world.size)
        with torch.no_grad():
            right = np.array([int((net(x[mine]).argmax(1) == y[mine]).sum())])
        probe("loop.evaluate")
        total = int(world.allreduce(right)[0])
        if world.rank == 0:
            probe("loop.save")
            torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, folder / "aside.pt")
            probe("loop.saved")
            os.replace(folder / "aside.pt", folder / "checkpoint.pt")
        return total

    world, right = train()
    probe("loop.end")
    saved = {name: value.numpy() for name, value in net.state_dict().items()}
    slots = optimizer.state_dict()["state"]
    saved |= {f"{name} {number}": np.asarray(v) for number, one in slots.items() for name, v in one.items()}
    np.savez(folder / f"rank{me}.aside.npz", used=state.used, right=right, steps=state.steps, **saved)
    os.replace(folder / f"rank{me}.aside.npz", folder / f"rank{me}.npz")
    probe("loop.left")
    if world.rank == 0:
        print(f"{world.size} ranks, {state.steps} updates")


if __name__ == "__main__":
    main()
